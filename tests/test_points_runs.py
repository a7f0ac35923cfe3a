"""Point clouds from a config to answers, on clouds of 40 points and a random narrow backbone."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dynadapt import (
    adapters,
    config,
    evaluate,
    files,
    inputs,
    model,
    optim,
    step,
    tasks,
    tree,
)
from dynadapt.commands.config_file import read_config
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.runs import product
from tests import configs_clouds, devices

pytestmark = pytest.mark.usefixtures("fast_compiling")

CONFIGS = {task: f"{devices.ROOT}/configs/{task}.py" for task in ("points", "parts")}
METRICS = {"points": ("plain", "vote@10"), "parts": ("instance_miou", "class_miou")}
# Of the shapes of a new cloud's file.
NEW = {"many.npy": 90, "few.xyz": 20, "exact.ply": 40}


def spec(task, rest=""):
    return f"{configs_clouds.__file__}:task={task}{rest}"


@pytest.fixture(scope="module", params=CONFIGS)
def run(request, tmp_path_factory):
    """A short run of each task: its name and folder."""
    work = tmp_path_factory.mktemp(request.param) / "run"
    assert main(["train", f"--config={spec(request.param)}", f"--workdir={work}"]) == 0
    return request.param, work


@pytest.mark.slow
def test_a_run_leaves_both_metrics_records_and_pictures(run, capsys):
    name, work = run
    result = files.read_json(work / "result.json")
    assert (result["headline"], *result["beside"]) == METRICS[name]
    assert np.isfinite([result[k] for k in METRICS[name]]).all()
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in lines if row["kind"] == "train"]
    assert np.mean(losses[-3:]) < losses[0]
    metrics = files.read_json(work / "predictions" / "metrics.json")
    assert metrics["examples"] == 60
    table = (work / "predictions" / "predictions.csv").read_text().splitlines()
    assert len(table) == 61
    tables = list((work / "predictions").glob("*.parts.txt"))
    assert len(tables) == (60 if name == "parts" else 0)
    with Image.open(work / "predictions" / "pictures.png") as sheet:
        assert sheet.width > sheet.height / 12
    assert main(["verify", f"--workdir={work}"]) == 0
    capsys.readouterr()
    assert main(["train", f"--config={spec(name)}", f"--workdir={work}"]) == 0  # it is there
    table = capsys.readouterr().out
    assert all(metric in table for metric in METRICS[name])


@pytest.mark.slow
def test_metrics_do_not_depend_on_batches_devices_and_processes(run, monkeypatch):
    name, work = run
    command = [sys.executable, "-m", "dynadapt", "eval", f"--workdir={work}", "--json"]
    if name == "points":
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=devices.ROOT, env=devices.eight()
        )
        assert done.returncode == 0, done.stderr
        found = {"eight devices": json.loads(done.stdout)}
    else:
        codes, outs, errors = devices.finish(devices.several([command] * 2))
        assert codes == [0, 0], errors
        found = {"two processes": json.loads(next(out for out in outs if out.strip()))}
    real = product.load
    for size in (7, 60):

        def load(folder, weights="", size=size):
            one = real(folder, weights)
            one.config.input.eval_batch_size = size
            return one

        monkeypatch.setattr(product, "load", load)
        found[f"batches of {size}"] = evaluate.run(work / "adapter")
    wanted = files.read_json(work / "predictions" / "metrics.json")
    for how, values in found.items():
        for key, value in wanted.items():
            if isinstance(value, float):
                assert values[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (how, key)


@pytest.mark.slow
def test_new_clouds_of_any_size_get_answers(run, tmp_path):
    name, work = run
    given, out = tmp_path / "new", tmp_path / "answers"
    given.mkdir()
    rng = np.random.default_rng(0)
    for file, count in NEW.items():
        points = rng.normal(size=(count, 3)) * 7 + 30  # in metres, far away
        if file.endswith(".npy"):
            np.save(given / file, points)
            continue
        head = ""
        if file.endswith(".ply"):
            sides = "".join(f"property float {axis}\n" for axis in "xyz")
            head = f"ply\nformat ascii 1.0\nelement vertex {count}\n{sides}end_header\n"
        lines = "".join("{:.5f} {:.5f} {:.5f}\n".format(*row) for row in points)
        (given / file).write_text(head + lines)
    (given / "broken.npy").write_bytes(b"nothing")
    (given / "photo.png").write_bytes(b"not asked for")
    argv = ["predict", f"--workdir={work}", f"--images={given}", f"--out={out}", "--pictures"]
    assert main(argv) == 0
    rows = (out / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + len(NEW)
    for file in NEW:
        stem = file.split(".")[0]
        assert (out / "pictures" / f"{stem}.png").is_file()
        if name == "parts":
            table = np.loadtxt(out / f"{stem}.parts.txt")
            assert table.shape == (40, 4) and np.linalg.norm(table[:, :3], axis=1).max() < 1.01
    # A list names them, a text of numbers is a cloud.
    (given / "list.txt").write_text("many.npy\nfew.xyz\n")
    again = tmp_path / "again"
    assert main([*argv[:2], f"--images={given / 'list.txt'}", f"--out={again}"]) == 0
    said = (again / "predictions.csv").read_text().splitlines()
    assert len(said) == 3 and set(said) <= set(rows)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = [
        "--config.optim.steps=8",
        "--config.save_every=3",
        "--config.input.eval_split=test[:9]",
    ]
    argv = ["train", f"--config={spec('points')}", *given]

    def start(work, before=""):
        """In a process of its own: what one has compiled before would tell in the last bits."""
        code = f"{before}from dynadapt.main import main\nraise SystemExit(main({[*argv, work]!r}))"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=devices.ROOT, capture_output=True, text=True
        )

    killed = (
        "import signal\n"
        "from dynadapt import train\n"
        "from tests import stepping\n"
        "kill = stepping.killed_at(6, signal.SIGKILL)\n"
        "train.make_step = stepping.watched(train.make_step, kill)\n"
    )
    for work, before, code in ((whole, "", 0), (cut, killed, -9), (cut, "", 0)):
        done = start(f"--workdir={work}", before)
        assert done.returncode == code, done.stderr
    one, other = (w / "adapter" / "adapter.safetensors" for w in (whole, cut))
    assert one.read_bytes() == other.read_bytes()
    both = [files.read_json(w / "predictions" / "metrics.json") for w in (whole, cut)]
    assert both[0] == both[1]


EIGHT = """
import json, sys
from tests import test_points_runs
print(json.dumps(test_points_runs.losses((8, 1))))
"""


def losses(sizes):
    """The losses of some steps on a mesh."""
    import jax
    from ml_collections import ConfigDict

    from dynadapt import sharding

    c = read_config(configs_clouds.__file__, "task=points")
    c.optim.lr = 1e-3  # at large rates roundings grow from step to step
    config.check(c)
    data, fsdp = sizes
    mesh = sharding.make_mesh(ConfigDict(dict(data=data, fsdp=fsdp)), jax.devices()[: data * fsdp])
    split = inputs.open_split(c, "train")
    task = tasks.from_config(c.task, split.source.info)
    graph, trained, stats, frozen = model.split(model.build(c, task, split.spec), c)
    optimizer = optim.make(c.optim, 12, trained, model.layers(c))
    state = step.initial_state(trained, stats, optimizer, c)
    state = sharding.put_whole(state, sharding.state(state, mesh))
    frozen = sharding.put_whole(frozen, sharding.frozen(frozen, mesh))
    key = jax.random.key(1)
    key = sharding.put_whole(key, sharding.replicated(key, mesh))
    stream, found = inputs.train_batches(c, split), []
    with jax.set_mesh(mesh):
        program = step.make_step(graph, task, optimizer, c)
        for _ in range(5):
            state, logs = program(state, frozen, inputs.place(next(stream), mesh), key)
            found.append(float(logs["loss"]))
    return found


@pytest.mark.slow
def test_eight_devices_equal_one():
    """Augmentations, dropout and batch statistics too."""
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=devices.ROOT, capture_output=True, text=True,
        env=devices.eight(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), losses((1, 1)), rtol=2e-3)


@pytest.mark.slow
def test_figures_and_diagnosis_of_clouds(run, tmp_path, capsys):
    name, work = run
    assert main(["diagnose", f"--workdir={work}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["headline"] == METRICS[name][0]
    wanted = files.read_json(work / "result.json")[METRICS[name][0]]
    assert found["score"] == pytest.approx(wanted, rel=1e-4)
    code = main(["figures", f"--workdir={work}", f"--out={tmp_path}", "--json"])
    said = capsys.readouterr()
    if name == "parts":  # DAPT makes nothing to look at, and the head pools nothing
        assert code == 2 and "the head of parts pools no features" in said.err
        return
    made = json.loads(said.out)
    assert code == 0 and [figure["name"] for figure in made["figures"]] == ["tsne"]
    assert "the run is of point clouds" in made["left_out"]["gradcam"]


LAYERS = 12
DIM = 384
HEAD = 267_535  # of class token and groups, 15 classes


@pytest.mark.parametrize(
    ("recipe", "method", "total"),
    [
        ("scanobjectnn", "dapt", 1_087_771),
        ("scanobjectnn", "adapter_x", 414_448),
        ("modelnet40", "dapt", 1_069_716),
        ("scanobjectnn", "linear", HEAD),
        ("scanobjectnn", "lora", 4 * 8 * DIM * LAYERS + HEAD),
        ("scanobjectnn", "adaptformer", LAYERS * (2 * 32 * DIM + 32 + DIM) + HEAD),
        ("scanobjectnn", "adapter", LAYERS * 2 * (2 * 32 * DIM + 32 + DIM) + HEAD),
        ("scanobjectnn", "vpt", 50 * DIM * LAYERS + HEAD),
        ("scanobjectnn", "bitfit", 39_680 + HEAD),
        ("scanobjectnn", "full", 22_093_327),
    ],
)
def test_counts_of_the_recipes(recipe, method, total):
    c = read_config(CONFIGS["points"], f"recipe={recipe},data=blank,method={method}")
    config.check(c)
    c = config.resolve(c)
    split = inputs.open_split(c, "train")
    task = tasks.from_config(c.task, split.source.info)
    parts = model.split(model.abstract(c, task, split.spec), c)
    count = tree.size(parts.train)
    assert count == total
    assert {"norm1", "norm2"} <= set(nnx.to_pure_dict(parts.stats)["head"])


def test_settings_of_the_two_published_configurations():
    for early, wanted in ((False, (0.2, 0.3)), (True, (0.0, 0.1))):
        c = read_config(CONFIGS["points"], f"recipe=scanobjectnn,early={early}")
        assert (c.adapter.dropout, c.optim.drop_path) == wanted
    c = read_config(CONFIGS["points"], "recipe=modelnet40")
    assert (c.adapter.rank, c.adapter.dropout, c.optim.drop_path) == (72, 0.0, 0.1)
    assert c.task.points == 1024 and not c.task.prompts
    c = read_config(CONFIGS["points"], "path=/data/things")
    assert (c.data.name, c.data.path) == ("cloud_folder", "/data/things")


# They need the patches of an image, or the blocks of one.
REFUSED = ("convpass", "iconformer", "mona", "mtlora", "ssf", "tadformer", "vfm_adapter")


@pytest.mark.parametrize("method", adapters.names())
def test_every_method_runs_on_clouds_or_says_why_not(method):
    c = read_config(configs_clouds.__file__, f"task=points,method={method}")
    config.check(c)
    c = config.resolve(c)
    split = inputs.open_split(c, "train")
    made = tasks.from_config(c.task, split.source.info)
    try:
        network = model.abstract(c, made, split.spec)
    except ConfigError as error:
        assert method in REFUSED, error
        return
    assert method not in REFUSED
    assert nnx.to_pure_dict(model.split(network, c).stats)
