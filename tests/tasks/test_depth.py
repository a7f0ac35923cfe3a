import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dynadapt.data import Info, frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.tasks.depth import Task

H, W = 10, 14
INFO = Info("test", {"image": Field("pixels"), "depth": Field("values", size=(H, W))}, {}, "")


def task(**settings):
    return Task(INFO, **{"head": "fused", **settings})


def logits_of(depth, most=10.0):
    share = np.asarray(depth, np.float64) / most
    return (jnp.asarray(np.log(share / (1 - share)), jnp.float32)[..., None],)


def drawn(seed, n=4, size=(H, W)):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 9.5, (n, *size)).astype(np.float32)
    target[rng.random(target.shape) < 0.2] = 0
    return rng.uniform(0.5, 9.5, (n, *size)), target


def batch_of(target, mask=None):
    return {"depth": target, "mask": np.ones(len(target), np.float32) if mask is None else mask}


@pytest.mark.parametrize("loss", ["silog", "silog_image", "l1"])
def test_the_loss_leaves_out_what_is_invalid_or_padding(loss):
    depth, target = drawn(0)
    made, mask = task(loss=loss), np.array([1, 1, 1, 0], np.float32)
    total, weight, _ = made.loss(logits_of(depth), batch_of(target, mask))
    other, changed = target.copy(), depth.copy()
    other[3], changed[target == 0] = 1.0, 5.0
    same, _, _ = made.loss(logits_of(changed), batch_of(other, mask))
    assert float(same) == pytest.approx(float(total), rel=1e-5)
    valid = target[:3] > 0
    d = np.log(target[:3][valid]) - np.log(depth[:3][valid])
    wanted = {
        "l1": (abs(target[:3] - depth[:3])[valid].sum(), valid.sum()),
        "silog": (3 * np.sqrt((d**2).mean() - 0.5 * d.mean() ** 2), 3),
    }
    if loss in wanted:
        assert (float(total), float(weight)) == pytest.approx(wanted[loss], rel=1e-4)
    assert made.whole_batch == (loss == "silog")


@pytest.mark.parametrize("loss", ["silog", "silog_image", "l1"])
def test_an_image_without_depth_teaches_nothing(loss):
    depth, target = drawn(1)
    target[:2] = 0
    made = task(loss=loss)

    def mean(x, target):
        total, weight, _ = made.loss((x,), batch_of(target))
        return total / jnp.maximum(weight, 1)

    (x,) = logits_of(depth)
    slope = jax.grad(mean)(x, jnp.asarray(target))
    assert np.isfinite(slope).all() and not np.asarray(slope)[:2].any()
    assert not np.asarray(jax.grad(mean)(x, jnp.zeros_like(target))).any()


def test_perfect_and_constant_answers_have_exact_figures():
    _, target = drawn(2, n=20)
    made = task()
    rows = jax.device_get(
        jax.jit(made.rows)(logits_of(np.where(target, target, 1)), batch_of(target))
    )
    found = made.value(rows)
    assert found["abs_rel"] < 1e-5 and found["d1"] == found["pooled/d3"] == 100.0
    assert found["examples"] == 20
    rows = jax.device_get(
        jax.jit(made.rows)(logits_of(np.full_like(target, 2.0)), batch_of(target))
    )
    found, valid = made.value(rows), target > 0
    images = [(abs(t[t > 0] - 2) / t[t > 0]).mean() for t in target]
    assert found["abs_rel"] == pytest.approx(np.mean(images), rel=1e-5)
    pooled = (abs(target - 2) / np.where(valid, target, 1))[valid].mean()
    assert found["pooled/abs_rel"] == pytest.approx(pooled, rel=1e-5)


def test_truths_beyond_the_range_are_left_out_of_the_evaluation():
    depth, target = drawn(3)
    made = task(most=8.0, least=1.0)
    rows = jax.device_get(made.rows(logits_of(np.minimum(depth, 7.9), 8.0), batch_of(target)))
    assert rows["pixels"].tolist() == ((target > 1) & (target < 8)).sum((1, 2)).tolist()
    with pytest.raises(ConfigError, match="no pixel has a depth"):
        made.value({k: np.zeros_like(v) for k, v in rows.items()})


def test_the_mirror_image_is_looked_at_too():
    made = task(flip=True)
    images = jnp.asarray(np.random.default_rng(4).normal(size=(2, H, W, 3)), jnp.float32)
    outputs = made.look(lambda x: (x[..., :1] + jnp.arange(W)[None, None, :, None] / 9,), images)
    ramp = np.arange(W)[None, None] / 9
    sides = [10 / (1 + np.exp(-(images[..., 0] + r))) for r in (ramp, ramp[..., ::-1])]
    np.testing.assert_allclose(made.metres(outputs), sum(sides) / 2, rtol=1e-5)


def test_the_eigen_crop_wants_its_size():
    depth, target = drawn(5)
    with pytest.raises(ConfigError, match="480 x 640"):
        task(crop="eigen").rows(logits_of(depth), batch_of(target))
    target = np.ones((1, 480, 640), np.float32)
    rows = task(crop="eigen").rows(logits_of(np.ones((1, 6, 8))), batch_of(target))
    assert int(rows["pixels"][0]) == (471 - 45) * (601 - 41)


def test_answers_come_back_in_millimetres():
    made, size = task(), (20, 28)
    frame = frames.window(0, 0, *size, (H, W))
    depth = np.full((5, 7), 1.2346, np.float32)
    example = {"name": "a.png", "size": size, "frame": frame, "depth": np.ones((H, W), np.float32)}
    record, written = made.record({"depth": depth}, example)
    assert record == {"file": "a.png", "nearest": 1.2346, "median": 1.2346, "farthest": 1.2346}
    with Image.open(io.BytesIO(written[".png"])) as image:
        assert image.mode.startswith("I;16") and image.size == size[::-1]
        assert (np.asarray(image) == 1235).all()
    picture = made.draw(np.zeros((*size, 3), np.uint8), {"depth": depth}, example)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_depth_beyond_16_bits_is_cut():
    example = {"name": "a", "size": (2, 2), "frame": frames.identity((2, 2))}
    _, written = task().record({"depth": np.full((2, 2), 100.0, np.float32)}, example)
    with Image.open(io.BytesIO(written[".png"])) as image:
        assert (np.asarray(image) == 65535).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [(dict(least=0.0), "above 0"), (dict(most=1.0, least=2.0), "below most"),
     (dict(variance=1.5), r"in \[0, 1\]")],
)  # fmt: skip
def test_bad_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        task(**settings)


@pytest.mark.parametrize("settings", [dict(loss="sillog"), dict(crop="egen"), dict(head="fusd")])
def test_bad_names(settings):
    with pytest.raises(UnknownName):
        task(**settings)


def test_the_stored_pixels_are_judged_where_asked():
    """A picture whose transform halves it and cuts a margin off: the line is lost in the half."""
    made, size = task(original=True), (2 * H + 4, 2 * W)
    stored = np.full(size, 2.0, np.float32)
    stored[5], stored[6], stored[7] = 4.0, 0.0, 20.0
    frame = frames.window(2, 0, 2 * H, 2 * W, (H, W))
    answer = made.answer(logits_of(np.full((1, H, W), 2.0)), {})
    example = {"name": "a", "size": size, "frame": frame, "stored": {"depth": stored}}
    rows = made.judge({"depth": np.asarray(answer["depth"][0])}, example)
    assert made.stored == ("depth",) and task().stored == ()
    assert int(rows["pixels"]) == (2 * H - 2) * 2 * W
    assert float(rows["abs_rel"]) == pytest.approx(0.5 * 2 * W, rel=1e-5)
    batch = batch_of(np.full((1, H, W), 2.0, np.float32))
    device = made.rows(logits_of(np.full((1, H, W), 2.0)), batch)
    assert {k: (v.shape, v.dtype) for k, v in device.items()} == {
        k: ((1,), v.dtype) for k, v in rows.items()
    }


def test_the_eigen_crop_is_of_the_stored_pixels_where_these_are_judged():
    made = task(original=True, crop="eigen")
    batch = batch_of(np.full((1, H, W), 2.0, np.float32))
    made.rows(logits_of(np.full((1, H, W), 2.0)), batch)
    stored = np.full((480, 640), 2.0, np.float32)
    example = {"name": "a", "size": stored.shape, "stored": {"depth": stored}}
    example["frame"] = frames.window(0, 0, 480, 640, (H, W))
    rows = made.judge({"depth": np.full((H, W), 2.0, np.float32)}, example)
    assert int(rows["pixels"]) == 426 * 560
    example["stored"] = {"depth": stored[:400]}
    example["size"] = (400, 640)
    with pytest.raises(ConfigError, match="the stored image has 400 x 640"):
        made.judge({"depth": np.full((H, W), 2.0, np.float32)}, example)
