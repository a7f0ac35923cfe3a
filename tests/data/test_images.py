import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dynadapt.data import images
from dynadapt.errors import DataError, UnknownName


@pytest.fixture
def photo():
    y, x = np.mgrid[:30, :40]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_decodes_exactly(photo, encode):
    assert np.array_equal(images.decode(encode(photo)), photo)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_every_mode_becomes_rgb(photo, mode):
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    out = images.decode(save(Image.fromarray(photo).convert(mode), kind))
    assert out.dtype == np.uint8
    assert out.shape == photo.shape
    reference = np.asarray(Image.fromarray(photo).convert(mode).convert("RGB"), int)
    assert np.abs(out - reference).mean() < (3 if kind == "JPEG" else 1e-9)


def test_transparency_is_dropped(photo):
    alpha = np.full((30, 40, 1), 9, np.uint8)
    assert np.array_equal(
        images.decode(save(Image.fromarray(np.concatenate([photo, alpha], -1)), "PNG")), photo
    )
    palette = Image.fromarray(photo).quantize(8)
    transparent = save(palette, "PNG", transparency=bytes(range(8)))
    assert np.array_equal(images.decode(transparent), np.asarray(palette.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_cut():
    grey = np.array([[0, 257 * 10, 257 * 128, 65535]], np.uint16)
    out = images.decode(save(Image.fromarray(grey), "PNG"))
    assert out[0, :, 0].tolist() == [0, 10, 128, 255]


def test_arrays_become_rgb(photo):
    assert images.decode(photo) is not None
    assert np.array_equal(images.decode(photo[..., 0]), np.repeat(photo[..., :1], 3, -1))
    assert np.array_equal(images.decode(photo[..., :1]), np.repeat(photo[..., :1], 3, -1))
    assert np.array_equal(images.decode(np.concatenate([photo, photo[..., :1]], -1)), photo)
    for wrong in (photo.astype(np.float32), photo[..., :2], photo[:0], photo[None]):
        with pytest.raises(DataError, match="train.3. is .* must be uint8"):
            images.decode(wrong, "train[3]")


def test_broken_files_are_named(photo, encode):
    whole = encode(photo, "JPEG")
    for broken in (b"", b"not an image", whole[: len(whole) // 2], encode(photo)[:60]):
        with pytest.raises(DataError, match="cannot decode cats/7.jpg"):
            images.decode(broken, "cats/7.jpg")


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
