import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.layers.resample import RULES, cubic, linear, resample, resize


@pytest.mark.parametrize("rule", RULES)
def test_a_ramp_stays_a_ramp(rule):
    ramp = np.zeros((1, 16, 2), np.float32)
    ramp[0, :, 0], ramp[0, :, 1] = np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)
    np.testing.assert_array_equal(resample(jnp.asarray(ramp), (4, 4), (4, 4), rule), ramp)
    wide = np.asarray(resample(jnp.asarray(ramp), (4, 4), (4, 8), rule)).reshape(4, 8, 2)
    if rule != "offset":
        np.testing.assert_allclose(wide[:, :, 0], np.arange(4)[:, None] + np.zeros(8), atol=1e-5)
        # Away from the border, a line stays that line, at half-pixel centres (but not with the
        # cubic of a = -0.75).
        middle = [1.296875, 1.703125] if rule == "cubic" else [1.25, 1.75]
        np.testing.assert_allclose(wide[1, 3:5, 1], middle, atol=1e-5)
    constant = resample(jnp.full((1, 16, 3), 2.5), (4, 4), (7, 3), rule)
    assert constant.shape == (1, 21, 3)
    np.testing.assert_allclose(constant, 2.5, rtol=1e-6)


def test_the_offset_moves_the_samples():
    """With the scale (n + 0.1) / m, sample i lies at (i + 0.5) m / (n + 0.1) - 0.5."""
    given = np.sin(np.arange(12))
    plain, moved = cubic(12, 18, 18 / 12) @ given, cubic(12, 18, 18.1 / 12) @ given
    assert 1e-3 < np.abs(plain - moved).max() < 0.2
    at = (9 + 0.5) * 12 / 18.1 - 0.5
    first = int(at) - 1
    x = np.abs(at - np.arange(first, first + 4))
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
    wanted = np.where(x <= 1, near, far) @ given[first : first + 4]
    np.testing.assert_allclose(moved[9], wanted, rtol=1e-9)


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 5), (3, 3), (127, 27)])
def test_linear_weights(old, new):
    matrix = linear(old, new)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    inner = (np.arange(new) + 0.5) * old / new - 0.5
    np.testing.assert_allclose(matrix @ np.arange(old), np.clip(inner, 0, old - 1))


@pytest.mark.parametrize("new", [(6, 10), (7, 9), (2, 3), (3, 5)])
def test_maps_are_resized_by_two_neighbours(new):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    rows, columns = linear(3, new[0]), linear(5, new[1])
    wanted = np.einsum("yh,xw,bhwc->byxc", rows, columns, x)
    np.testing.assert_allclose(resize(jnp.asarray(x), new), wanted, rtol=1e-5, atol=1e-6)
    half = resize(jnp.asarray(x, jnp.bfloat16), new)
    assert half.dtype == jnp.bfloat16
