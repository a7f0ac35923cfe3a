import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.layers.maximum import largest


def test_values_and_gradients():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(largest(x), x.max(1))
    weights = jnp.arange(1, 5, dtype=jnp.float32)[None]
    slopes = np.asarray(jax.grad(lambda x: (largest(x) * weights).sum())(jnp.asarray(x)))
    wanted = (x == x.max(1, keepdims=True)) * np.arange(1, 5)
    np.testing.assert_array_equal(slopes, wanted)


def test_of_equal_entries_the_first_has_the_gradient():
    slopes = np.asarray(jax.grad(lambda x: largest(x).sum())(jnp.ones((1, 3, 2))))
    np.testing.assert_array_equal(slopes[0], [[1, 1], [0, 0], [0, 0]])


def test_gradients_behind_a_scale_and_a_shift_are_finite():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(16, 6, 8)).astype(np.float32)
    scale, shift = rng.normal(size=(2, 8)).astype(np.float32)

    @jax.jit
    def slopes(x, scale, shift):
        return jax.grad(lambda x: largest(x * scale[None, None] + shift[None, None]).sum())(x)

    assert np.isfinite(slopes(x, scale, shift)).all()
