"""Evaluation: exact for any batch size, and in a fresh process from the adapter's folder alone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dynadapt import evaluate, files, inputs, model, sharding
from dynadapt.errors import TrainingError
from dynadapt.main import main
from dynadapt.runs import product

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).with_name("configs_tiny.py"))
ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("--config.input.eval_split=test", "--config.optim.ema=0.5")
COLUMNS = ["file", "label", "prediction", "probability", "top5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that is evaluated on every test image."""
    work = tmp_path_factory.mktemp("evaluate") / "run"
    assert main(["train", f"--config={TINY}:steps=30", *OPTIONS, f"--workdir={work}"]) == 0
    return work


def read_rows(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_rows(got, want):
    assert list(got[0]) == list(want[0]) == COLUMNS
    names = [f"test[{i}]" for i in range(797)]
    assert [r["file"] for r in got] == [r["file"] for r in want] == names
    for name in ("label", "prediction"):
        assert [r[name] for r in got] == [r[name] for r in want]
    probabilities = [[float(r["probability"]) for r in rows] for rows in (got, want)]
    np.testing.assert_allclose(*probabilities, atol=2e-6)  # written with six digits


@pytest.mark.slow
def test_a_fresh_process_with_the_adapter_alone(made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "elsewhere" / "adapter")
    out = tmp_path / "records"
    command = [
        *(sys.executable, "-m", "dynadapt", "eval", "--json"),
        *(f"--workdir={tmp_path / 'elsewhere'}", f"--out={out}"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "metrics.json",
        "pictures.png",
        "predictions.csv",
    ]
    assert_same_rows(read_rows(out), read_rows(made / "predictions"))
    found, result = json.loads(done.stdout), files.read_json(made / "result.json")
    for name in ("top1", "top5", "mean_per_class", "examples", "method"):
        assert found[name] == result[name]
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert not [p for p in (tmp_path / "elsewhere").rglob("*") if p.parent.name != "adapter"][1:]


def answers(trained, size):
    """Metrics of an adapter with this batch size, and what is recorded of each example."""
    config, task, parts = trained.config, trained.task, trained.parts
    config.input.eval_batch_size = size
    mesh = sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1)))
    split = inputs.open_split(config, "eval")
    step = evaluate.make_step(parts.graph, task, config)
    kept = {"train": parts.train, "stats": parts.stats}
    found = {"index": [], "label": [], "prediction": [], "probability": []}

    def record(answer, row):
        found["index"].append(int(row["index"]))
        found["label"].append(int(row["label"]))
        found["prediction"].append(int(answer["classes"][0]))
        found["probability"].append(float(answer["probabilities"][0]))

    batches = inputs.eval_batches(config, split, mesh)
    values = evaluate.evaluate(step, task, kept, parts.frozen, batches, mesh, record)
    return values, {name: np.array(x) for name, x in found.items()}


@pytest.mark.slow
def test_every_batch_size_gives_the_same(made):
    trained = product.load(made / "adapter")
    want, rows = answers(trained, 100)
    assert want["examples"] == 797
    for size in (1, 7, 64):
        got, others = answers(trained, size)
        assert got == pytest.approx(want, rel=1e-5), size
        for name in ("top1", "top5", "mean_per_class", "examples"):
            assert got[name] == want[name], (size, name)
        np.testing.assert_array_equal(others["index"], rows["index"])
        np.testing.assert_array_equal(others["prediction"], rows["prediction"])
        np.testing.assert_allclose(others["probability"], rows["probability"], atol=1e-6)
    np.testing.assert_array_equal(rows["index"], np.arange(797))
    assert want["top1"] == pytest.approx(100 * np.mean(rows["prediction"] == rows["label"]))


def test_rows_are_ordered_and_padding_is_left_out():
    """Two processes of two batches each: gathered one after another, the last rows padded."""
    index = np.array([0, 2, 4, -1, 1, 3, 5, -1])
    mask = (index >= 0).astype(np.float32)
    mask[2] = 0  # an example that was skipped
    rows = evaluate.in_order({"x": 10 * index, "y": index[:, None]}, index, mask)
    np.testing.assert_array_equal(rows["x"], [0, 10, 20, 30, 50])
    np.testing.assert_array_equal(rows["y"], [[0], [1], [2], [3], [5]])


def test_judged_rows_and_records_see_what_is_stored():
    """The rows of the host take the place of the device's; nothing stored is held any longer."""

    class Judge:
        stored = ("objects",)

        def judge(self, answer, example):
            return {"found": np.array([answer["x"], len(example["stored"]["objects"])])}

        def value(self, rows):
            return {"sum": int(rows["found"].sum()), "each": {"rows": rows["found"].tolist()}}

    def step(kept, frozen, batch):
        there = jnp.ones_like(batch["index"], bool)
        blank = jnp.zeros((len(batch["index"]), 2), jnp.int32)
        return {"found": blank, model.FINITE: there}, {"x": batch["index"] + 5}

    index = np.array([[0, 1], [2, -1]], np.int32)
    batches = [{"index": i, "mask": (i >= 0).astype(np.float32)} for i in index]
    about = {i: {"name": str(i), "stored": {"objects": [0] * i}} for i in range(3)}
    seen = []

    def record(answer, row):
        known = about.pop(int(row["index"])) if row["index"] else about[0]
        seen.append((int(answer["x"]), known["name"], len(known["stored"]["objects"])))

    mesh = sharding.make_mesh()
    found = evaluate.evaluate(step, Judge(), {}, {}, batches, mesh, record, about)
    assert found == {"sum": 21, "each": {"rows": [[5, 0], [6, 1], [7, 2]]}}
    assert seen == [(5, "0", 0), (6, "1", 1), (7, "2", 2)]
    assert about == {0: {"name": "0"}}


@pytest.mark.slow
def test_the_run_left_a_small_file(made):
    result = files.read_json(made / "result.json")
    size = (made / "adapter" / "adapter.safetensors").stat().st_size
    assert size == result["adapter_bytes"] <= result["trained_bytes"] + 8 * 1024


@pytest.mark.slow
def test_the_running_mean_is_what_is_kept(made, tmp_path):
    """Evaluated and stored leaves are the mean; those of a run without it differ."""
    work = tmp_path / "run"
    assert main(["train", f"--config={TINY}:steps=30", OPTIONS[0], f"--workdir={work}"]) == 0
    a = files.read_tensors(made / "adapter" / "adapter.safetensors")
    b = files.read_tensors(work / "adapter" / "adapter.safetensors")
    assert set(a) == set(b)
    assert any(np.abs(a[k] - b[k]).max() > 1e-6 for k in a)


def test_eval_out_into_no_folder(made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "missing" / "records", tmp_path / "file"):
        assert main(["eval", f"--workdir={made}", f"--out={out}"]) == 2
        err = capsys.readouterr().err
        assert str(out) in err and err.count("\n") == 1


def test_features_that_are_not_finite_are_refused():
    """Whatever a metric makes of them."""

    class Counts:
        def value(self, rows):
            return {"examples": len(rows["x"])}

    def step(kept, frozen, batch):
        fine = jnp.array([True, True, False, True])
        return {"x": jnp.ones(4), model.FINITE: fine}, {}

    batch = {"index": np.array([7, 3, 9, 5]), "mask": np.ones(4, np.float32)}
    with pytest.raises(TrainingError, match="features of 1 of 4 examples .* example 3: the model"):
        evaluate.evaluate(step, Counts(), {}, {}, [batch], sharding.make_mesh())
