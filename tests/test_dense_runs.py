"""Segmentation and depth from a config to answers, on scenes of 16 pixels and a random backbone."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dynadapt import adapters, config, evaluate, files, inputs, model, tasks
from dynadapt.commands.config_file import read_config
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.runs import product
from tests import configs_dense, devices
from tests.configs_dense import SIDE

pytestmark = pytest.mark.usefixtures("fast_compiling")

CONFIGS = {task: f"{devices.ROOT}/configs/{task}.py" for task in ("segment", "depth")}
OTHERS = ("depth", "multitask", "detect", "instances")
HEADLINES = {"segment": "miou", "depth": "abs_rel"}


@pytest.fixture(scope="module", params=CONFIGS)
def run(request, tmp_path_factory):
    """A short run of each task: its name and folder."""
    work = tmp_path_factory.mktemp(request.param) / "run"
    spec = f"{configs_dense.__file__}:task={request.param}"
    assert main(["train", f"--config={spec}", f"--workdir={work}"]) == 0
    return request.param, work


@pytest.mark.slow
def test_a_run_leaves_maps_pictures_and_metrics(run):
    name, work = run
    result = files.read_json(work / "result.json")
    assert result["headline"] == HEADLINES[name] and np.isfinite(result[HEADLINES[name]])
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in lines if row["kind"] == "train"]
    assert np.mean(losses[-2:]) < losses[0]
    metrics = files.read_json(work / "predictions" / "metrics.json")
    assert metrics[HEADLINES[name]] == result[HEADLINES[name]] and metrics["examples"] == 200
    maps = sorted((work / "predictions").glob("test*.png"))
    assert len(maps) == 200 and (work / "predictions" / "pictures.png").is_file()
    with Image.open(maps[0]) as image:
        assert image.size == (SIDE, SIDE)
        assert image.mode == "P" if name == "segment" else image.mode.startswith("I")
    if name == "segment":
        assert set(metrics["classes"]) == {"floor", "wall", "ball", "box", "cylinder", "cone"}
    assert main(["verify", f"--workdir={work}"]) == 0


@pytest.mark.slow
def test_metrics_do_not_depend_on_batches_devices_and_processes(run, monkeypatch):
    name, work = run

    def evaluated(argv, **how):
        done = subprocess.run(argv, capture_output=True, text=True, cwd=devices.ROOT, **how)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    command = [sys.executable, "-m", "dynadapt", "eval", f"--workdir={work}", "--json"]
    if name == "depth":
        found = {"eight devices": evaluated(command, env=devices.eight())}
    else:
        codes, outs, errors = devices.finish(devices.several([command] * 2))
        assert codes == [0, 0], errors
        found = {"two processes": json.loads(next(out for out in outs if out.strip()))}
    real = product.load
    for size in (7, 50):

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
def test_new_photographs_of_any_size_get_maps_of_their_size(run, tmp_path):
    name, work = run
    sizes = {"wide": (40, 90), "high": (75, 31), "small": (5, 7)}
    rng = np.random.default_rng(0)
    for stem, (h, w) in sizes.items():
        pixels = rng.integers(255, size=(h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{stem}.png")
    out = tmp_path / "answers"
    given = [f"--workdir={work}", f"--images={tmp_path}", f"--out={out}"]
    assert main(["predict", *given, "--pictures"]) == 0
    for stem, (h, w) in sizes.items():
        with Image.open(out / f"{stem}.png") as image:
            assert image.size == (w, h), stem
        assert (out / "pictures" / f"{stem}.png").is_file()
    assert len((out / "predictions.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "task",
    # the same network, a head for each task, and two whose heads have no batch norm
    ["segment", *(pytest.param(t, marks=pytest.mark.exhaustive) for t in OTHERS)],
)
@pytest.mark.parametrize("method", adapters.names())
def test_every_method_runs_on_the_task_or_says_why_not(task, method):
    c = read_config(f"{devices.ROOT}/configs/{task}.py", f"method={method},data=blank")
    c.backbone.weights = ""
    c.data.size = (64, 64)
    config.check(c)
    c = config.resolve(c)
    split = inputs.open_split(c, "train")
    made = tasks.from_config(c.task, split.source.info)
    try:
        network = model.abstract(c, made, split.spec)
    except ConfigError as error:
        assert method == "dapt", error
        return
    parts = model.split(network, c)
    normed = (*CONFIGS, "multitask")
    assert bool(nnx.to_pure_dict(parts.stats)) == (task in normed)  # of batch norms


@pytest.mark.slow
def test_figures_and_diagnosis_of_maps(run, tmp_path, capsys):
    name, work = run
    assert main(["figures", f"--workdir={work}", f"--out={tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [figure["name"] for figure in found["figures"]] == ["kernels", "spread"]
    assert {"tsne", "gradcam"} <= set(found["left_out"])
    assert main(["diagnose", f"--workdir={work}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["headline"] == HEADLINES[name] and 0 <= result["changed"] <= 100
    assert result["score"] == pytest.approx(
        files.read_json(work / "result.json")[HEADLINES[name]], rel=1e-4
    )


@pytest.mark.parametrize(
    ("task", "arg", "split"),
    [("segment", "recipe=ade20k", "val"), ("segment", "data=voc_segmentation", "val"),
     ("segment", "recipe=ade20k,data=blank", "test"), ("depth", "recipe=nyu", "test"),
     ("detect", "recipe=coco", "val2017"), ("detect", "path=/data,data=voc", "val"),
     ("instances", "recipe=coco", "val2017"), ("instances", "path=/data", "test")],
)  # fmt: skip
def test_recipes_evaluate_on_a_split_that_is_there(task, arg, split):
    c = read_config(f"{devices.ROOT}/configs/{task}.py", arg)
    assert c.input.eval_split == split
    config.check(c)


@pytest.mark.slow
def test_what_looks_several_times_is_trained_evaluated_and_diagnosed(tmp_path, capsys):
    """By windows, in the stored pixels."""
    spec = f"{configs_dense.__file__}:task=segment"
    given = ("--config.task.window=8", "--config.task.original=True", "--config.optim.steps=3")
    assert main(["train", f"--config={spec}", f"--workdir={tmp_path}/run", *given]) == 0
    capsys.readouterr()
    assert main(["diagnose", f"--workdir={tmp_path}/run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    evaluated = files.read_json(tmp_path / "run" / "result.json")["miou"]
    assert result["made"] and result["score"] == pytest.approx(evaluated, rel=1e-4)
