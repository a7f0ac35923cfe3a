import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from dynadapt.data import Info, frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.tasks.segmentation import AUXILIARY, Task

CLASSES = ("sky", "road", "tree", "boat")
H, W = 12, 16


def info(classes=CLASSES, void=-1):
    labels = Field("labels", classes=classes, fill=void, size=(H, W))
    return Info("test", {"image": Field("pixels", size=(H, W)), "labels": labels}, {}, "")


def task(**settings):
    return Task(info(), head="fused", **settings)


def batch_of(labels, mask=None):
    labels = np.asarray(labels, np.int32)
    return {"labels": labels, "mask": np.ones(len(labels), np.float32) if mask is None else mask}


def drawn(seed, n=5, size=(H, W)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, len(CLASSES), (n, *size))
    return rng.normal(size=(n, *size, len(CLASSES))).astype(np.float32), labels


def sure(labels):
    """Logits of whoever knows the labels."""
    return 20.0 * np.eye(len(CLASSES), dtype=np.float32)[np.maximum(labels, 0)]


def rows_of(task, logits, labels):
    return jax.device_get(jax.jit(task.rows)((jnp.asarray(logits),), batch_of(labels)))


@pytest.mark.parametrize("normaliser", ["valid", "all"])
def test_the_loss_is_the_mean_over_pixels(normaliser):
    logits, labels = drawn(0)
    mask = np.array([1, 1, 1, 0, 1], np.float32)
    total, weight, logs = task(normaliser=normaliser).loss((logits,), batch_of(labels, mask))
    each = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(labels, 0))
    known = (labels >= 0) * mask[:, None, None]
    wanted = float((each * known).sum())
    assert float(total) == pytest.approx(wanted, rel=1e-5) and logs == {}
    assert float(weight) == (known.sum() if normaliser == "valid" else 4 * H * W)


def test_auxiliary_outputs_and_class_weights_join_the_loss():
    logits, labels = drawn(1)
    plain, weight, _ = task().loss((logits,), batch_of(labels))
    more, same, _ = task().loss((logits, logits), batch_of(labels))
    assert float(same) == float(weight)
    assert float(more) == pytest.approx((1 + AUXILIARY) * float(plain), rel=1e-5)
    weights = (0.0, 2.0, 0.0, 0.0)
    roads, _, _ = task(class_weights=weights).loss((logits,), batch_of(labels))
    only, _, _ = task().loss((logits,), batch_of(np.where(labels == 1, labels, -1)))
    assert float(roads) == pytest.approx(2 * float(only), rel=1e-5)


def test_a_crop_of_void_alone_teaches_nothing():
    logits, labels = drawn(2)
    total, weight, _ = task().loss((logits,), batch_of(np.full_like(labels, -1)))
    assert float(total) == float(weight) == 0.0


def test_perfect_and_trivial_answers_have_exact_figures():
    _, labels = drawn(3, n=20)
    found = task().value(rows_of(task(), sure(labels), labels))
    assert found["miou"] == found["macc"] == found["aacc"] == 100.0 and found["examples"] == 20
    assert found["classes"]["boat"] == {"iou": 100.0, "acc": 100.0}

    zero = np.zeros((20, H, W, len(CLASSES)), np.float32)
    found = task().value(rows_of(task(), zero, labels))  # always sky
    share = (labels == 0).sum() / (labels >= 0).sum()
    assert found["miou"] == pytest.approx(100 * share / 4) and found["macc"] == 25.0
    assert found["aacc"] == pytest.approx(100 * share)
    assert found["loss"] == pytest.approx(np.log(4), rel=1e-5)


def test_metrics_do_not_depend_on_batches():
    logits, labels = drawn(4, n=50)
    whole = task().value(rows_of(task(), logits, labels))
    parts = [rows_of(task(), logits[i : i + 7], labels[i : i + 7]) for i in range(0, 50, 7)]
    rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    assert task().value(rows)["classes"] == whole["classes"]
    assert task().value(rows)["miou"] == whole["miou"]


def test_logits_of_another_size_are_resized_to_the_labels():
    _, labels = drawn(5)
    coarse = labels[:, ::4, ::4].clip(0)
    fine = coarse.repeat(4, 1).repeat(4, 2)
    found = task().value(rows_of(task(), sure(coarse), fine))
    assert 50 < found["miou"] < 100


@pytest.mark.parametrize("void", [-1, 255, 2])
def test_void_counts_nowhere(void):
    made = Task(info(void=void), head="fused")
    labels = np.zeros((1, H, W), int)
    labels[0, :3] = void
    rows = rows_of(made, sure(np.zeros_like(labels)), labels)
    assert rows["labelled"].sum() == 9 * W and made.value(rows)["miou"] == 100.0


def example_of(labels, size, frame):
    return {"name": "a.png", "size": size, "frame": frame, "labels": labels}


def test_answers_come_back_to_the_pixels_of_the_stored_image():
    """An image of 24 x 40, brought to 12 x 20 and cut to its middle 12 x 16."""
    size = (24, 40)
    frame = frames.compose(frames.window(0, 0, *size, (12, 20)), frames.window(0, 2, H, W, (H, W)))
    labels = np.zeros((H, W), np.int32)
    labels[:, 8:] = 3
    made = task()
    answer = {
        "scores": np.asarray(made.answer((jnp.asarray(sure(labels)[None]),), {})["scores"])[0]
    }
    found = made.restored(answer, example_of(labels, size, frame))
    assert found.shape == size
    assert (found[:, 4:20] == 0).all() and (found[:, 20:36] == 3).all()
    assert (found[:, :4] == len(CLASSES)).all() and (found[:, 36:] == len(CLASSES)).all()
    record, written = made.record(answer, example_of(labels, size, frame))
    assert record["accuracy"] == 100.0 and record["classes"].startswith("sky 0.4")
    with Image.open(io.BytesIO(written[".png"])) as image:
        assert image.mode == "P"
        values = np.asarray(image)
    assert np.array_equal(values == 255, found == len(CLASSES))
    assert np.array_equal(values == 3, found == 3)
    drawn = made.draw(np.zeros((*size, 3), np.uint8), answer, example_of(labels, size, frame))
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3


def test_a_large_picture_is_restored_strip_by_strip(monkeypatch):
    rng = np.random.default_rng(6)
    answer = {"scores": rng.normal(size=(5, 7, 4)).astype(np.float16) - 9}
    frame = frames.window(0, 0, 3000, 900, (40, 56))
    example = example_of(np.zeros((40, 56), np.int32), (3000, 900), frame)
    found = task().restored(answer, example)
    small = frames.compose(frame, frames.window(0, 0, 40, 56, (5, 7)))
    whole = frames.unwarp(
        answer["scores"].astype(np.float32), Field("values"), small, (3000, 900), smooth=True
    )
    assert (found == whole.argmax(-1)).mean() > 0.9999


def test_masks_of_many_classes_have_16_bits():
    classes = tuple(map(str, range(300)))
    made = Task(info(classes), head="fused")
    scores = np.full((H, W, 300), -9, np.float16)
    scores[..., 299] = 0
    frame = frames.identity((H, W))
    _, written = made.record({"scores": scores}, {"name": "a", "size": (H, W), "frame": frame})
    with Image.open(io.BytesIO(written[".png"])) as image:
        assert image.mode.startswith("I;16") and (np.asarray(image) == 299).all()


def test_windows_see_the_whole_image():
    made = task(window=8, stride=5)
    images = jnp.asarray(np.random.default_rng(7).normal(size=(2, H, W, 3)), jnp.float32)
    (found,) = made.look(lambda x: (jnp.concatenate([x, x[..., :1]], -1)[:, ::2, ::2],), images)
    assert found.shape == (2, H, W, len(CLASSES))
    assert not hasattr(task(), "look")  # the model is called once, and what it records is kept


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(class_weights=(1.0,)), "4 classes"),
        (dict(class_weights=(1.0, -1.0, 1.0, 1.0)), "at least 0, not -1.0"),
        (dict(class_weights=("a", 1.0, 1.0, 1.0)), "at least 0, not 'a'"),
        (dict(window=-3), r"window must be in \[0, 8000\]"),
        (dict(stride=3), "window of 0"),
        (dict(window=8, stride=9), "window of 8"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        task(**settings)


def test_bad_names():
    with pytest.raises(UnknownName, match="valid"):
        task(normaliser="vaild")
    with pytest.raises(UnknownName, match="segformer"):
        Task(info(), head="segfromer")
    with pytest.raises(ConfigError, match="needs classes"):
        Task(info(()), head="fused")


def test_the_stored_pixels_are_judged_where_asked():
    """A picture of 24 x 32 whose transform halves it: a line of one pixel is lost there."""
    made, size = task(original=True), (2 * H, 2 * W)
    stored = np.zeros(size, np.int32)
    stored[1::8] = 3
    frame = frames.window(0, 0, *size, (H, W))
    scores = np.asarray(made.answer((jnp.asarray(sure(np.zeros((1, H, W), int))),), {})["scores"])
    example = {"name": "a", "size": size, "frame": frame, "stored": {"labels": stored}}
    rows = made.judge({"scores": scores[0]}, example)
    assert made.stored == ("labels",) and task().stored == ()
    assert rows["labelled"].tolist() == [21 * 2 * W, 0, 0, 3 * 2 * W]
    assert rows["intersection"].tolist() == [21 * 2 * W, 0, 0, 0]
    assert rows["predicted"].tolist() == [24 * 2 * W, 0, 0, 0]
