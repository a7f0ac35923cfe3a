"""Verification: a whole run passes, and any damage has a row and exit code 2."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, files, tree
from dynadapt.errors import CheckpointError
from dynadapt.main import main
from dynadapt.runs import verify

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")


def write_backbone(file, seed):
    network = backbones.create(
        "vit_mini", rngs=nnx.Rngs(seed), dim=16, depth=2, heads=2, image_size=8
    )
    leaves = tree.leaves(nnx.state(network))
    files.write_tensors(file, {k: np.asarray(v) for k, v in leaves.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on a file of backbone weights."""
    folder = tmp_path_factory.mktemp("verify")
    write_backbone(folder / "backbone.safetensors", 4)
    spec = f"--config={TINY}:method=lora,steps=6,weights={folder / 'backbone.safetensors'}"
    assert main(["train", spec, "--config.save_every=3", f"--workdir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def faults(run):
    return {row["part"]: row["fault"] for row in verify.run(run) if row["fault"]}


def flip(file, position, bit):
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.slow
def test_a_whole_run(run, capsys):
    parts = [row["part"] for row in verify.run(run)]
    assert parts == [
        "config.json",
        "result.json",
        "metrics.jsonl",
        "adapter/adapter.json",
        "predictions/metrics.json",
        "predictions/pictures.png",
        "predictions/predictions.csv",
        "adapter",
        "backbone weights",
        "checkpoints/3",
        "checkpoints/6",
    ]
    assert faults(run) == {}
    assert main(["verify", f"--workdir={run}"]) == 0
    capsys.readouterr()
    assert main(["verify", f"--workdir={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == verify.run(run)


def written(folder):
    """The files of a run, all of which have a hash."""
    return [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]


@pytest.mark.slow
def test_any_flipped_bit_is_found(run):
    rng = random.Random(9)
    for name in written(run):
        file = run / name
        whole = file.read_bytes()
        count = 12 if name.startswith("adapter") else 3
        places = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(count))}
        for position in sorted(places) if whole else ():
            flip(file, position, rng.randrange(8))
            if name.endswith(".json") and same_json(file, whole):
                file.write_bytes(whole)  # white space holds nothing
                continue
            assert faults(run), f"{name} at {position} of {len(whole)}"
            file.write_bytes(whole)
    assert faults(run) == {}


def same_json(file, whole):
    try:
        return json.loads(file.read_bytes()) == json.loads(whole)
    except ValueError:
        return False


@pytest.mark.slow
def test_any_missing_file_is_found(run):
    for name in written(run):
        file = run / name
        kept = file.read_bytes()
        file.unlink()
        assert faults(run), name
        file.write_bytes(kept)
    assert faults(run) == {}


@pytest.mark.parametrize("part", ["adapter", "adapter/adapter.safetensors", "config.json"])
def test_what_is_missing_is_named(part, run, capsys):
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["verify", f"--workdir={run}"]) == 2
    out = capsys.readouterr().out
    assert part.split("/")[0] in out and "whole" in out


def test_an_edited_card(run):
    card = files.read_json(run / "adapter" / "adapter.json")
    files.write_json(run / "adapter" / "adapter.json", {**card, "method": "linear"})
    assert "adapter.json was changed" in faults(run)["adapter"]


def test_an_edited_config(run):
    values = files.read_json(run / "config.json")
    values["config"]["optim"]["lr"] = 7.0
    files.write_json(run / "config.json", values)
    assert faults(run) == {"config.json": "config.json was changed"}


def test_another_backbone(made, run, capsys):
    file = made / "backbone.safetensors"
    kept = file.read_bytes()
    try:
        write_backbone(file, 5)
        assert main(["verify", f"--workdir={run}", "--json"]) == 2
        rows = json.loads(capsys.readouterr().out)
        (bad,) = [row for row in rows if row["fault"]]
        assert bad["part"] == "backbone weights" and "not those" in bad["fault"]
        assert main(["eval", f"--workdir={run}"]) == 2
        assert "not those that the adapter was trained on" in capsys.readouterr().err
        file.unlink()
        assert "no weights at" in faults(run)["backbone weights"]
    finally:
        file.write_bytes(kept)
    assert faults(run) == {}


def test_training_does_not_go_on_upon_another_backbone(made, run, capsys):
    file = made / "backbone.safetensors"
    kept = file.read_bytes()
    (run / "result.json").unlink()
    spec = f"--config={TINY}:method=lora,steps=6,weights={file}"
    try:
        write_backbone(file, 5)
        assert main(["train", spec, "--config.save_every=3", f"--workdir={run}"]) == 2
        assert "the weights changed since the run began" in capsys.readouterr().err
    finally:
        file.write_bytes(kept)


def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run in"):
        verify.run(tmp_path)
