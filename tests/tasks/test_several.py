import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import tasks
from dynadapt.data import Info
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, DynadaptError, UnknownName
from dynadapt.tasks.several import KINDS, PASCAL, Task, delta_m

pytestmark = pytest.mark.usefixtures("fast_compiling")

H, W, N = 10, 14, 5
PARTS = ("background", "head", "torso")
FIELDS = {
    "image": Field("pixels"),
    "labels": Field("labels", fill=255, classes=("floor", "wall", "ball")),
    "human_parts": Field("labels", fill=255, classes=PARTS),
    "saliency": Field("labels", fill=-1, classes=("rest", "salient")),
    "edges": Field("labels", fill=-1, classes=("inside", "edge")),
    "normals": Field("vectors"),
    "depth": Field("values"),
}
INFO = Info("rooms", FIELDS, {}, "")


def made(*names, **settings):
    return Task(INFO, tasks=names or tuple(KINDS), **settings)


def drawn(seed=0):
    """A batch with unknown pixels in every field, and random outputs."""
    rng = np.random.default_rng(seed)
    unknown = rng.random((N, H, W)) < 0.2
    batch = {"mask": np.ones(N, np.float32)}
    for name, field in FIELDS.items():
        if field.kind == "labels":
            values = rng.integers(len(field.classes), size=(N, H, W))
            batch[name] = np.where(unknown, field.fill, values).astype(np.int32)
    normals = rng.normal(size=(N, H, W, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    batch["normals"] = np.where(unknown[..., None], 0, normals).astype(np.float32)
    batch["depth"] = np.where(unknown, 0, rng.uniform(0.5, 20, (N, H, W))).astype(np.float32)
    sizes = dict(semseg=3, human_parts=3, saliency=1, normals=3, edges=1, depth=1)
    outputs = {k: (rng.normal(size=(N, H, W, c)).astype(np.float32),) for k, c in sizes.items()}
    return batch, outputs


def right(batch):
    """Outputs that answer a batch as it is."""
    one_hot = {k: 50.0 * np.eye(3, dtype=np.float32)[np.where(batch[f] < 3, batch[f], 0)]
               for k, f in (("semseg", "labels"), ("human_parts", "human_parts"))}  # fmt: skip
    sure = {k: 50.0 * (2 * (batch[k] == 1) - 1).astype(np.float32) for k in ("saliency", "edges")}
    maps = {**one_hot, **{k: x[..., None] for k, x in sure.items()}}
    maps |= {"normals": batch["normals"], "depth": batch["depth"][..., None]}
    return {k: (jnp.asarray(x),) for k, x in maps.items()}


def measured(task, outputs, batch):
    return task.value(jax.device_get(jax.jit(task.rows)(outputs, batch)))


RIGHT = {
    **dict.fromkeys(("semseg/miou", "human_parts/miou", "saliency/max_miou"), 100.0),
    **dict.fromkeys(("saliency/max_f", "saliency/max_f_beta", "edges/edge_f"), 100.0),
    **dict.fromkeys(("normals/within_11.25", "normals/within_30"), 100.0),
    **dict.fromkeys(("normals/mean_deg", "normals/rmse_deg", "normals/median_deg"), 0.0),
    **dict.fromkeys(("depth/pooled/rmse", "depth/abs_rel", "edges/loss"), 0.0),
}


def test_right_answers_have_exact_figures():
    batch, _ = drawn()
    found = measured(made(), right(batch), batch)
    for name, wanted in RIGHT.items():
        assert found[name] == pytest.approx(wanted, abs=1e-5), name
    assert found["examples"] == N and found["semseg/classes"].keys() == {"floor", "wall", "ball"}


def test_metrics_do_not_depend_on_batches():
    batch, outputs = drawn(1)
    batch["human_parts"][2] = 0  # nobody is there, and the picture does not count
    task = made(references=(50.0, 50.0, 50.0, 30.0, 20.0, 1.0))
    rows = jax.jit(task.rows)
    whole = jax.device_get(rows(outputs, batch))
    parts = [jax.device_get(rows(*jax.tree.map(lambda x, s=s: x[s], (outputs, batch))))
             for s in (slice(0, 2), slice(2, 4), slice(4, 5))]  # fmt: skip
    again = {k: np.concatenate([p[k] for p in parts]) for k in whole}
    one, other = task.value(whole), task.value(again)
    people = np.array([0, 1, 3, 4])
    alone = measured(made("human_parts"), *jax.tree.map(lambda x: x[people], (outputs, batch)))
    assert one["human_parts/miou"] == pytest.approx(alone["human_parts/miou"], rel=1e-6)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if not isinstance(value, dict):
            assert other[name] == pytest.approx(value, rel=1e-6), name
    gains = [one[title] for title in task.beside]
    better = [kind.better for kind in KINDS.values()]
    assert one["delta_m"] == delta_m(gains, task.references, better)
    assert (task.headline, task.better) == ("delta_m", "higher")


def test_the_loss_is_the_weighted_sum_of_the_tasks():
    batch, outputs = drawn(2)
    task = made("depth", "normals", weights=(2.0, 3.0))
    total, weight, logs = task.loss(outputs, batch)
    assert set(logs) == {"depth/loss", "normals/loss"} and float(weight) == 1
    assert float(total) == pytest.approx(2 * logs["depth/loss"] + 3 * logs["normals/loss"])
    assert made("edges", "normals").weights == (50.0, 10.0)
    assert (task.headline, task.better, task.beside) == (
        "depth/pooled/rmse", "lower", ("normals/mean_deg",)
    )  # fmt: skip


VOID = dict(labels=255, human_parts=255, saliency=-1, edges=-1, normals=0, depth=0)


@pytest.mark.parametrize("changes", [VOID, dict(saliency=0, edges=0), dict(saliency=1, edges=1)])
def test_maps_without_anything_or_of_one_class_teach_what_is_finite(changes):
    batch, outputs = drawn(3)
    for name, value in changes.items():
        batch[name][:] = value
    task = made()

    def loss(outputs):
        return task.loss(outputs, batch)[0]

    total, slopes = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, outputs))
    assert np.isfinite(total) and all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert float(total) > 0 or changes is VOID
    if changes is VOID:
        assert float(total) == 0 and not any(x.any() for x in jax.tree.leaves(slopes))
        with pytest.raises(DynadaptError, match="no pixel of the evaluated images"):
            measured(made("saliency", "normals", "edges"), outputs, batch)
        found = measured(made("human_parts"), outputs, batch)
        assert found["human_parts/miou"] == 0 and found["examples"] == N
    elif changes["edges"]:
        assert measured(task, right(batch), batch)["edges/edge_f"] == pytest.approx(100)
    else:  # all right where nothing is, as nothing is answered
        found = measured(task, right(batch), batch)
        assert found["saliency/max_miou"] == 100 and found["edges/edge_f"] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(tasks=("semseg", "normal")), "did you mean 'normals'"),
        (dict(tasks=()), "one or more tasks, each once"),
        (dict(tasks=("depth", "depth")), "one or more tasks, each once"),
        (dict(tasks=("depth", "edges"), weights=(1.0,)), "weights has 1 entries for 2 tasks"),
        (dict(tasks=("depth",), references=(1.0, 2.0)), "references has 2 entries for 1 tasks"),
        (dict(tasks=("depth",), references=(0.0,)), "references must be numbers above 0"),
        (dict(tasks=("depth",), weights=("a",)), "weights must be numbers above 0"),
        (dict(head="hrnt"), "did you mean 'hrnet'"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_a_sentence(settings, words):
    with pytest.raises(ConfigError, match=words):
        tasks.from_config(dict(name="several", **settings), INFO)


def test_fields_follow_from_the_tasks():
    section = dict(name="several", tasks=("human_parts", "edges"))
    assert tasks.needed(section) == ("human_parts", "edges")
    assert tasks.needed(dict(name="depth")) == ("depth",)
    less = Info("less", {k: v for k, v in FIELDS.items() if k != "edges"}, {}, "")
    with pytest.raises(ConfigError, match="needs the field 'edges', and the data set 'less'"):
        tasks.from_config(section, less)
    with pytest.raises(UnknownName):
        tasks.needed(dict(name="several", tasks=("parts",)))


# Of PASCAL-Context on Swin-T as printed (TADFormer): mIoU of classes and of parts, mIoU of what is
# salient, degrees; and the gain over models for one task alone, percent.
ALONE = (67.21, 61.93, 62.35, 17.97)
PRINTED = {
    "tadformer, 16": ((69.79, 59.27, 65.04, 16.91), 2.44),
    "tadformer, 32": ((70.20, 60.00, 65.71, 16.57), 3.63),
    "tadformer, 64": ((70.82, 60.45, 65.88, 16.48), 4.24),
    "mtlora, 16": ((68.19, 58.99, 64.48, 17.03), 1.35),
    "mtlora, 32": ((67.74, 59.46, 64.90, 16.59), 2.16),
    "mtlora, 64": ((67.90, 59.84, 65.40, 16.60), 2.55),
}


@pytest.mark.parametrize("row", PRINTED)
def test_printed_gains_follow_from_printed_figures(row):
    found, gain = PRINTED[row]
    better = [KINDS[name].better for name in PASCAL]
    assert delta_m(found, ALONE, better) == pytest.approx(gain, abs=0.02)
