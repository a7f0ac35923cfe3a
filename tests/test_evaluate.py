"""Evaluation: exact for any batch size, and in a fresh process from the adapter's folder alone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dynadapt import adapters, evaluate, files, model, sharding, tree
from dynadapt.commands.config_file import read_config
from dynadapt.errors import CheckpointError
from dynadapt.main import main

TINY = str(Path(__file__).with_name("configs_tiny.py"))
ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("--config.input.eval_split=test", "--config.optim.ema=0.5")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that is evaluated on every test image."""
    work = tmp_path_factory.mktemp("evaluate") / "run"
    assert main(["train", f"--config={TINY}:steps=30", *OPTIONS, f"--workdir={work}"]) == 0
    return work


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_same_rows(got, want):
    assert [r["index"] for r in got] == [r["index"] for r in want] == [str(i) for i in range(797)]
    for name in ("label", "prediction"):
        assert [r[name] for r in got] == [r[name] for r in want]
    probabilities = [[float(r["probability"]) for r in rows] for rows in (got, want)]
    np.testing.assert_allclose(*probabilities, atol=1e-6)


def test_a_fresh_process_with_the_adapter_alone(made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "elsewhere" / "adapter")
    out = tmp_path / "rows.csv"
    command = [
        *(sys.executable, "-m", "dynadapt", "eval", "--json"),
        *(f"--workdir={tmp_path / 'elsewhere'}", f"--out={out}"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_rows(read_rows(out), read_rows(made / "predictions.csv"))
    found, result = json.loads(done.stdout), files.read_json(made / "result.json")
    for name in ("top1", "top5", "mean_per_class", "examples", "method"):
        assert found[name] == result[name]
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert not [p for p in (tmp_path / "elsewhere").rglob("*") if p.parent.name != "adapter"][1:]


def answer(folder, size):
    """Metrics and predictions of an adapter with this batch size."""
    config, task, source, transform, network = evaluate.load(folder)
    config.input.eval_batch_size = size
    mesh = sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1)))
    graph, train, frozen = model.split(network, config)
    step = evaluate.make_step(graph, task, config)
    batches = evaluate.batches(config, source, transform)
    return evaluate.evaluate(step, task, train, frozen, batches, mesh)


def test_every_batch_size_gives_the_same(made):
    want, rows = answer(made / "adapter", 100)
    assert want["examples"] == 797
    for size in (1, 7, 64):
        got, others = answer(made / "adapter", size)
        assert got == pytest.approx(want, rel=1e-5), size
        assert got["top1"] == want["top1"] and got["top5"] == want["top5"]
        np.testing.assert_array_equal(others["index"], rows["index"])
        np.testing.assert_array_equal(others["prediction"], rows["prediction"])
        np.testing.assert_allclose(others["probability"], rows["probability"], atol=1e-6)
    assert want["top1"] == pytest.approx(100 * np.mean(rows["prediction"] == rows["label"]))


def test_fitting():
    class Eight:
        size = 8

    assert [evaluate.fitting(n, Eight) for n in (1, 8, 9, 64, 100)] == [8, 8, 16, 64, 104]


@pytest.mark.parametrize("method", adapters.names())
def test_the_adapter_file_holds_what_is_trained_and_no_more(method, tmp_path):
    from dynadapt import tasks
    from dynadapt.runs import checkpoint

    config = read_config(TINY, f"method={method}")
    source, _ = evaluate.open_split(config, "eval")
    network = model.build(config, tasks.from_config(config.task, source.info))
    _, train, frozen = model.split(network, config)
    card = checkpoint.save_adapter(tmp_path, train, {})
    held = set(files.read_tensors(tmp_path / "adapter.safetensors"))
    assert held == set(tree.leaves(train)) and not held & set(tree.leaves(frozen))
    assert tree.nbytes(train) < card["bytes"] <= tree.nbytes(train) + 8 * 1024


def test_the_run_left_a_small_file(made):
    result = files.read_json(made / "result.json")
    size = (made / "adapter" / "adapter.safetensors").stat().st_size
    assert size == result["adapter_bytes"] <= result["trained_bytes"] + 8 * 1024


def test_the_running_mean_is_what_is_kept(made, tmp_path):
    """Evaluated and stored leaves are the mean; those of a run without it differ."""
    work = tmp_path / "run"
    assert main(["train", f"--config={TINY}:steps=30", OPTIONS[0], f"--workdir={work}"]) == 0
    a = files.read_tensors(made / "adapter" / "adapter.safetensors")
    b = files.read_tensors(work / "adapter" / "adapter.safetensors")
    assert set(a) == set(b)
    assert any(np.abs(a[k] - b[k]).max() > 1e-6 for k in a)


def test_a_card_of_another_structure(made, tmp_path):
    from dynadapt.runs import checkpoint

    leaves, card = checkpoint.load_adapter(made / "adapter")
    lost = leaves.pop("head/linear/bias")
    for wrong in (leaves, {**leaves, "head/linear/bias": lost[:-1]}):
        checkpoint.save_adapter(tmp_path / "adapter", wrong, card)
        with pytest.raises(CheckpointError, match="head/linear/bias"):
            evaluate.load(tmp_path / "adapter")


def test_eval_out_into_no_folder(made, tmp_path, capsys):
    out = tmp_path / "missing" / "rows.csv"
    assert main(["eval", f"--workdir={made}", f"--out={out}"]) == 2
    err = capsys.readouterr().err
    assert str(out.parent) in err and err.count("\n") == 1


def test_example_shape_tries_past_broken_ones():
    from dynadapt.errors import DataError

    def transform(example, rng):
        if example is None:
            raise DataError("broken")
        return {"image": example}

    config = ConfigDict(dict(input=dict(on_error="skip")))
    whole = np.zeros((4, 6, 3), np.uint8)
    assert evaluate.example_shape(config, [None, None, whole], transform) == (4, 6, 3)
    with pytest.raises(DataError, match="broken"):
        evaluate.example_shape(config, [None, None], transform)
    config.input.on_error = "stop"
    with pytest.raises(DataError, match="broken"):
        evaluate.example_shape(config, [None, whole], transform)


def test_prepared_normalises_in_float32():
    from dynadapt import tasks

    config = read_config(TINY, "")
    source, _ = evaluate.open_split(config, "eval")
    task = tasks.from_config(config.task, source.info)
    batch = {
        "image": np.full((2, 8, 8, 3), 255, np.uint8),
        "label": np.array([0, 1], np.int32),
    }
    ready = jax.jit(lambda b: evaluate.prepared(task, b, config, None, False))(batch)
    assert ready["image"].dtype == np.float32
    np.testing.assert_allclose(ready["image"], 1.0, rtol=1e-6)
