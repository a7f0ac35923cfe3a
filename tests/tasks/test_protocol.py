"""What every task must be, those of the package and one that lives in tests alone."""

import inspect
import json

import jax
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, config, inputs, model, tasks
from dynadapt.context import Context
from dynadapt.data import Info, frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError
from tests import infos
from tests.toy import command

pytestmark = pytest.mark.usefixtures("fast_compiling", "toy")

SIDE, BATCH = 16, 3
# A field of each kind that tasks ask for.
INFO = Info(
    "everything",
    {
        "image": Field("pixels", size=(SIDE, SIDE)),
        "label": Field("number", classes=("a", "b", "c")),
        "labels": Field("labels", fill=255, classes=("a", "b", "c"), size=(SIDE, SIDE)),
        "human_parts": Field("labels", fill=255, classes=("none", "head"), size=(SIDE, SIDE)),
        "saliency": Field("labels", fill=-1, classes=("rest", "salient"), size=(SIDE, SIDE)),
        "edges": Field("labels", fill=-1, classes=("inside", "edge"), size=(SIDE, SIDE)),
        "normals": Field("vectors", size=(SIDE, SIDE)),
        "depth": Field("values", size=(SIDE, SIDE)),
        "boxes": Field("boxes", most=2),
        "box_classes": Field("rows", fill=-1, classes=("a", "b", "c"), most=2),
        "instances": Field("masks", size=(SIDE, SIDE)),
        "box_ids": Field("rows", most=2),
        "points": Field("cloud", size=(SIDE, 3)),
        "parts": Field(
            "point_labels", fill=-1, classes=("x", "y", "z"), size=(SIDE,), owners=(0, 1, 2)
        ),
    },
    {},
    "",
)
# What makes tasks smaller than their own settings do.
SMALL = {
    "instances": dict(
        **dict(channels=8, depth=1, strides=(2.0, 4.0), grids=(3, 2)),
        ranges=((0.0, 8.0), (4.0, 16.0)),
    ),
    **dict.fromkeys(("edges", "normals", "saliency", "several"), dict(channels=2)),
    "masked_points": dict(groups=4, group_size=4),
}
PARAMETERS = {
    "head": ("like", "rngs"),
    "prepare": ("batch", "key", "train"),
    "loss": ("outputs", "batch"),
    "rows": ("outputs", "batch"),
    "value": ("rows",),
    "answer": ("outputs", "batch"),
    "record": ("answer", "example"),
    "draw": ("image", "answer", "example"),
}


@pytest.fixture(scope="module")
def toy():
    with command.registered():
        yield


every_task = pytest.mark.parametrize("name", [*tasks.names(), "toy"])


def made(name):
    return tasks.from_config(dict(name=name, **SMALL.get(name, {})), INFO)


@every_task
def test_a_task_says_what_it_is(name):
    task = made(name)
    assert name in tasks.names()
    assert task.better in ("higher", "lower") and isinstance(task.headline, str)
    assert isinstance(task.needs, tuple) and set(task.needs) <= set(INFO.fields)
    for method, wanted in PARAMETERS.items():
        found = inspect.signature(getattr(task, method)).parameters
        assert len(found) == len(wanted), method
    # Outputs may have a name of their own, such as logits; what is given by name may not.
    assert inspect.signature(task.head).parameters["rngs"].kind is inspect.Parameter.KEYWORD_ONLY


@every_task
def test_a_field_that_is_missing_is_named(name):
    for missing in made(name).needs:
        fields = {k: v for k, v in INFO.fields.items() if k != missing}
        with pytest.raises(ConfigError, match=f"needs the field '{missing}'"):
            tasks.from_config(dict(name=name), Info("less", fields, {}, ""))


def batch(seed=0):
    """Random values of every field; the last example is padding."""
    rng, found = np.random.default_rng(seed), {}
    for name, x in infos.spec(INFO, BATCH).items():
        few = name.startswith(("label", "box_classes")) or name == "parts"
        two = name.endswith("mask") or name in ("saliency", "edges", "human_parts")
        high = 3 if few else 2 if two else SIDE
        found[name] = rng.integers(high, size=x.shape).astype(x.dtype)
    found["mask"] = (np.arange(BATCH) < BATCH - 1).astype(np.float32)
    found["index"] = np.arange(BATCH, dtype=np.int32)
    return found


def run(name, *batches):
    """The task, and its loss, rows and answers of each batch while training."""
    task = made(name)
    variant, sizes = "vit_mini", dict(image_size=SIDE)
    if "points" in task.needs:
        variant, sizes = "point_mini", dict(groups=4, group_size=4)
    c = config.default(backbone=variant, task=name, data_set="digits")
    c.input.normalise = "inception"
    backbone = backbones.create(variant, rngs=nnx.Rngs(0), dim=16, depth=1, heads=2, **sizes)
    head = task.head(model.features(backbone, infos.spec(INFO, BATCH)), rngs=nnx.Rngs(1))
    network = model.Model(backbone, head)

    @jax.jit
    def forward(network, given):
        ready = inputs.prepared(task, given, c, jax.random.key(2), True)
        assert {"mask", "index"} <= ready.keys()
        outputs = network(ready[backbone.takes], Context())
        return task.loss(outputs, ready), task.rows(outputs, ready), task.answer(outputs, ready)

    return task, [jax.device_get(forward(network, given)) for given in batches]


@every_task
def test_a_task_goes_from_a_batch_to_metrics_and_records(name):
    given = batch()
    task, [((total, weight, logs), rows, answers)] = run(name, given)
    assert total.shape == weight.shape == () and weight > 0 and np.isfinite(total)
    assert total.dtype == weight.dtype == np.float32
    assert all(x.shape == () for x in logs.values())
    for x in (*rows.values(), *answers.values()):
        assert x.shape[0] == BATCH  # of each example
    # Rows are small: numbers of an example, or of each of a hundred answers, never a map.
    most = 400 if hasattr(task, "judge") else 100
    assert all(x[0].size <= most for x in rows.values())

    values = task.value({k: v[:-1] for k, v in rows.items()})
    assert task.headline in values
    assert all(np.isfinite(list(numbers(values).values())))
    twice = task.value({k: np.concatenate([v[:-1]] * 2) for k, v in rows.items()})
    assert twice[task.headline] == pytest.approx(values[task.headline])
    nothing = task.value({k: v[:0] for k, v in rows.items()})
    assert nothing.keys() == values.keys() and np.isfinite(list(numbers(nothing).values())).all()

    one = {k: v[0] for k, v in answers.items()}
    frame = frames.identity((SIDE, SIDE))
    about = {"name": "images/a.png", "size": (SIDE, SIDE), "frame": frame}
    example = {k: v[0] for k, v in given.items()} | about
    record, written = task.record(one, example)
    assert record["file"] == "images/a.png"
    assert ("results" in record) == bool(getattr(task, "results", ""))
    results = record.pop("results", [])
    assert json.loads(json.dumps(results)) == results
    assert not results or task.results.endswith(".json")
    assert all(isinstance(v, str | int | float) for v in record.values())
    assert all(
        k.rpartition("/")[2].startswith(".") and isinstance(v, bytes) for k, v in written.items()
    )
    shown = "points" if "points" in task.needs else "image"
    drawn = task.draw(given[shown][0], one, example)
    assert drawn.ndim == 3 and drawn.shape[2] == 3 and drawn.dtype == np.uint8


def numbers(values):
    """The metrics that are no table."""
    return {k: v for k, v in values.items() if not isinstance(v, dict)}


@every_task
def test_padding_has_no_part_in_the_loss(name):
    """Other values where the mask is 0 change neither the sum nor the weight."""
    one, other = batch(), batch()
    for key in INFO.fields:
        other[key][-1] = batch(seed=9)[key][-1]
    _, ((loss, _, _), (same, _, _)) = run(name, one, other)
    np.testing.assert_allclose(same[:2], loss[:2], rtol=1e-6)
