import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import tasks
from dynadapt.data import Info, labelled
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError
from dynadapt.tasks.parts import Task

pytestmark = pytest.mark.usefixtures("fast_compiling")

N = 12
PARTS = ("mug body", "mug handle", "table top", "table legs")
FIELDS = {
    "points": Field("cloud", size=(N, 3)),
    "label": Field("number", classes=("mug", "table")),
    "parts": Field("point_labels", fill=-1, classes=PARTS, size=(N,), owners=(0, 0, 1, 1)),
}
INFO = Info("things", FIELDS, {}, "")


def batch():
    rng = np.random.default_rng(0)
    label = np.int32([0, 1, 1])
    parts = 2 * label[:, None] + rng.integers(2, size=(3, N))
    parts[:, :3] = -1
    return {
        "points": rng.normal(size=(3, N, 3)).astype(np.float32),
        "label": label,
        "parts": parts.astype(np.int32),
        "mask": np.ones(3, np.float32),
    }


def logits(seed=1):
    return np.random.default_rng(seed).normal(size=(3, N, 4)).astype(np.float32)


def numpy_rows(task, outputs, given):
    return {k: np.asarray(v) for k, v in jax.jit(task.rows)(outputs, given).items()}


def test_loss_is_of_the_known_points_of_unmasked_clouds():
    task, given, own = Task(INFO), batch(), logits()
    given["mask"] = np.float32([1, 0, 1])
    total, weight, _ = task.loss((own,), given)
    log = np.asarray(jax.nn.log_softmax(own))
    wanted = [-log[b, n, given["parts"][b, n]] for b in (0, 2) for n in range(3, N)]
    assert weight == len(wanted) == 18
    np.testing.assert_allclose(total, np.sum(wanted), rtol=1e-5)


def test_metrics_by_hand():
    task, given, own = Task(INFO), batch(), logits()
    found = task.value(numpy_rows(task, (own,), given))
    clouds = []
    for b, label in enumerate(given["label"]):
        parts = given["parts"][b][3:]
        said = own[b, 3:, 2 * label : 2 * label + 2].argmax(-1) + 2 * label
        pair = [(parts == p, said == p) for p in (2 * label, 2 * label + 1)]
        clouds.append(
            np.mean([(t & s).sum() / (t | s).sum() if (t | s).any() else 1 for t, s in pair])
        )
    assert found["instance_miou"] == pytest.approx(100 * np.mean(clouds))
    categories = clouds[0], np.mean(clouds[1:])
    assert found["class_miou"] == pytest.approx(100 * np.mean(categories))
    assert found["categories"]["mug"]["miou"] == pytest.approx(100 * categories[0], abs=1e-3)
    assert found["examples"] == 3 and task.headline == "instance_miou"


def test_right_answers_are_a_hundred_and_nothing_is_finite():
    task, given = Task(INFO), batch()
    right = np.asarray(jax.nn.one_hot(given["parts"], 4)) * 9
    rows = numpy_rows(task, (right,), given)
    found = task.value(rows)
    assert found["instance_miou"] == found["class_miou"] == 100
    nothing = task.value({k: v[:0] for k, v in rows.items()})
    assert nothing["instance_miou"] == 0 and nothing.keys() == found.keys()


def test_without_a_category_all_parts_are_answered():
    task, given = Task(INFO), batch()
    own = np.zeros((3, N, 4), np.float32)
    own[..., 2] = 1
    known = np.asarray(task.answer((own,), given)["parts"])
    assert (known[0] == 0).all() and (known[1:] == 2).all()
    del given["label"]
    assert (np.asarray(task.answer((own,), given)["parts"]) == 2).all()
    rows = numpy_rows(task, (own,), given)
    np.testing.assert_array_equal(rows["category"], [0, 1, 1])  # of the parts themselves


def test_training_moves_points_and_keeps_their_parts():
    given = batch()
    ready = Task(INFO).prepare(given, jax.random.key(0), True)
    assert np.abs(np.asarray(ready["points"]) - given["points"]).max() > 0.01
    np.testing.assert_array_equal(ready["parts"], given["parts"])
    assert Task(INFO).prepare(given, None, False) is given


def test_records_and_pictures():
    task, given = Task(INFO), batch()
    answer = {"parts": np.asarray(given["parts"][0] % 2, np.int32)}
    example = {k: v[0] for k, v in given.items()} | {"name": "a/b.ply"}
    values, files = task.record(answer, example)
    assert values["file"] == "a/b.ply" and values["accuracy"] == 100
    assert values["parts"].startswith("mug ") and list(files) == [".parts.txt"]
    table = np.loadtxt(files[".parts.txt"].decode().splitlines())
    np.testing.assert_allclose(table[:, :3], example["points"], rtol=1e-5)
    np.testing.assert_array_equal(table[:, 3], answer["parts"])
    new = {"points": example["points"], "name": "new.ply"}
    assert list(task.record(answer, new)[0]) == ["file", "parts"]
    truth, alone = (task.draw(example["points"], answer, e) for e in (example, new))
    assert truth.dtype == np.uint8 and truth.shape[0] > 1.5 * alone.shape[0]


def test_wrong_settings_are_config_errors():
    for given, message in (
        (dict(channels=0), "channels must be"),
        (dict(dropout=1.0), "dropout must be"),
        (dict(jitter=-1.0), "jitter must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            Task(INFO, **given)
    with pytest.raises(ConfigError, match="needs the field 'points'"):
        tasks.from_config(dict(name="parts"), labelled("x", ("a", "b")))
    few = INFO.fields | {"parts": Field("point_labels", size=(N,))}
    with pytest.raises(ConfigError, match="data set 'things' has none"):
        Task(Info("things", few, {}, ""))


def test_parts_are_counted_whole():
    rows = numpy_rows(Task(INFO), (jnp.asarray(logits()),), batch())
    assert all(rows[k].dtype == np.int32 for k in ("intersection", "union", "points", "category"))
