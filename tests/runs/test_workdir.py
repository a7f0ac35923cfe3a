"""The run folder: whose it is, what it says of a run, what counts are shown."""

import json
import os
import platform

import jax
import numpy as np
import pytest

from dynadapt import config, files
from dynadapt.data import labelled
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.runs import product, workdir

# What an evaluation wrote, in folders below too.
RECORDS = ("predictions/maps/one.png", "predictions/predictions.csv")


def write_predictions(work):
    for name in RECORDS:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("file\n")


@pytest.fixture
def made(tmp_path):
    c = config.default(backbone="vit_mini", method="lora", data_set="digits")
    workdir.start(c, tmp_path / "run")
    return c, tmp_path / "run"


def test_config_json(made):
    c, work = made
    values = json.loads((work / "config.json").read_text())
    assert config.from_plain(values["config"]).to_dict() == c.to_dict()
    assert values["digest"] == config.digest(c)
    assert values["versions"]["jax"] == jax.__version__
    assert values["versions"]["python"] == platform.python_version()
    assert values["device"].startswith(f"{jax.device_count()} x ")


def test_the_same_config_may_go_on(made):
    c, work = made
    workdir.check(c, work)
    c.log.every = 7
    c.mesh.fsdp = 8
    workdir.check(c, work)


def test_another_config_may_not(made):
    c, work = made
    c.optim.lr = 0.5
    c.adapter.rank = 3
    with pytest.raises(ConfigError) as caught:
        workdir.check(c, work)
    text = str(caught.value)
    assert "adapter.rank: 8 -> 3" in text and "optim.lr: 0.001 -> 0.5" in text
    assert "another --workdir" in text


def test_many_differences_are_cut(made):
    _, work = made
    other = config.default(backbone="vit_b16", method="iconformer", data_set="folder")
    with pytest.raises(ConfigError, match="…"):
        workdir.check(other, work)


@pytest.mark.parametrize("text", ["[]", "{}", '{"config": 3}', "{"])
def test_a_damaged_config_is_no_run_to_go_on_with(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json"):
        workdir.check(config.default(data_set="digits"), tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("x")
    for folder in ("run", "run/inner/more"):
        with pytest.raises(ConfigError, match="run is a file"):
            workdir.check(config.default(data_set="digits"), tmp_path / folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="nothing can be written"):
        workdir.check(config.default(data_set="digits"), tmp_path / "run")


def test_only_a_whole_result_counts(made):
    c, work = made
    assert workdir.result(c, work) is None
    write_predictions(work)
    workdir.finish(work, {"top1": 1.0})
    assert workdir.result(c, work) is None  # there is no adapter
    leaves = {"head": np.ones(3, np.float32)}
    info = labelled("digits", "ab", size=(8, 8))
    product.save(work / "adapter", leaves, product.card(c, info, {}, {}))
    assert workdir.result(c, work) == {"top1": 1.0}
    for name in ("adapter/adapter.safetensors", *RECORDS, "manifest.json", "result.json"):
        kept = (work / name).read_bytes()
        (work / name).unlink()
        assert workdir.result(c, work) is None, name
        (work / name).write_bytes(kept)
    assert workdir.result(c, work) == {"top1": 1.0}


def test_faults(made):
    _, work = made
    assert workdir.faults(work) == {}
    files.write_json(work / "result.json", {"top1": 1.0})
    assert list(workdir.faults(work)) == ["manifest.json"]
    write_predictions(work)
    workdir.finish(work, {"top1": 1.0})
    assert set(workdir.faults(work)) == {*workdir.NEEDED, *RECORDS}
    assert not any(workdir.faults(work).values())
    files.write_json(work / "result.json", {"top1": 2.0})
    (work / RECORDS[0]).unlink()
    (work / RECORDS[1]).write_text("other")
    assert workdir.faults(work) == {
        "config.json": "",
        "result.json": "result.json was changed",
        RECORDS[0]: f"{RECORDS[0]} is missing",
        RECORDS[1]: f"{RECORDS[1]} was changed",
    }


def test_counts():
    def leaf(*shape):
        return np.zeros(shape, np.float32)

    train = {
        "backbone": {"blocks": {"0": {"mlp": {"adapter": {"up": leaf(3, 4)}, "bias": leaf(5)}}}},
        "head": {"linear": {"kernel": leaf(4, 2)}},
    }
    frozen = {"backbone": {"kernel": leaf(10, 10)}}
    assert workdir.counts(train, frozen) == {
        "trained": 17,
        "trained_with_head": 25,
        "backbone": 105,
        "trained_bytes": 100,
    }
