"""A task and a data set that live in `tests/toy` alone go through all that a run is.

Labels of pixels with void, boxes beside them, a head with a batch norm, a loss weighed by what is
valid: nothing in the package is written for them.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from dynadapt import data, files, tasks, train
from dynadapt.commands.config_file import read_config
from dynadapt.main import main
from dynadapt.runs import product
from tests import devices, stepping
from tests.toy import command, steps

pytestmark = [pytest.mark.usefixtures("fast_compiling"), pytest.mark.slow]

CONFIG = steps.CONFIG


@pytest.fixture(autouse=True, scope="module")
def toy():
    with command.registered():
        yield
    assert "toy" not in data.names() and "toy" not in tasks.names()


def start(work, *more, arg=""):
    return main(["train", f"--config={CONFIG}:{arg}", f"--workdir={work}", *more])


def in_process(*argv, **how):
    call = [sys.executable, "-m", "tests.toy.command", *map(str, argv)]
    return subprocess.run(call, cwd=devices.ROOT, capture_output=True, text=True, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    work = tmp_path_factory.mktemp("toy") / "run"
    assert start(work, "--config.save_every=2") == 0
    return work


def written(folder):
    """Names and bytes of all files below a folder."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_it_is_trained(whole):
    result = files.read_json(whole / "result.json")
    assert result["headline"] == "pixels" and result["examples"] == 21
    assert 0 <= result["pixels"] <= 100 and 0 <= result["boxed"] <= 100
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    assert main(["verify", f"--workdir={whole}"]) == 0


def test_statistics_are_kept_with_what_is_trained(whole):
    leaves = files.read_tensors(whole / "adapter" / product.TENSORS)
    assert {p for p in leaves if p.startswith("head/norm/")} == {
        *("head/norm/scale", "head/norm/bias", "head/norm/mean", "head/norm/var"),
    }
    assert np.abs(leaves["head/norm/mean"]).max() > 1e-3
    assert np.abs(leaves["head/norm/var"] - 1).max() > 1e-3


def test_each_example_has_its_record(whole):
    names = set(written(whole / "predictions"))
    assert names == {f"test[{i}].png" for i in range(21)} | {
        *("predictions.csv", "metrics.json", "pictures.png"),
    }
    table = (whole / "predictions" / "predictions.csv").read_text().splitlines()
    assert table[0] == "file,sure"
    assert [line.split(",")[0] for line in table[1:]] == [f"test[{i}]" for i in range(21)]
    labels = np.asarray(Image.open(whole / "predictions" / "test[7].png"))
    assert labels.shape == (16, 16) and labels.max() < 3


@pytest.mark.parametrize("norm", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_parts_of_a_batch_are_as_the_whole(norm, compiled_as_for_users):
    """Valid pixels are counted over all parts, and statistics are those of the whole batch."""
    found = []
    for accumulate in (1, 2, 4):
        config = read_config(CONFIG, f"accumulate={accumulate},norm={norm},broken=5")
        config.optim.name = "sgd"
        found.append(steps.taken(config, 4))
    losses, kept = found[0]
    assert losses[-1] < losses[0]
    moved = {p for p in kept if p.startswith("stats/")}
    assert moved == ({"stats/head/norm/mean", "stats/head/norm/var"} if norm else set())
    for others, same in found[1:]:
        np.testing.assert_allclose(others, losses, atol=1e-6)
        assert kept.keys() == same.keys()
        for path, x in kept.items():
            np.testing.assert_allclose(same[path], x, rtol=0, atol=1e-6, err_msg=path)


def test_eight_devices_are_as_one():
    call = [sys.executable, "-m", "tests.toy.steps"]
    done = subprocess.run(
        call, env=devices.eight(), cwd=devices.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    for norm in (True, False):
        one = found[f"1 {norm}"]
        assert one["losses"][-1] < one["losses"][0] - 0.1
        assert len(one["moved"]) == 2 * norm
        for mesh in ("8x1", "4x2"):
            other = found[f"{mesh} {norm}"]
            np.testing.assert_allclose(other["losses"], one["losses"], atol=1e-5, rtol=0)
            for path, x in one["moved"].items():
                np.testing.assert_allclose(other["moved"][path], x, atol=1e-5, rtol=1e-5)


def test_two_processes_are_as_one(whole, tmp_path):
    work = tmp_path / "run"
    argv = ["train", f"--config={CONFIG}:", f"--workdir={work}", "--json"]
    call = [sys.executable, "-m", "tests.toy.command", *argv]
    codes, outs, errs = devices.finish(devices.several([call, call]))
    assert codes == [0, 0], errs
    assert json.loads(outs[0])["examples"] == 21 and outs[1] == ""
    want = files.read_tensors(whole / "adapter" / product.TENSORS)
    got = files.read_tensors(work / "adapter" / product.TENSORS)
    assert want.keys() == got.keys()
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-5, rtol=1e-4, err_msg=path)
    # Each process wrote the files of its examples, the first one the table of all.
    assert set(written(work / "predictions")) == set(written(whole / "predictions"))
    table = (work / "predictions" / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == [f"test[{i}]" for i in range(21)]
    one, other = (files.read_json(f / "result.json") for f in (whole, work))
    assert one["examples"] == other["examples"]
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert main(["verify", f"--workdir={work}"]) == 0
    # The same two evaluate together, not each alone.
    call = [sys.executable, "-m", "tests.toy.command", "eval", f"--workdir={work}", "--json"]
    codes, outs, errs = devices.finish(devices.several([call, call]))
    assert codes == [0, 0], errs
    found = json.loads(outs[0])
    assert found["examples"] == 21 and outs[1] == ""
    assert found["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_what_is_killed_goes_on_as_if_nothing_had_been(whole, tmp_path, monkeypatch):
    work = tmp_path / "run"

    def fail(state, count):
        if count == 6:  # a checkpoint is at 4
            raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(train, "make_step", stepping.watched(train.make_step, fail))
        with pytest.raises(MemoryError):
            start(work, "--config.save_every=2")
    assert not (work / "adapter").exists()
    assert start(work, "--config.save_every=2") == 0
    for part in ("adapter/adapter.safetensors", "predictions/predictions.csv"):
        assert (work / part).read_bytes() == (whole / part).read_bytes(), part
    assert written(work / "predictions") == written(whole / "predictions")


def test_a_fresh_process_answers_the_same(whole, tmp_path):
    """From the adapter's folder alone."""
    shutil.copytree(whole / "adapter", tmp_path / "elsewhere" / "adapter")
    work, out = tmp_path / "elsewhere", tmp_path / "out"
    done = in_process("eval", f"--workdir={work}", f"--out={out}", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    found, result = json.loads(done.stdout), files.read_json(whole / "result.json")
    for name in ("loss", "pixels", "boxed", "examples"):
        assert found[name] == result[name]
    assert written(out) == written(whole / "predictions")


def test_new_images_are_answered_as_those_of_the_evaluation(whole, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    source = data.module("toy").source("test")
    for number in range(len(source)):
        Image.fromarray(source[number]["image"]).save(images / f"test[{number}].png")
    argv = ["predict", f"--workdir={whole}", f"--images={images}", f"--out={out}", "--pictures"]
    assert main([*argv, "--batch=5"]) == 0
    want, got = written(whole / "predictions"), written(out)
    for number in range(len(source)):
        name = f"test[{number}].png"
        assert got[name] == want[name] and f"pictures/{name}" in got
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + len(source)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'")
def test_it_is_planned_for_chips_that_are_not_here():
    done = in_process("plan", f"--config={CONFIG}:", "--topology=v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    values = json.loads(done.stdout)
    assert values["fits"] is True and values["mesh"] == {"data": 4, "fsdp": 1}
    trained = values["counts"]["trained_bytes"]
    moved = values["collectives"]["all-reduce"]
    # Gradients, and a few vectors of statistics, which pass both ways.
    assert trained <= moved <= 1.1 * trained + 8 * 4 * 16
    # Mean and variance are held beside what trains.
    assert values["memory"]["trained"] == trained + 2 * 4 * 16
