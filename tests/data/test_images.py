import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.data import images
from dynadapt.errors import UnknownName


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
