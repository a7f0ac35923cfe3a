import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from dynadapt import tasks
from dynadapt.data import labelled
from dynadapt.errors import ConfigError
from dynadapt.targets import clouds
from dynadapt.tasks.points import VOTED, VOTES, Task
from tests import infos

pytestmark = pytest.mark.usefixtures("fast_compiling")

INFO = infos.clouds(points=40)
CLASSES = len(INFO.classes)


def batch(seed=0, b=4):
    rng = np.random.default_rng(seed)
    return {
        "points": rng.normal(size=(b, 40, 3)).astype(np.float32),
        "label": rng.integers(CLASSES, size=b).astype(np.int32),
        "mask": np.ones(b, np.float32),
        "index": np.arange(b, dtype=np.int32),
    }


def forward(points):
    """Logits that depend on every point, whatever their order."""
    return (jnp.concatenate([jnp.abs(points).mean(1), jnp.square(points).mean(1)[:, :2]], 1),)


def test_training_sees_other_points_each_time():
    task, given = Task(INFO, points=20), batch()
    first, same, other = (
        np.asarray(task.prepare(given, jax.random.key(n), True)["points"]) for n in (0, 0, 1)
    )
    assert first.shape == (4, 20, 3)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    plain = np.asarray(task.prepare(given, None, False)["points"])
    np.testing.assert_array_equal(
        plain, clouds.taken(given["points"], clouds.farthest(given["points"], 20))
    )


@pytest.mark.parametrize("given", [dict(turn=True), dict(jitter=0.05)])
def test_augmentations_are_asked_for(given):
    key = jax.random.key(3)
    own = Task(INFO, **given).prepare(batch(), key, True)["points"]
    assert np.abs(own - Task(INFO).prepare(batch(), key, True)["points"]).max() > 0.01
    np.testing.assert_array_equal(
        Task(INFO, **given).prepare(batch(), None, False)["points"], batch()["points"]
    )


def test_an_evaluation_has_the_plain_answer_and_a_vote_of_fixed_draws():
    task, whole = Task(INFO, points=20), jnp.asarray(batch()["points"])
    seen = []

    def noted(points):
        seen.append(points.shape)
        return forward(points)

    plain, voted = task.look(noted, whole)
    assert set(seen) == {(4, 20, 3)}
    np.testing.assert_allclose(plain, forward(task.prepare(batch(), None, False)["points"])[0])
    assert np.abs(np.asarray(voted - plain)).max() > 1e-3
    for found, wanted in zip(
        Task(INFO, points=20).look(forward, whole), (plain, voted), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    # The mean of ten passes by hand.
    pool = clouds.taken(whole, clouds.farthest(whole, 23))
    passes = []
    for key in jax.random.split(jax.random.key(0), VOTES):
        to_draw, to_move = jax.random.split(key)
        numbers = jax.random.uniform(to_draw, (1, 23)).argsort(-1)[0, :20]
        passes.append(forward(clouds.moved(to_move, pool[:, numbers], 1))[0])
    np.testing.assert_allclose(voted, np.mean(passes, 0), rtol=1e-5)
    assert np.std(passes, 0).min() > 0 and len(passes) == 10


def test_no_answer_depends_on_the_rest_of_the_batch():
    task, whole = Task(INFO, points=20), batch()["points"]
    order = np.array([2, 0, 3, 1])
    one, other = (task.look(forward, jnp.asarray(x)) for x in (whole, whole[order]))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(np.asarray(a)[order], b, rtol=1e-5)
    alone = task.look(forward, jnp.asarray(whole[1:2]))
    np.testing.assert_allclose(alone[1], one[1][1:2], rtol=1e-5)


def test_loss_is_of_the_unmasked_clouds():
    task, given = Task(INFO), batch()
    given["mask"] = np.float32([1, 0, 1, 1])
    logits = np.random.default_rng(1).normal(size=(4, CLASSES)).astype(np.float32)
    total, weight, _ = task.loss((logits,), given)
    wanted = metrics.log_loss(
        given["label"], np.asarray(jax.nn.softmax(logits)), labels=range(CLASSES),
        sample_weight=given["mask"],
    )  # fmt: skip
    assert float(total / weight) == pytest.approx(wanted, rel=1e-5) and weight == 3


def test_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(CLASSES - 1, size=60)  # the last class has no example
    logits = [rng.normal(size=(60, CLASSES)).astype(np.float32) for _ in range(2)]
    task, given = Task(INFO), {"label": jnp.asarray(label)}
    rows = {k: np.asarray(v) for k, v in task.rows(tuple(logits), given).items()}
    found = task.value(rows)
    assert list(found)[:4] == ["plain", "plain/mean_class", VOTED, f"{VOTED}/mean_class"]
    assert VOTED == "vote@10" and task.headline == "plain" and task.beside == (VOTED,)
    for name, own in zip(("plain", VOTED), logits, strict=True):
        said = own.argmax(1)
        assert found[name] == pytest.approx(100 * metrics.accuracy_score(label, said))
        recall = metrics.recall_score(label, said, labels=np.unique(label), average="macro")
        assert found[f"{name}/mean_class"] == pytest.approx(100 * recall)
    assert found["examples"] == 60
    nothing = task.value({k: v[:0] for k, v in rows.items()})
    assert nothing["examples"] == 0 and np.isfinite(list(nothing.values())).all()


def test_confusions_of_many_examples_are_counted_whole():
    label = np.zeros(3, np.int32)
    assert tasks.module("points").confusions(label, label, 5).dtype == np.int64


def test_records_and_pictures():
    task, given = Task(INFO), batch()
    logits = np.float32([[0, 3, 1, 0, 2]] * 4)
    answers = task.answer((logits, logits[:, ::-1]), given)
    one = {k: np.asarray(v)[0] for k, v in answers.items()}
    values, files = task.record(one, {"name": "a.ply", "label": np.int32(2)})
    assert files == {} and values["file"] == "a.ply" and values["label"] == "c"
    assert values["prediction"] == "b" and values[VOTED] == "d"
    assert list(task.record(one, {"name": "new.ply"})[0]) == [
        *("file", "prediction", "probability", "top5", VOTED)
    ]
    drawn = task.draw(given["points"][0], one, {})
    assert drawn.dtype == np.uint8 and drawn.shape[1] > 2 * drawn.shape[0]


def test_wrong_settings_are_config_errors():
    for given, message in (
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), not 1.0"),
        (dict(jitter=-1.0), "jitter must be at least 0, not -1.0"),
        (dict(points=41), "points must be from 1 to the 40 of a cloud of 'clouds', or 0 for all"),
        (dict(points=-1), "not -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Task(INFO, **given)
    with pytest.raises(ConfigError, match="data set 'clouds' has none"):
        Task(infos.clouds(classes=""))
    with pytest.raises(ConfigError, match="'points', and the data set 'x' has image, label"):
        tasks.from_config(dict(name="points"), labelled("x", ("a", "b")))
