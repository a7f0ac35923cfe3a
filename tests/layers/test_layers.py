import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import ACTIVATIONS, LayerNorm, Linear, SameKey

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def filled(layer, seed):
    """The layer with random values in place of its ones and zeros."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), nnx.state(layer))
    nnx.update(layer, state)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_linear_computes_in_the_dtype_of_its_input(dtype, stored):
    layer = filled(Linear(6, 4, param_dtype=stored, rngs=nnx.Rngs(0)), 1)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 5, 6)), dtype)
    y = layer(x, Context())
    assert y.dtype == dtype and layer.kernel[...].dtype == stored
    kernel, bias = (np.asarray(v[...], np.float64) for v in (layer.kernel, layer.bias))
    wanted = np.asarray(x, np.float64) @ kernel + bias
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=3e-2, atol=5e-2)
    np.testing.assert_array_equal(y, layer(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_layer_norm_computes_in_float32(dtype, stored):
    layer = filled(LayerNorm(64, epsilon=1e-6, param_dtype=stored, rngs=nnx.Rngs(0)), 3)
    # A large mean with a small spread: in half precision the variance would be lost.
    x = jnp.asarray(30 + np.random.default_rng(4).normal(size=(2, 3, 64)), dtype)
    y = layer(x, Context())
    assert y.dtype == dtype
    full = np.asarray(x, np.float64)
    scale, bias = (np.asarray(v[...], np.float64) for v in (layer.scale, layer.bias))
    centred = full - full.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(full.var(-1, keepdims=True) + 1e-6) * scale + bias
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2, jnp.float16: 2e-3}[dtype]
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_layer_norm_gradients_equal_those_without_recomputation():
    layer = filled(LayerNorm(8, rngs=nnx.Rngs(0)), 5)
    graph, state = nnx.split(layer)
    x, weight = np.random.default_rng(6).normal(size=(2, 4, 8)).astype(np.float32)

    def own(state, x):
        return (nnx.merge(graph, state)(x) * weight).sum()

    def plain(state, x):
        return (nnx.LayerNorm.__call__(nnx.merge(graph, state), x) * weight).sum()

    found, wanted = (jax.grad(f, (0, 1))(state, x) for f in (own, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_activations():
    from math import erf, exp, pi, sqrt, tanh

    wanted = {
        "none": lambda x: x,
        "relu": lambda x: max(x, 0.0),
        "silu": lambda x: x / (1 + exp(-x)),
        "gelu": lambda x: x * 0.5 * (1 + erf(x / sqrt(2))),
        "gelu_tanh": lambda x: 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
        "quick_gelu": lambda x: x / (1 + exp(-1.702 * x)),
    }
    assert ACTIVATIONS.keys() == wanted.keys()
    x = np.linspace(-3, 3, 13)
    for name, act in ACTIVATIONS.items():
        np.testing.assert_allclose(act(jnp.asarray(x)), [wanted[name](v) for v in x], atol=1e-6)


def test_one_key_stands_for_all_streams():
    """An adapter of a user's own may draw from any stream, or from none by name."""

    def make(rngs):
        return [jax.random.normal(k, (2, 3)) for k in (rngs.params(), rngs.masks(), rngs())]

    found, wanted = (
        jax.eval_shape(lambda r=r: make(r(0))) for r in (lambda _: SameKey(), nnx.Rngs)
    )
    assert found == wanted
    assert SameKey().params().dtype == nnx.Rngs(0).params().dtype
