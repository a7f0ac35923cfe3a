import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dynadapt.data import images
from dynadapt.errors import ConfigError, UnknownName


@pytest.fixture
def photo():
    y, x = np.mgrid[:30, :40]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)


def test_resize_is_pillow_bicubic(photo):
    out = images.resize(photo, 12)
    assert np.array_equal(out, Image.fromarray(photo).resize((12, 12), Image.Resampling.BICUBIC))
    assert images.resize(photo, 10, 16).shape == (10, 16, 3)
    assert not np.array_equal(out, images.resize(photo, 12, method="bilinear"))


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(images.resize(stripes, 16).astype(int)[:, 2:-2] - 127).max() <= 2


def test_resize_short_keeps_the_aspect(photo):
    assert images.resize_short(photo, 15).shape == (15, 20, 3)
    assert images.resize_short(photo.transpose(1, 0, 2), 15).shape == (20, 15, 3)
    assert images.resize_short(photo, 7).shape[0] == 7


def test_crops(photo):
    assert np.array_equal(images.center_crop(photo, 10), photo[10:20, 15:25])
    seen = set()
    for seed in range(300):
        out = images.random_crop(photo, 28, rng=np.random.default_rng(seed))
        top, left = out[0, 0, 1] // 8, out[0, 0, 0] // 6
        assert np.array_equal(out, photo[top : top + 28, left : left + 28])
        seen.add((top, left))
    assert len(seen) == 3 * 13  # every place, the last row and column too
    padded = images.random_crop(photo[:28, :28], 28, padding=4, rng=np.random.default_rng(1))
    assert padded.shape == (28, 28, 3)
    with pytest.raises(ConfigError, match=r"30 x 40 pixels; put resize_short\(31\) before it"):
        images.center_crop(photo, 31)


def test_random_resized_crop_areas_and_aspects():
    y, x = np.mgrid[:100, :160]
    place = np.stack([x, y, x], -1).astype(np.uint8)  # each pixel says where it comes from
    areas, aspects = [], []
    for seed in range(200):
        out = images.random_resized_crop(
            place, 50, scale=(0.2, 0.5), method="nearest", rng=np.random.default_rng(seed)
        ).astype(int)
        wide, high = np.ptp(out[..., 0]) * 50 / 49, np.ptp(out[..., 1]) * 50 / 49
        areas.append(wide * high / place[..., 0].size)
        aspects.append(wide / high)
    assert 0.18 < min(areas) < 0.25 and 0.45 < max(areas) < 0.53
    assert 0.7 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.42
    strip = np.zeros((4, 400, 3), np.uint8)
    assert images.random_resized_crop(strip, 8, rng=np.random.default_rng(0)).shape == (8, 8, 3)


def test_flip(photo):
    flipped = [images.flip(photo, rng=np.random.default_rng(s))[0, 0, 0] != 0 for s in range(400)]
    assert 0.4 < np.mean(flipped) < 0.6
    assert np.array_equal(images.flip(photo, 1, rng=np.random.default_rng(0)), photo[:, ::-1])
    assert images.flip(photo, 0.0, rng=np.random.default_rng(0)) is photo


def test_pipelines_apply_from_left_to_right(photo):
    example = {"image": photo, "label": 3, "name": "x"}
    run = images.pipeline("resize_short(20) | center_crop(16)")
    assert not run.random
    out = run(example, None)
    assert np.array_equal(out["image"], images.center_crop(images.resize_short(photo, 20), 16))
    assert out["label"] == 3
    assert example["image"] is photo
    assert images.pipeline("").random is False
    assert images.pipeline("resize(8)|flip").random
    one = images.pipeline("random_resized_crop(8, scale=(0.5, 1))|flip(p=0.5)")
    assert np.array_equal(
        one(example, np.random.default_rng(5))["image"],
        one(example, np.random.default_rng(5))["image"],
    )


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("resise(32)", UnknownName, "did you mean 'resize'"),
        ("resize(32", ConfigError, "cannot read the transforms"),
        ("resize(32)||flip", ConfigError, "cannot read the transforms"),
        ("resize", ConfigError, "missing a required argument: 'size'"),
        ("resize(side=32)", ConfigError, "does not fit"),
        ("resize(32, image=1)", ConfigError, "does not fit"),
        ("flip(rng=3)", ConfigError, "does not fit"),
        ("resize(2 * 16)", ConfigError, "must be literals"),
        ("resize(__import__('os'))", ConfigError, "must be literals"),
        ("images.resize(3)", ConfigError, "is not a transform"),
        ("resize(32) + flip", ConfigError, "is not a transform"),
        ("resize(0)", ConfigError, "a whole number of at least 1"),
        ("resize(32.0)", ConfigError, "a whole number"),
        ("resize('a')", ConfigError, "a whole number"),
        ("resize(32, method='bicubik')", UnknownName, "did you mean 'bicubic'"),
        ("flip(2)", ConfigError, "between 0 and 1"),
        ("random_resized_crop(8, scale=(1, 0.5))", ConfigError, "low, high"),
        ("random_resized_crop(8, scale=0.5)", ConfigError, "low, high"),
    ],
)
def test_wrong_pipelines_are_refused_when_read(text, error, message):
    with pytest.raises(error, match=message):
        images.pipeline(text)


@pytest.mark.parametrize("name", images.NORMALISATIONS)
def test_normalise(name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    mean, std = (np.array(v) for v in images.NORMALISATIONS[name])
    with jax.numpy_rank_promotion("raise"):
        out = jax.jit(lambda x: images.normalise(x, name))(pixels)
        half = images.normalise(pixels, name, jnp.bfloat16)
    assert out.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    np.testing.assert_allclose(out, (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half.astype(jnp.float32), out, rtol=2**-8, atol=1e-4)


def test_normalisation_names():
    assert set(images.NORMALISATIONS) == {"imagenet", "inception", "unit", "clip"}
    corners = images.normalise(
        np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, -1), "inception"
    )
    assert corners.ravel().tolist() == [-1] * 3 + [1] * 3
    with pytest.raises(UnknownName, match="did you mean 'imagenet'"):
        images.normalise(np.zeros((1, 2, 2, 3), np.uint8), "imagent")
