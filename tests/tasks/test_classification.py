import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics

from dynadapt import backbones, model, tasks
from dynadapt.data import labelled
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import SameKey
from dynadapt.tasks.classification import Task
from tests import infos

pytestmark = pytest.mark.usefixtures("fast_compiling")

CLASSES = 7


def info(classes=CLASSES):
    return labelled("test", tuple(f"c{i}" for i in range(classes)), {"train": 1}, "by hand")


def batch_of(logits_or_images, labels, mask=None):
    n = len(labels)
    return {
        "image": np.asarray(logits_or_images, np.float32),
        "label": np.asarray(labels, np.int32),
        "index": np.arange(n, dtype=np.int32),
        "mask": np.ones(n, np.float32) if mask is None else np.asarray(mask, np.float32),
    }


def draw(seed, n):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, CLASSES)).astype(np.float32), rng.integers(CLASSES, size=n)


def cross_entropy(logits, target):
    logits = logits.astype(np.float64)
    log = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    return -(target * (log - logits.max(1, keepdims=True))).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_equals_numpy(smoothing):
    task = Task(info(), label_smoothing=smoothing)
    logits, labels = draw(1, 9)
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1])
    batch = task.prepare(batch_of(logits, labels, mask), jax.random.key(0), True)
    target = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    total, weight, logs = task.loss(logits, batch)
    wanted = (cross_entropy(logits, target) * mask).sum() / 7
    np.testing.assert_allclose(total / weight, wanted, rtol=1e-5)
    assert float(weight) == 7 and logs == {}


def test_loss_of_no_example_is_zero_not_nan():
    """The step divides it by its weight, 0, and comes to 0: see test_step.py."""
    task, (logits, labels) = Task(info()), draw(2, 3)
    batch = task.prepare(batch_of(logits, labels, [0, 0, 0]), None, False)
    assert [float(x) for x in task.loss(logits, batch)[:2]] == [0.0, 0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixup_mixes_images_and_targets_alike(smoothing):
    task = Task(info(), mixup=0.8, label_smoothing=smoothing)
    rng = np.random.default_rng(3)
    images, labels = rng.normal(size=(6, 4, 4, 3)), np.array([0, 1, 2, 3, 4, 5])
    batch = task.prepare(batch_of(images, labels), jax.random.key(5), True)
    share = float(batch["target"][0, 0])
    assert 0 < share < 1
    eye = np.eye(CLASSES)[labels]
    np.testing.assert_allclose(batch["target"], share * eye + (1 - share) * eye[::-1], atol=1e-6)
    wanted = share * images + (1 - share) * images[::-1]
    np.testing.assert_allclose(batch["image"], wanted, atol=1e-5)
    logits, _ = draw(4, 6)
    target = np.asarray(batch["target"]) * (1 - smoothing) + smoothing / CLASSES
    total, weight, _ = task.loss(logits, batch)
    np.testing.assert_allclose(total / weight, cross_entropy(logits, target).mean(), rtol=1e-5)


def test_mixup_shares_follow_the_beta_distribution_and_the_key():
    task = Task(info(), mixup=0.4)

    @jax.jit
    def share(key):
        batch = batch_of(np.zeros((2, 1, 1, 3)), [0, 1])
        return task.prepare(batch, key, True)["target"][0, 0]

    shares = np.array([share(jax.random.key(n)) for n in range(300)])
    assert len(set(shares.tolist())) > 290
    variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
    assert abs(shares.mean() - 0.5) < 0.06 and abs(shares.var() - variance) < 0.03


def test_nothing_is_mixed_outside_training():
    task, labels = Task(info(), mixup=1.0), draw(6, 4)[1]
    images = np.random.default_rng(0).normal(size=(4, 2, 2, 3))
    batch = task.prepare(batch_of(images, labels), None, False)
    np.testing.assert_array_equal(batch["image"], images.astype(np.float32))
    np.testing.assert_array_equal(batch["target"], np.eye(CLASSES)[labels])


def test_mixup_lets_no_masked_image_in():
    """A broken image is zeros under a label: no other example may be mixed with it."""
    task = Task(info(), mixup=1.0)
    images = np.ones((4, 1, 1, 3))
    images[0] = np.nan
    batch = task.prepare(batch_of(images, [0, 1, 2, 3], [0, 1, 1, 1]), jax.random.key(0), True)
    np.testing.assert_array_equal(batch["mask"], [0, 1, 1, 0])
    assert np.isfinite(np.asarray(batch["image"])[np.asarray(batch["mask"]) > 0]).all()


def measured(task, logits, labels, size):
    """Metrics over batches of one size, the last one padded as the loader does."""
    rows_of, parts = jax.jit(task.rows), []
    for start in range(0, len(labels), size):
        part, own = logits[start : start + size], labels[start : start + size]
        padding = size - len(own)
        part = np.concatenate([part, np.full((padding, CLASSES), 3.0, np.float32)])
        mask = np.arange(size) < len(own)
        batch = batch_of(part, np.concatenate([own, np.zeros(padding, int)]), mask)
        rows = rows_of(part, task.prepare(batch, None, False))
        parts.append({k: np.asarray(v)[mask] for k, v in rows.items()})
    return task.value({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_scikit_learn(size, ties):
    task = Task(info())
    logits, labels = draw(8, 100)
    labels[labels == 2] = 3  # a class without an example
    if ties:
        logits = np.round(logits)
    found = measured(task, logits, labels, size)
    # scikit-learn ranks a tie from the last class on, arg max from the first: turned round.
    every = np.arange(CLASSES)
    top5 = metrics.top_k_accuracy_score(CLASSES - 1 - labels, logits[:, ::-1], k=5, labels=every)
    predicted = logits.argmax(1)
    recall = metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert found["examples"] == 100
    assert found["top1"] == pytest.approx(100 * metrics.accuracy_score(labels, predicted), abs=1e-9)
    assert found["top5"] == pytest.approx(100 * top5, abs=1e-9)
    assert found["mean_per_class"] == pytest.approx(100 * recall, abs=1e-9)
    exp = np.exp(logits.astype(np.float64))
    probabilities = exp / exp.sum(1, keepdims=True)
    loss = metrics.log_loss(labels, probabilities, labels=every)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found == {**measured(task, logits, labels, 100), "loss": found["loss"]}


def test_equal_logits_are_no_win():
    """A constant output is right for the first class alone."""
    labels = np.arange(CLASSES)
    found = measured(Task(info()), np.zeros((CLASSES, CLASSES), np.float32), labels, 4)
    assert found["top1"] == pytest.approx(100 / CLASSES)
    assert found["top5"] == pytest.approx(100 * 5 / CLASSES)


def test_an_output_that_is_no_number_is_wrong():
    logits, labels = draw(3, 8)
    logits = logits + 10 * np.eye(CLASSES, dtype=np.float32)[labels]
    logits[0], logits[1, labels[1]] = np.nan, np.nan
    found = measured(Task(info()), logits, labels, 8)
    assert found["top1"] == found["top5"] == pytest.approx(100 * 6 / 8)


def test_metrics_of_nothing():
    logits, labels = draw(1, 2)
    rows = Task(info()).rows(logits, batch_of(logits, labels))
    found = Task(info()).value({k: np.asarray(v)[:0] for k, v in rows.items()})
    assert found["examples"] == 0 and all(np.isfinite(v) for v in found.values())


@pytest.mark.parametrize("classes", [CLASSES, 3])
def test_answers_are_the_likeliest_classes(classes):
    logits = draw(9, 5)[0][:, :classes]
    found = Task(info(classes)).answer(jnp.asarray(logits), {})
    wanted = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(found["classes"], wanted)
    exp = np.exp(logits)
    probabilities = exp / exp.sum(1, keepdims=True)
    probabilities = np.take_along_axis(probabilities, wanted, axis=1)
    np.testing.assert_allclose(found["probabilities"], probabilities, 1e-5)


def test_records_have_names():
    answer = {
        "classes": np.array([4, 0, 1]),
        "probabilities": np.array([0.75, 0.2, 0.05], np.float32),
    }
    values, files = Task(info()).record(answer, {"name": "a.png", "label": np.int32(6)})
    assert files == {}
    assert list(values) == ["file", "label", "prediction", "probability", "top5"]
    assert values["file"] == "a.png" and values["label"] == "c6"
    assert values["prediction"] == "c4" and values["probability"] == 0.75
    assert values["top5"] == "c4 0.7500; c0 0.2000; c1 0.0500"
    values, _ = Task(info()).record(answer, {"name": "new.png"})  # of an image without a label
    assert list(values) == ["file", "prediction", "probability", "top5"]


def test_a_drawn_answer_has_the_picture_and_a_line_of_text():
    image = np.full((8, 8, 3), 90, np.uint8)
    drawn = [
        Task(info()).draw(image, {"classes": np.array([n]), "probabilities": np.array([0.5])}, {})
        for n in (2, 3)
    ]
    assert (drawn[0][:128] == 90).all() and drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()  # the name


def like(**changes):
    """Shapes of the features of a small backbone."""
    given = dict(dim=16, heads=2, depth=1, image_size=16) | changes
    return model.features(backbones.abstract("vit_mini", **given), infos.spec(infos.pictures()))


@pytest.mark.parametrize("pool", ["cls", "mean", "max"])
def test_head_fits_the_backbone(pool):
    head = nnx.eval_shape(lambda: Task(info(), pool=pool).head(like(), rngs=SameKey()))
    assert head.pool == pool and head.linear.kernel.shape == (16, CLASSES)


def test_wrong_settings_are_config_errors():
    with pytest.raises(UnknownName, match="unknown pooling 'maen'; did you mean 'mean'"):
        Task(info(), pool="maen")
    with pytest.raises(ConfigError, match=r"label_smoothing must be in \[0, 1\), not 1.0"):
        Task(info(), label_smoothing=1.0)
    with pytest.raises(ConfigError, match="data set 'test' has none"):
        Task(info(0))
    with pytest.raises(ConfigError, match="needs a backbone with a class token"):
        Task(info(), pool="cls").head(like(class_token=False), rngs=nnx.Rngs(1))
    with pytest.raises(UnknownName, match="'mixpu'; did you mean 'mixup'"):
        tasks.from_config(dict(name="classification", mixpu=1.0), info())
