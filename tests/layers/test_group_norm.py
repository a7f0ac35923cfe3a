import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers.group_norm import ConvGroupNorm, GroupNorm


@pytest.mark.parametrize(("dim", "groups"), [(64, 32), (48, 16), (6, 2)])
def test_group_norm_equals_numpy(dim, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (2, 3, 4, dim)).astype(np.float32)
    made = GroupNorm(dim, rngs=nnx.Rngs(0))
    made.scale[...] = jnp.asarray(rng.normal(size=dim), jnp.float32)
    made.bias[...] = jnp.asarray(rng.normal(size=dim), jnp.float32)
    parts = x.astype(np.float64).reshape(2, 12, groups, -1)
    parts = parts - parts.mean((1, 3), keepdims=True)
    parts = parts / np.sqrt(np.square(parts).mean((1, 3), keepdims=True) + 1e-5)
    wanted = parts.reshape(x.shape) * np.asarray(made.scale[...]) + np.asarray(made.bias[...])
    np.testing.assert_allclose(made(jnp.asarray(x)), wanted, atol=2e-5)
    half = made(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), wanted, atol=0.1)


def test_the_convolution_is_normed_and_cut_at_zero():
    made = ConvGroupNorm(2, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 3, 2)), jnp.float32)
    wanted = np.maximum(made.norm(made.conv(x)), 0)
    np.testing.assert_allclose(made(x, Context()), wanted, atol=1e-6)
    assert made.conv.bias is None and (wanted == 0).any()
