"""Whole runs: what they leave, how they are stopped and go on, and what stops them."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dynadapt import files, inputs, train
from dynadapt.commands.config_file import read_config
from dynadapt.main import main
from dynadapt.plans import plan
from dynadapt.runs import checkpoint, workdir
from tests import dashboards, stepping

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).with_name("configs_tiny.py"))
ROOT = Path(__file__).resolve().parents[1]


def start(work, *more, arg=""):
    return main(["train", f"--config={TINY}:{arg}", f"--workdir={work}", *more])


def adapter(work):
    return (work / "adapter" / "adapter.safetensors").read_bytes()


def predictions(work):
    return (work / "predictions" / "predictions.csv").read_bytes()


def records(work):
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def assert_same_records(work, reference):
    """Each step once, and the same values as in the reference, times and speed aside."""

    def kept(rows):
        return [
            {k: v for k, v in r.items() if k != "time" and not k.endswith("_per_second")}
            for r in rows
        ]

    assert kept(records(work)) == kept(records(reference))


def stop_at(monkeypatch, step, how):
    """Calls `how()` when a run has finished this step."""

    def act(state, count):
        if int(state["step"]) + 1 == step:
            how()

    monkeypatch.setattr(train, "make_step", stepping.watched(train.make_step, act))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise MemoryError("planted")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with drop-path, a running mean and evaluations."""
    work = tmp_path_factory.mktemp("whole") / "run"
    assert start(work, *OPTIONS) == 0
    return work


OPTIONS = (
    "--config.optim.drop_path=0.2",
    "--config.optim.ema=0.9",
    "--config.input.train=resize(8)|flip",
    "--config.save_every=4",
    "--config.eval_every=3",
    "--config.log.every=1",
)


@pytest.mark.slow
def test_what_a_run_leaves(whole):
    assert sorted(p.name for p in whole.iterdir()) == [
        "adapter",
        "checkpoints",
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "predictions",
        "result.json",
    ]
    assert sorted(p.name for p in (whole / "predictions").iterdir()) == [
        *("metrics.json", "pictures.png", "predictions.csv"),
    ]
    rows = records(whole)
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(1, 13))
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [3, 6, 9, 12]
    result = files.read_json(whole / "result.json")
    assert result["examples"] == 40 and result["steps"] == 12
    assert result["headline"] == "top1" and 0 <= result["top1"] <= 100
    lines = predictions(whole).decode().splitlines()
    assert lines[0] == "file,label,prediction,probability,top5" and len(lines) == 41
    right = [line.split(",")[1] == line.split(",")[2] for line in lines[1:]]
    assert result["top1"] == pytest.approx(100 * np.mean(right))
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == ["12", "8"]
    assert rows[-1]["top1"] == result["top1"]


@pytest.mark.slow
def test_a_complete_run_is_not_run_again(whole, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    monkeypatch.setattr(train, "make_step", None)
    assert start(whole, *OPTIONS) == 0
    assert "top1" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


@pytest.mark.slow
def test_training_learns_and_leaves_the_frozen_alone(tmp_path):
    work = tmp_path / "run"
    assert start(work, arg="method=lora,steps=60") == 0
    losses = [r["loss"] for r in records(work) if r["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.1
    names = set(files.read_tensors(work / "adapter" / "adapter.safetensors"))
    assert all("adapter" in n.split("/") or n.startswith("head/") for n in names)


@pytest.mark.parametrize("step", [1, 7, 12])
@pytest.mark.slow
def test_an_exception_loses_nothing_but_time(step, whole, tmp_path, monkeypatch):
    work = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, step, fail)
        with pytest.raises(MemoryError):
            start(work, *OPTIONS)
    assert not (work / "adapter").exists() and not (work / "result.json").exists()
    assert start(work, *OPTIONS) == 0
    assert adapter(work) == adapter(whole)
    assert predictions(work) == predictions(whole)
    assert_same_records(work, whole)


@pytest.mark.parametrize("step", [1, 6])
@pytest.mark.slow
def test_asked_to_stop_it_saves_and_goes_on(step, whole, tmp_path, monkeypatch, capsys):
    work = tmp_path / "run"
    argv = ["dynadapt", "train", f"--config={TINY}:", f"--workdir={work}", *OPTIONS]
    monkeypatch.setattr(sys, "argv", argv)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        stop_at(patch, step, terminate)
        assert start(work, *OPTIONS) == 143
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    err = capsys.readouterr().err
    again = next(line for line in err.splitlines() if "go on with: " in line).split("with: ")[1]
    assert shlex.split(again)[-len(argv) + 1 :] == argv[1:]
    saved = sorted(int(p.name) for p in (work / "checkpoints").iterdir())
    assert saved[-1] == step  # not one step is lost
    assert start(work, *OPTIONS) == 0
    assert f"going on from step {step}" in capsys.readouterr().err
    assert adapter(work) == adapter(whole)
    assert_same_records(work, whole)


@pytest.mark.slow
def test_stopped_while_it_evaluates(whole, tmp_path, monkeypatch):
    work = tmp_path / "run"
    real = inputs.eval_batches

    class Batches:
        """The batches of an evaluation; before the second one comes a signal."""

        def __init__(self, *args):
            self.about, self.skipped, self._given = {}, {}, real(*args)

        def __iter__(self):
            for number, batch in enumerate(self._given):
                if number == 1:
                    terminate()
                yield batch

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "eval_batches", Batches)
        assert start(work, *OPTIONS) == 143
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["3"]
    assert start(work, *OPTIONS) == 0
    assert adapter(work) == adapter(whole)
    assert_same_records(work, whole)


def flip(file, position=None, bit=3):
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1 << bit
    file.write_bytes(data)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, monkeypatch, caplog):
    work = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 11, fail)
        with pytest.raises(MemoryError):
            start(work, *OPTIONS)
    saved = work / "checkpoints"
    assert sorted(p.name for p in saved.iterdir()) == ["4", "8"]
    flip(largest(saved / "8" / "train"))
    everything_damaged = tmp_path / "damaged"
    shutil.copytree(work, everything_damaged)

    assert start(work, *OPTIONS) == 0
    assert "checkpoint 8 is passed over" in caplog.text and "damaged" in caplog.text
    assert adapter(work) == adapter(whole)
    assert_same_records(work, whole)

    flip(largest(everything_damaged / "checkpoints" / "4" / "opt_state"))
    for _ in range(2):  # the second start must not take an emptied folder for a new run
        assert start(everything_damaged, *OPTIONS) == 2
        assert not (everything_damaged / "result.json").exists()


@pytest.mark.slow
def test_all_checkpoints_damaged_is_a_clear_error(whole, tmp_path, capsys):
    work = tmp_path / "run"
    shutil.copytree(whole, work)
    (work / "result.json").unlink()
    for step in ("8", "12"):
        flip(largest(work / "checkpoints" / step))
    capsys.readouterr()
    assert start(work, *OPTIONS) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dynadapt: no whole checkpoint") and "new work directory" in last


@pytest.mark.slow
def test_metrics_cut_in_a_line(whole, tmp_path, monkeypatch):
    work = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 10, fail)
        with pytest.raises(MemoryError):
            start(work, *OPTIONS)
    with open(work / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step"')
    assert start(work, *OPTIONS) == 0
    assert_same_records(work, whole)


@pytest.mark.slow
def test_watched_as_it_runs(tmp_path, monkeypatch, capsys):
    """A trace and a dashboard: stopped in the trace's second step, and started again."""
    wandb, _ = dashboards.install(tmp_path / "site", monkeypatch)
    work = tmp_path / "run"
    watched = ("--profile=2:5", "--config.log.sinks=('wandb',)", "--config.log.every=2")
    arg = "method=linear,steps=6"
    assert start(work, "--profile=2:7", arg=arg) == 2 and not work.exists()
    assert "the run has 6" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_at(patch, 4, terminate)
        assert start(work, *watched, arg=arg) == 143
    assert "steps 3 to 4 are traced" in capsys.readouterr().err
    time.sleep(1)  # traces are called by the second
    assert start(work, *watched, arg=arg) == 0
    assert "steps 5 to 5 are traced" in capsys.readouterr().err
    traces = sorted((work / "profile" / "plugins" / "profile").iterdir())
    found = [{p.name.split(".", 1)[1] for p in trace.iterdir()} for trace in traces]
    assert found == [{"xplane.pb", "trace.json.gz"}] * 2
    assert main(["verify", f"--workdir={work}"]) == 0
    assert not [p for p in work.iterdir() if p.name.startswith(".")]

    rows = [r for r in records(work) if r["kind"] == "train"]
    flops = [r["flops_per_second"] / r["images_per_second"] for r in rows if r["step"] != 2]
    each = model_flops(arg)
    assert flops == pytest.approx([each] * 2, rel=1e-6)
    result = files.read_json(work / "result.json")
    assert result["flops_per_second"] == pytest.approx(each * result["images_per_second"], rel=0.1)

    began = [row for row in wandb.told if row[0] == "init"]
    assert len(began) == 2 and began[0] == began[1]
    assert [row[1] for row in wandb.told if row[0] == "finish"] == [1, 0]
    steps = [row[1] for row in wandb.told if row[0] == "log"]
    assert steps == [2, 4, 6, 6]  # the last one is the evaluation
    capsys.readouterr()
    assert start(work, *watched, arg=arg) == 0
    assert len([row for row in wandb.told if row[0] == "init"]) == 2


def model_flops(arg):
    """FLOPs of a training step, an image, as a plan has them."""
    config = read_config(TINY, arg)
    return plan.run(config)["flops"] / config.input.batch_size


@pytest.mark.slow
def test_no_checkpoints_but_the_last(tmp_path, monkeypatch):
    work, reference = tmp_path / "run", tmp_path / "reference"
    options = ("--config.save_every=0",)
    assert start(reference, *options, arg="method=linear") == 0
    assert [p.name for p in (reference / "checkpoints").iterdir()] == ["12"]
    with monkeypatch.context() as patch:
        stop_at(patch, 5, terminate)
        assert start(work, *options, arg="method=linear") == 143
    assert start(work, *options, arg="method=linear") == 0
    assert adapter(work) == adapter(reference)


@pytest.fixture
def folder(tmp_path):
    """Sixteen small images of two classes for each split."""
    from PIL import Image

    rng = np.random.default_rng(8)
    for split in ("train", "test"):
        for name in ("left", "right"):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for number in range(16):
                pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number:02}.png")
    return tmp_path / "images"


def source_order(folder):
    from dynadapt.data import folder as source

    rows = source.source("train", path=str(folder))
    return [Path(rows[i]["name"]) for i in range(len(rows))]


@pytest.mark.parametrize("place", [0, 9])
def test_a_broken_image_is_named(place, folder, tmp_path, capsys):
    broken = source_order(folder)[place]
    broken.write_bytes(broken.read_bytes()[:50])
    arg = f"data=folder,path={folder},method=linear,steps=4"
    assert start(tmp_path / "run", arg=arg) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("dynadapt: ") and str(broken) in err


@pytest.mark.parametrize("place", [0, 9])
def test_broken_images_are_skipped_and_counted(place, folder, tmp_path, capsys):
    broken = source_order(folder)[place]
    broken.write_bytes(broken.read_bytes()[:50])
    unseen = sorted((folder / "test" / "left").iterdir())[3]
    unseen.write_bytes(b"")
    arg = f"data=folder,path={folder},method=linear,steps=6"
    work = tmp_path / "run"
    assert start(work, "--config.input.on_error=skip", arg=arg) == 0
    result = files.read_json(work / "result.json")
    assert result["skipped_images"] == 2
    assert result["examples"] == 31
    assert len(predictions(work).splitlines()) == 32


def test_no_image_of_a_split_can_be_read(folder, tmp_path, capsys):
    for image in (folder / "test").rglob("*.png"):
        image.write_bytes(b"")
    arg = f"data=folder,path={folder},method=linear,steps=6"
    work = tmp_path / "run"
    assert start(work, "--config.input.on_error=skip", arg=arg) == 2
    assert "test" in capsys.readouterr().err and not work.exists()


def plant_nan(monkeypatch, step):
    """Makes the gradient of one step infinite, as an overflow would."""
    real = inputs.place
    count = [0]

    def place(batch, mesh):
        placed = real(batch, mesh)
        count[0] += 1
        if count[0] == step:
            placed["mask"] = placed["mask"] * np.float32("inf")
        return placed

    monkeypatch.setattr(inputs, "place", place)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_a_bad_step_is_skipped_and_told(every, tmp_path, monkeypatch, capsys):
    """Also where the run is stopped between the step and the next record."""
    options = ("--config.save_every=7", f"--config.log.every={every}")
    arg = "method=linear,steps=14"
    reference, work = tmp_path / "reference", tmp_path / "run"
    for folder, more in ((reference, ()), (work, (terminate,))):
        with monkeypatch.context() as patch:
            plant_nan(patch, 6)
            for how in more:
                stop_at(patch, 8, how)
            assert start(folder, *options, arg=arg) == (143 if more else 0)
    assert start(work, *options, arg=arg) == 0
    said = [x for x in capsys.readouterr().err.splitlines() if "skipped" in x]
    assert len(said) == 2 and said[0] == said[1] and "step 6" in said[0] and "1 of 5" in said[0]
    numbers = json.loads(said[0][said[0].index("[") : said[0].index("]") + 1])
    assert numbers == batch_numbers(6)
    counted = [r.get("bad_steps", 0) for r in records(reference) if r["kind"] == "train"]
    assert sum(counted) == 1 and len(counted) == -(-14 // every)
    assert adapter(work) == adapter(reference)
    assert_same_records(work, reference)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["lr=3e38", "lr=1e18"])
def test_nothing_that_is_not_finite_is_a_result(given, tmp_path, capsys):
    """The very last update, and values that are finite but of which the loss is not."""
    for steps in (1, 12):
        work = tmp_path / str(steps)
        options = (f"--config.optim.{given}", "--config.optim.warmup=0.0")
        assert start(work, *options, arg=f"method=full,steps={steps}") == 2
        assert "not finite" in capsys.readouterr().err.splitlines()[-1]
        assert not (work / "adapter").exists() and not (work / "result.json").exists()
        assert "NaN" not in (work / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_bad_steps_end_a_run(every, tmp_path, monkeypatch, capsys):
    options = (
        "--config.save_every=4",
        f"--config.log.every={every}",
        "--config.optim.bad_steps=1",
    )
    arg = "method=linear,steps=14"
    reference, work = tmp_path / "reference", tmp_path / "run"
    assert start(reference, *options, arg=arg) == 0
    with monkeypatch.context() as patch:
        plant_nan(patch, 6)
        capsys.readouterr()
        assert start(work, *options, arg=arg) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "step 6" in err and "checkpoint" in err
    numbers = json.loads(err[err.index("[") : err.index("]") + 1])
    assert numbers == batch_numbers(6)
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["4"]
    assert not (work / "adapter").exists()
    assert start(work, *options, arg=arg) == 0
    assert adapter(work) == adapter(reference)
    assert_same_records(work, reference)


def batch_numbers(step):
    """Examples of the step's batch, counted from 1."""
    config = read_config(TINY, "")
    stream = inputs.train_batches(config, inputs.open_split(config, "train"))
    return [next(stream)["index"].tolist() for _ in range(step)][-1]


@pytest.mark.slow
def test_compared_methods_share_a_table(tmp_path, capsys):
    work = tmp_path / "all"
    assert start(work, "--methods=linear,bitfit", arg="steps=3") == 0
    out = capsys.readouterr().out
    assert "linear" in out and "bitfit" in out
    for name in ("linear", "bitfit"):
        assert (work / name / "result.json").exists()
    capsys.readouterr()
    assert start(work, "--json", "--methods=linear,bitfit", arg="steps=3") == 0
    assert [r["method"] for r in json.loads(capsys.readouterr().out)] == ["linear", "bitfit"]


def test_json_is_one_document(tmp_path, capsys):
    assert start(tmp_path / "run", "--json", arg="method=linear,steps=3") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == files.read_json(tmp_path / "run" / "result.json")
    assert "step 3/3" in err


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_any_moment(kills, tmp_path):
    """Each kill -9 comes at a random moment; the last start ends as if nothing had happened."""
    steps = 60 * kills
    config = [f"--config={TINY}:steps={steps},method=lora", *KILLED]

    def command(work):
        return [sys.executable, "-m", "dynadapt", "train", *config, f"--workdir={work}"]

    def quiet(work):
        return subprocess.Popen(
            command(work), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    reference, work = tmp_path / "reference", tmp_path / "run"
    begun = time.monotonic()
    process = quiet(reference)
    first_record = None
    while process.poll() is None:
        time.sleep(0.02)
        if first_record is None and (reference / "checkpoints" / "5").exists():
            first_record = time.monotonic() - begun
    assert process.returncode == 0
    span = time.monotonic() - begun - first_record
    rng, seen = random.Random(17), []
    for _ in range(kills):
        process = quiet(work)
        before = progress(work)
        while process.poll() is None and progress(work) == before:
            time.sleep(0.01)  # until this start has saved something: from here on it trains
        time.sleep(rng.uniform(0, span / (1.2 * kills)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(progress(work))
        for line in (work / "metrics.jsonl").read_text().splitlines()[:-1]:
            json.loads(line)
    assert len(set(seen)) > kills // 2 and max(seen) < steps, (
        f"the kills did not fall into training: {seen}"
    )
    done = subprocess.run(command(work), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert adapter(work) == adapter(reference)
    assert predictions(work) == predictions(reference)
    assert_same_records(work, reference)


KILLED = (
    "--config.save_every=5",
    "--config.eval_every=15",
    "--config.log.every=1",
    "--config.optim.ema=0.9",
)


def progress(work):
    """The newest checkpoint's number, 0 where there is none."""
    steps = [int(p.name) for p in (work / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def test_started_checks_come_before_the_folder(tmp_path):
    config = read_config(TINY, "")
    assert workdir.result(config, tmp_path / "run") is None
    workdir.check(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert checkpoint.MANIFEST == "manifest.json"
