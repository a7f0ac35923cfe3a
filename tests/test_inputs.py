"""Opened splits: what is read of them first, how their batches are cut, what a device does."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dynadapt import inputs, sharding, tasks
from dynadapt.commands.config_file import read_config
from dynadapt.data import labelled, transforms
from dynadapt.errors import ConfigError, DataError
from tests import infos

TINY = str(Path(__file__).with_name("configs_tiny.py"))


@pytest.fixture
def config():
    return read_config(TINY, "")


class Examples:
    """Images of one class each; None stands for one that can't be read."""

    in_memory = True

    def __init__(self, rows, **given):
        self.rows, self.info = rows, labelled("test", "ab", {"train": len(rows)}, **given)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if self.rows[index] is None:
            raise DataError(f"row {index} is broken")
        return {"image": self.rows[index], "label": 0, "name": f"row {index}"}


def opened(rows, transform="", **given):
    return inputs.Split(Examples(rows, **given), transforms.pipeline(transform), {})


WHOLE = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize("part, size, count", [("train", 16, 1000), ("eval", 32, 40)])
def test_an_open_split_knows_its_batches(part, size, count, config):
    split = inputs.open_split(config, part)
    assert len(split.source) == count
    assert {name: (x.shape, x.dtype.name) for name, x in split.spec.items()} == {
        "image": ((size, 8, 8, 3), "uint8"),
        "label": ((size,), "int32"),
        "index": ((size,), "int32"),
        "mask": ((size,), "float32"),
    }


def test_a_split_is_tried_past_what_is_broken(config):
    config.input.on_error = "skip"
    inputs.check_readable(config, opened([None, None, WHOLE]))
    with pytest.raises(DataError, match="row 1 is broken"):
        inputs.check_readable(config, opened([None, None]))
    with pytest.raises(DataError, match="is empty"):
        inputs.check_readable(config, opened([]))
    config.input.on_error = "stop"
    inputs.check_readable(config, opened([WHOLE, None]))
    with pytest.raises(DataError, match="row 0 is broken"):
        inputs.check_readable(config, opened([None, WHOLE]))


def test_images_of_several_sizes_are_found_before_anything_is_read(config, tmp_path):
    config.data.update(dict(name="digits"))
    source = Examples([WHOLE, WHOLE[:2]])
    with pytest.raises(ConfigError, match=r"not of one size .* such as resize\(224\)"):
        infos.spec(source.info)


@pytest.mark.parametrize("size, whole", [(1, 8), (8, 8), (9, 16), (64, 24), (10**6, 24)])
def test_evaluation_batches_are_shared_evenly(size, whole, config):
    """They are no larger than the 20 examples need."""

    class Eight:
        size = 8

    config.input.eval_batch_size = size
    split = opened([WHOLE] * 20, size=(4, 6))
    batches = list(inputs.eval_batches(config, split, Eight))
    assert {len(b["mask"]) for b in batches} == {whole}
    assert sum(b["mask"].sum() for b in batches) == 20


def test_training_batches_are_those_of_the_seed(config):
    split = inputs.open_split(config, "train")
    first, same = (next(inputs.train_batches(config, split)) for _ in range(2))
    np.testing.assert_array_equal(first["index"], same["index"])
    assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
        k: (v.shape, v.dtype) for k, v in split.spec.items()
    }
    config.seed = 1
    other = next(inputs.train_batches(config, split))
    assert (other["index"] != first["index"]).any()


def test_placed_batches_keep_their_values(config):
    batch = next(inputs.train_batches(config, inputs.open_split(config, "train")))
    placed = inputs.place(batch, sharding.make_mesh())
    assert all(isinstance(x, jax.Array) for x in placed.values())
    for name, x in batch.items():
        np.testing.assert_array_equal(placed[name], x)


def test_prepared_normalises_in_float32(config):
    task = tasks.from_config(config.task, infos.pictures("0123456789"))
    batch = {
        "image": np.full((2, 8, 8, 3), 255, np.uint8),
        "label": np.array([0, 1], np.int32),
    }
    ready = jax.jit(lambda b: inputs.prepared(task, b, config, None, False))(batch)
    assert ready["image"].dtype == np.float32
    np.testing.assert_allclose(ready["image"], 1.0, rtol=1e-6)


def test_points_are_not_normalised(config):
    task = tasks.from_config(config.task, infos.clouds())
    points = np.random.default_rng(0).normal(size=(2, 64, 3)).astype(np.float32)
    ready = inputs.prepared(task, dict(points=points, label=np.array([0, 1])), config, None, False)
    np.testing.assert_array_equal(ready["points"], points)
