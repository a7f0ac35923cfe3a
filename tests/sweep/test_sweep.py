"""Whole sweeps on stand-ins for VTAB-1K: what they leave, and how they are stopped and go on."""

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dynadapt import files, model
from dynadapt.backbones import vit
from dynadapt.data import offline, vtab
from dynadapt.main import main
from dynadapt.sweep import protocol, results, suites, sweep
from dynadapt.sweep.population import Population
from tests.tiny_sweep import TINY

pytestmark = pytest.mark.usefixtures("fast_compiling")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "tests" / "configs_sweep.py")
FEW = ("eurosat", "dmlab", "kitti", "svhn")  # of one bucket


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.VARIANTS, "vit_tiny", TINY)
        yield


@pytest.fixture(scope="module")
def few(fabricate, tmp_path_factory):
    """TFDS's folder with four tasks."""
    folder = tmp_path_factory.mktemp("few")
    fabricate.tfds(folder, FEW)
    return folder


def options(work, path, *more, arg="lrs=2", tasks="kitti,svhn", methods="lora", seeds="0,1"):
    return [
        *("vtab", "run", f"--config={CONFIG}:{arg}", f"--workdir={work}"),
        *([f"--path={path}"] if path else []),
        *(f"--tasks={tasks}", f"--methods={methods}", f"--seeds={seeds}", "--population=2"),
        *("--backbone=vit_tiny", "--weights=random", *more),
    ]


def start(*args, **kwargs):
    return main(options(*args, **kwargs))


def lines(work):
    return results.read(work)


def same(work, reference):
    """Whether two sweeps came to the same, but for the time they took."""
    kept = [[{k: v for k, v in x.items() if k != "seconds"} for x in lines(w)]
            for w in (work, reference)]  # fmt: skip
    return kept[0] == kept[1]


def one_error(capsys):
    """The one sentence that a command ended with."""
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dynadapt: ")]
    assert len(said) == 1
    return said[0]


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """A sweep that nothing interrupts: two tasks, a grid of two, two seeds."""
    work = tmp_path_factory.mktemp("whole") / "sweep"
    assert start(work, few) == 0
    return work


# What it does.


@pytest.mark.slow
def test_what_a_sweep_leaves(whole):
    found = lines(whole)
    assert [line["cell"] for line in found] == sorted(line["cell"] for line in found)
    stages = {(x["task"], x["stage"]): [] for x in found}
    for x in found:
        stages[x["task"], x["stage"]].append(x)
    assert set(stages) == {(t, s) for t in ("kitti", "svhn") for s in ("tune", "final")}
    for (task, stage), own in stages.items():
        assert len(own) == 2
        for x in own:
            classes, tested = vtab.TASKS[task].classes, 200 if stage == "tune" else 60
            assert (x["classes"], x["examples"], x["steps"]) == (classes, tested, 4)
            assert x["split"] == ("val200" if stage == "tune" else "test")
            assert x["trained"] == 2 * 2 * 2 * (32 * 2)  # rank 2 in q and v of two blocks
            assert x["trained_with_head"] == x["trained"] + 33 * classes
            assert x["diverged"] is None and 0 <= x["score"] <= 100
    for task in ("kitti", "svhn"):
        tuned, final = stages[task, "tune"], stages[task, "final"]
        assert {x["hyper"]["lr"] for x in tuned} == {1e-2, 3e-2}
        best = max(tuned, key=lambda x: (x["score"], x["hyper"]["lr"] == 1e-2))
        assert [x["hyper"] for x in final] == [best["hyper"]] * 2
        assert sorted(x["seed"] for x in final) == [0, 1]
        assert final[0]["loss"] != final[1]["loss"]
    assert results.final(found) and not list((whole / "claims").iterdir())
    assert not list((whole / "running").iterdir())


def test_a_second_start_does_nothing(whole, few, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    monkeypatch.setattr(Population, "step", None)
    monkeypatch.setattr(sweep, "TaskData", None)
    monkeypatch.setattr(model, "loaded_backbone", None)
    assert start(whole, few, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cells"], answer["final"], answer["programs"]) == (8, 4, {})
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_more_seeds_are_more_cells(whole, few, tmp_path):
    work = tmp_path / "sweep"
    assert start(work, few, tasks="kitti", seeds="1") == 0
    first = {x["cell"]: x for x in lines(work)}
    assert len(first) == 3
    assert start(work, few, seeds="0,1") == 0
    assert {x["cell"]: x for x in lines(work)}.items() >= first.items()
    assert same(work, whole)


class Touched(Exception):
    pass


class Poisoned:
    """A test split that nobody may look at."""

    def __getattr__(self, name):
        raise Touched(name)

    __len__ = __getitem__ = __iter__ = __getattr__


@pytest.mark.parametrize("select", ["val", "first"])
@pytest.mark.slow
def test_no_test_label_before_the_last_evaluation(select, few, tmp_path, monkeypatch):
    """All of the tuning stage, and the training of the last one, are over by then."""
    real, spans = suites.Vtab.read, []

    def read(self, split, *rest):
        return Poisoned() if split == "test" else real(self, split, *rest)

    def step(self, state, data, rows, keys, hyper, own=Population.step):
        spans.append((int(rows.min()), int(rows.max())))
        return own(self, state, data, rows, keys, hyper)

    monkeypatch.setattr(suites.Vtab, "read", read)
    monkeypatch.setattr(Population, "step", step)
    for task in FEW:
        spans.clear()
        work = tmp_path / task
        with pytest.raises(Touched):
            start(work, few, tasks=task, arg=f"lrs=2,select={select}")
        tuned = list((work / "cells").iterdir())
        assert len(tuned) == (2 if select == "val" else 0)
        for file in tuned:
            assert files.read_json(file)["stage"] == "tune"
        steps = 8 if select == "val" else 4
        assert len(spans) == steps
        # What chooses is trained on the first 800 examples alone, the last run on all.
        assert all(high < 800 for _, high in spans[:-4])


def test_the_choice_is_made_on_the_last_200(few):
    found = sweep.TaskData(
        _sweep(few), "kitti", protocol.training_config(_config(), "lora", "vtab", "vit_tiny", "")
    )
    images, labels = (found.train[name] for name in ("image", "label"))
    both = suites.find("vtab").read("val200", "kitti", "tfds", str(few))
    assert len(images) == len(labels) == 1000
    rows = list(found.batches("val200"))
    index = np.concatenate([b["index"][b["mask"] > 0] for b in rows])
    label = np.concatenate([b["label"][b["mask"] > 0] for b in rows])
    assert index.tolist() == list(range(200))
    assert label.tolist() == [both[i]["label"] for i in range(200)]


def _config(arg="lrs=2"):
    from dynadapt.commands.config_file import read_config

    return read_config(CONFIG, arg)


def _sweep(path, **changes):
    given = dict(config=_config(), suite="vtab", form="tfds", path=str(path), tasks=["kitti"])
    given |= dict(methods=["lora"], seeds=[0], backbone="vit_tiny", weights="", population=2)
    return sweep.Sweep(**{**given, **changes})


def test_the_last_batch_is_padded(few):
    config = protocol.training_config(_config(), "lora", "vtab", "vit_tiny", "")
    config.input.eval_batch_size = 64
    found = sweep.TaskData(_sweep(few), "kitti", config)
    rows = list(found.batches("val200"))
    assert [len(b["image"]) for b in rows] == [64] * 4
    assert [int(b["mask"].sum()) for b in rows] == [64, 64, 64, 8]
    assert rows[-1]["index"][8:].tolist() == [-1] * 56


@pytest.mark.parametrize(
    ("classes", "size"),
    [(2, 16), (16, 16), (17, 64), (100, 128), (102, 128), (397, 512), (513, 1024)],
)
def test_buckets(classes, size):
    assert sweep.bucket(classes) == size


@pytest.mark.slow
def test_two_programs_for_a_bucket(few, tmp_path, monkeypatch, capsys):
    """4 tasks, 3 rates, 2 scales, 2 seeds: 2 programs, and nothing is compiled after the first."""
    compiled, after = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    real = sweep.Runner.run

    def run(self, group):
        before = len(compiled)
        real(self, group)
        after.append((group[0]["task"], group[0]["stage"], len(compiled) - before))

    monkeypatch.setattr(sweep.Runner, "run", run)
    work = tmp_path / "sweep"
    more = dict(arg="lrs=3,scales=2", tasks=",".join(FEW))
    assert start(work, few, "--json", methods="lora,ssf", **more) == 0
    answer = json.loads(capsys.readouterr().out)
    once = {"train": 1, "evaluate": 1}
    assert answer["programs"] == {"lora, 16 classes": once, "ssf, 16 classes": once}
    assert answer["cells"] == 4 * (6 + 2) + 4 * (3 + 2)
    first = after[0][0]
    assert {t for t, _, _ in after} == set(FEW)
    assert [n for t, _, n in after if t != first] == [0] * sum(t != first for t, _, _ in after)
    assert sum(n for _, _, n in after) > 0


# Stopped, and begun again.


def stop_at(monkeypatch, number, how):
    """Calls `how()` in the step of that number of this process."""
    real, count = Population.step, [0]

    def step(self, *rest):
        count[0] += 1
        if count[0] == number:
            how()
        return real(self, *rest)

    monkeypatch.setattr(Population, "step", step)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [1, 6, 15])
@pytest.mark.slow
def test_asked_to_stop_it_goes_on_inside_a_cell(number, whole, few, tmp_path, monkeypatch, capsys):
    work = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        stop_at(patch, number, terminate)
        assert start(work, few) == 143
    assert "stopped and saved; go on with: " in capsys.readouterr().err
    assert len(list((work / "cells").iterdir())) == 2 * (number // 4)
    assert not list((work / "claims").iterdir())
    assert len(list((work / "running").iterdir())) == 1
    assert start(work, few) == 0
    assert f"going on from step {number % 4}" in capsys.readouterr().err
    assert same(work, whole)
    assert not list((work / "running").iterdir())


@pytest.mark.slow
def test_an_error_loses_nothing_but_time(whole, few, tmp_path, monkeypatch):
    def fail():
        raise MemoryError("planted")

    work = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        stop_at(patch, 10, fail)
        with pytest.raises(MemoryError):
            start(work, few)
    assert len(list((work / "cells").iterdir())) == 4
    assert not list((work / "claims").iterdir())
    assert start(work, few) == 0
    assert same(work, whole)


@pytest.mark.slow
def test_a_full_disk(whole, few, tmp_path, monkeypatch, capsys):
    """The disk is full when the second group of cells is written, and has room again later."""
    work, real, count = tmp_path / "sweep", Path.write_text, [0]

    def write(path, text, *args, **kwargs):
        count[0] += path.parent.name == "cells"
        if path.parent.name == "cells" and count[0] == 4:
            real(path, text[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, text, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write)
        assert start(work, few) == 2
    assert "No space left on device" in one_error(capsys)
    assert len(lines(work)) == 2 and not list((work / "claims").iterdir())
    assert start(work, few) == 0
    assert same(work, whole)


# What is refused.


def copied(whole, work):
    work.mkdir()
    for name in ("sweep.json", "results.jsonl"):
        (work / name).write_bytes((whole / name).read_bytes())
    for folder in ("cells", "methods"):
        (work / folder).mkdir()
        for file in (whole / folder).iterdir():
            (work / folder / file.name).write_bytes(file.read_bytes())
    return work


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--config.protocol.normalise=unit"], "another protocol digest"),
        (["--config.compute.dtype=bfloat16"], "another protocol digest"),
        (["--config.protocol.name=noah"], "another protocol (vtab, now noah)"),
        (["--backbone=vit_ti16"], "another backbone (vit_tiny, now vit_ti16)"),
        (["--config.settings.lora.rank=3"], "results of lora with other settings"),
        (["--config.protocol.steps=5"], "another protocol digest"),
    ],
)
def test_the_folder_of_another_sweep(more, part, whole, few, capsys):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert start(whole, few, *more) == 2
    said = one_error(capsys)
    assert part in said and said.endswith("give another --workdir")
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


def test_another_grid_is_another_sweep(whole, few, capsys):
    assert start(whole, few, arg="lrs=3") == 2
    assert "results of lora with other settings or another grid" in one_error(capsys)


def test_data_that_changed(whole, few, fabricate, tmp_path, capsys):
    """The tasks may all be done, or some of their cells may be due."""
    other = tmp_path / "other"
    sizes = {"kitti": {"train": 810, "validation": 210, "test": 61}}
    fabricate.tfds(other, ["kitti"], sizes)
    work = copied(whole, tmp_path / "sweep")
    for seeds in ("0,1", "0,1,2"):
        assert start(work, other, tasks="kitti", seeds=seeds) == 2
        said = one_error(capsys)
        assert "the data of kitti are not those of its results" in said
    assert (work / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert not list((work / "claims").iterdir())


@pytest.mark.parametrize("split", ["train800", "val200"])
def test_labels_out_of_range(split, fabricate, tmp_path, capsys):
    fabricate.community(tmp_path, ["kitti"])
    file = tmp_path / "vtab-1k" / "kitti" / f"{split}.txt"
    rows = file.read_text().splitlines()
    rows[7] = f"{rows[7].split()[0]} 4"  # there are 4 classes
    file.write_text("\n".join(rows) + "\n")
    work = tmp_path / "sweep"
    assert start(work, tmp_path, "--form=folder", tasks="kitti") == 2
    said = one_error(capsys)
    assert " 4" in said and split in said
    assert not work.exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (dict(tasks="kity"), "unknown task of vtab 'kity'; did you mean 'kitti'?"),
        (dict(methods="lorra"), "unknown method 'lorra'; did you mean 'lora'"),
        (dict(methods=""), "--methods= is empty"),
        (dict(seeds="one"), "seeds must be whole numbers"),
        (dict(tasks="dtd"), "dtd/3.0.1 is not in"),
        (dict(arg="lrs=0"), "lr in the grid of lora/svhn must be a row of numbers"),
        (dict(arg="select='vall'"), "unknown protocol.select"),
    ],
)
def test_what_cannot_be_run(more, part, few, tmp_path, capsys):
    work = tmp_path / "sweep"
    assert start(work, few, **more) == 2
    said = one_error(capsys)
    assert part in said and len(said) < 400
    assert not work.exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--suite=vtb"], "unknown suite 'vtb'; did you mean 'vtab'?"),
        (["--form=folders"], "unknown form of vtab 'folders'; did you mean 'folder'?"),
        (["--form=folder"], "there is no folder svhn of VTAB-1K in"),
        (["--backbone=vit_tny"], "unknown backbone 'vit_tny'; did you mean 'vit_tiny'"),
        (["--weights=absent"], "absent"),
        (["--population=0"], "--population must be from 1 to 1000000, not 0"),
        (["--config.protocol.pol=mean"], "unknown config field 'protocol.pol'"),
        (["--config.protocol.normalise=imagnet"], "did you mean 'imagenet'"),
    ],
)
def test_options_that_cannot_be_run(more, part, few, tmp_path, capsys):
    work = tmp_path / "sweep"
    assert start(work, few, *more) == 2
    assert part in one_error(capsys)
    assert not work.exists()


def test_a_set_that_is_not_there_says_what_to_do(tmp_path, capsys):
    assert start(tmp_path / "sweep", tmp_path / "empty", tasks="dtd") == 2
    assert "dynadapt data prepare vtab --tasks=dtd" in one_error(capsys)


# Long ones.


def command(*args, **kwargs):
    return [sys.executable, str(ROOT / "tests" / "tiny_sweep.py"), *options(*args, **kwargs)]


def begin(env=(), *args, **kwargs):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    env = {**os.environ, "PYTHONPATH": path, **dict(env)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command(*args, **kwargs), env=env, cwd=ROOT, **pipes)


def trail(work):
    """What changes when a sweep gets on."""
    if not (work / "cells").exists():
        return None
    found = [p for name in ("cells", "running") for p in (work / name).glob("*")]
    return sorted((p.name, p.stat().st_mtime_ns) for p in found if p.exists())


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_any_moment(kills, few, tmp_path):
    """Each kill -9 comes at a random moment; in the end it is as if nothing had happened."""
    reference, work = tmp_path / "reference", tmp_path / "work"
    more = dict(arg="lrs=2,steps=30,save=0.0")
    process = begin((), reference, few, **more)
    while process.poll() is None and trail(reference) in (None, []):
        time.sleep(0.01)
    begun = time.monotonic()
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    span = time.monotonic() - begun
    rng, counts = random.Random(23), []
    for _ in range(kills):
        process, before = begin((), work, few, **more), trail(work)
        while process.poll() is None and trail(work) in (before, None, []):
            time.sleep(0.005)  # until this start has got on: from here on it trains
        time.sleep(rng.uniform(0, span / (0.9 * kills)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(len(list((work / "cells").glob("[!.]*"))))
        if (work / results.FILE).exists():
            assert len(lines(work)) <= counts[-1]  # and each of them is whole
    assert counts[0] < 8 and counts == sorted(counts) and len(set(counts)) > kills // 4, counts
    process = begin((), work, few, **more)
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    assert same(work, reference)
    assert len({x["cell"] for x in lines(work)}) == len(lines(work)) == 8


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("joined", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_two_processes_share_a_folder(joined, few, tmp_path):
    """Each of 24 cells is done once, be the two strangers or the workers of one pod."""
    work, port = tmp_path / "sweep", free_port()
    more = dict(arg="lrs=2,scales=2,save=0.0", tasks=",".join(FEW))
    env = [{"DYNADAPT_DISTRIBUTED": f"localhost:{port},2,{n}"} if joined else {} for n in (0, 1)]
    both = [begin(own, work, few, **more) for own in env]
    errs = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errs
    told = [[x for x in err.splitlines() if ": top1 " in x] for err in errs]
    done = [sum(len(x.split("top1 ")[1].split(" on ")[0].split()) for x in own) for own in told]
    assert sum(done) == 24 and min(done) > 0, done
    found = lines(work)
    assert len({x["cell"] for x in found}) == len(found) == 24
    assert sum(x["stage"] == "final" for x in found) == 8
    assert not list((work / "claims").iterdir()) and not list((work / "running").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("form", [pytest.param("tfds", marks=pytest.mark.exhaustive), "folder"])
def test_all_tasks_from_end_to_end(
    form, request, tmp_path, monkeypatch, capsys, compiled_as_for_users
):
    path, work = request.getfixturevalue(f"vtab_{form}"), tmp_path / "sweep"
    more = dict(arg="steps=60,batch=32", tasks="all", methods="ssf", seeds="0")
    capsys.readouterr()  # what was said while the data were made
    assert start(work, path, f"--form={form}", "--json", **more) == 0
    once = {"train": 1, "evaluate": 1}
    answer = json.loads(capsys.readouterr().out)
    assert answer["programs"] == {f"ssf, {n} classes": once for n in sweep.BUCKETS}
    found = lines(work)
    assert [(x["stage"], x["form"]) for x in found] == [("final", form)] * 19
    by_task = {name: [x for x in found if x["task"] == name] for name in vtab.TASKS}
    assert all(len(own) == 1 for own in by_task.values())
    top1 = {name: np.mean([x["score"] for x in own]) for name, own in by_task.items()}
    chance = {name: 100 / task.classes for name, task in vtab.TASKS.items()}
    assert np.mean(list(top1.values())) > 2 * np.mean(list(chance.values()))
    above = [name for name in top1 if top1[name] > chance[name]]
    assert len(above) >= 17, top1
    assert main(["vtab", "report", f"--workdir={work}"]) == 0
    out = capsys.readouterr().out
    assert "ssf" in out and "mean of 19" in out and "PARTIAL" not in out
    before = (work / results.FILE).read_bytes()
    monkeypatch.setattr(Population, "step", None)
    assert start(work, path, f"--form={form}", **more) == 0
    assert (work / results.FILE).read_bytes() == before


@pytest.mark.slow
def test_the_offline_suite(tmp_path, capsys):
    """A task that comes with scikit-learn, and one that is drawn."""
    work = tmp_path / "sweep"
    more = dict(arg="steps=100,batch=32", tasks="digits,count", methods="ssf")
    assert start(work, "", "--suite=offline", **more) == 0
    found = lines(work)
    assert {x["suite"] for x in found} == {x["form"] for x in found} == {"offline"}
    assert {x["task"]: x["examples"] for x in found} == {
        name: offline.TASKS[name].test for name in ("digits", "count")
    }
    assert {len(x["data_fingerprint"]) for x in found} == {64}
    prints = {(x["task"], x["split_fingerprint"]) for x in found}
    assert len({digest for _, digest in prints} | {x["data_fingerprint"] for x in found}) == 4
    digits = [x["score"] for x in found if x["task"] == "digits"]
    assert np.mean(digits) > 30
    assert main(["vtab", "report", f"--workdir={work}", "--partial"]) == 0
    assert "PARTIAL" in capsys.readouterr().out


def test_weights_must_be_named(tmp_path, capsys):
    given = ["vtab", "run", "--methods=lora", "--suite=offline", f"--workdir={tmp_path / 'x'}"]
    assert main([*given, f"--config={CONFIG}"]) == 2
    assert "--weights=random" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
