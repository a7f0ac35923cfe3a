import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.targets.windows import slide, starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "wanted"),
    [(37, 16, 10, [0, 10, 20, 21]), (36, 16, 10, [0, 10, 20]), (16, 16, 10, [0]), (9, 16, 10, [0]),
     (512, 512, 341, [0]), (683, 512, 341, [0, 171])],
)  # fmt: skip
def test_windows_cover_a_length(length, window, stride, wanted):
    assert starts(length, window, stride) == wanted


@pytest.mark.parametrize(("window", "stride"), [((5, 4), (3, 2)), ((20, 20), (7, 7))])
def test_what_sees_single_pixels_is_the_same_in_windows(window, stride):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, 9, 3)), jnp.float32)
    found = slide(lambda part: jnp.tanh(part)[..., :2], x, window, stride)
    np.testing.assert_allclose(found, jnp.tanh(x)[..., :2], atol=1e-6)


def test_pixels_are_means_over_the_windows_that_see_them():
    x = jnp.arange(6.0).reshape(1, 1, 6, 1)
    found = slide(lambda part: jnp.broadcast_to(part.mean(), part.shape), x, (1, 4), (1, 2))
    first, second = 1.5, 3.5  # means of 0..3 and 2..5
    wanted = [first, first, 2.5, 2.5, second, second]
    np.testing.assert_allclose(found.ravel(), wanted)
