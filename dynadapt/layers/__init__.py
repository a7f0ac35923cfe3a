"""Layers that compute in the dtype of their input; norms run in float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers.quantised import frugal

Array = jax.Array

# Kaiming uniform with a = sqrt(5), as PyTorch starts a linear layer: within 1 / sqrt(fan in).
kaiming = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _follow_input(values: tuple, *, dtype: Any = None) -> tuple:
    del dtype
    return tuple(None if v is None else v.astype(values[0].dtype) for v in values)


class SameKey:
    """In place of `nnx.Rngs` where only shapes count: one key for all draws of all streams.

    `nnx.Rngs` counts its draws, which is most of the time of tracing a network's making.
    """

    def __call__(self) -> Array:
        return jax.random.key(0)

    def __getattr__(self, stream: str) -> "SameKey":
        if stream.startswith("_"):
            raise AttributeError(stream)
        return self


class Linear(nnx.Linear):
    """`x @ kernel + bias` in the dtype of `x`; the context is for an adapter on it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, promote_dtype=_follow_input, **kwargs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        # Two axes: on CPU the gradient of the kernel takes a quarter of the time of three.
        y = frugal(super().__call__, self.kernel)(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Generator(Linear):
    """A linear layer whose answers are weights: `x @ kernel / fan in + bias`.

    Adam moves every entry of a kernel by the rate, whatever its gradient. So a plain layer moves
    its answer to standard inputs by the rate times the fan in at one step; this one by about the
    rate, as a weight that is learned itself. Ours, after width-aware parametrisation (muP).

    Args:
        dim: fan in.
        out: weights that are made.
        spread: standard deviation of the answers at the start, for standard inputs.
    """

    def __init__(self, dim: int, out: int, *, spread: float = 0.0, **kwargs: Any):
        start = nnx.initializers.normal(spread * dim**0.5)
        super().__init__(dim, out, kernel_init=start, **kwargs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        return super().__call__(x / self.in_features)


class Conv(nnx.Conv):
    """Convolution of `b h w c` in the dtype of its input."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, promote_dtype=_follow_input, **kwargs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        return frugal(super().__call__, self.kernel)(x)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32, answered in the dtype of `x`."""

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class Affine(nnx.Module):
    """A scale and a shift of each channel of `... d`, drawn around the identity."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        # As published: normal around the identity.
        draw = functools.partial(jax.random.normal, shape=(dim,))
        self.scale = nnx.Param(1.0 + 0.02 * draw(rngs.params()))
        self.shift = nnx.Param(0.02 * draw(rngs.params()))

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        row = (1,) * (x.ndim - 1) + (-1,)
        scale, shift = (v[...].astype(x.dtype).reshape(row) for v in (self.scale, self.shift))
        return x * scale + shift


def standard(x: Array) -> Array:
    """`... d` with mean 0 and deviation 1 over the last axis, in float32; equal entries give 0."""
    d = x.shape[-1]
    return layer_norm(x.astype(jnp.float32), jnp.ones(d), jnp.zeros(d), 1e-6)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalises `x`, `... d`, over its last axis; saves only `x` and one mean and scale a row.

    Its own derivative, since automatic differentiation saves several arrays of the size of `x`.
    """
    return _norm_forward(x, scale, bias, epsilon)[0]


def _norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * rate * _row(scale, x) + _row(bias, x)
    return y.astype(x.dtype), (x, scale, bias, mean, rate)


def _norm_backward(epsilon: float, saved: tuple, g: Array) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, rate = saved
    g, unit = g.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rate
    inner = g * _row(scale, x)
    along = unit * (inner * unit).mean(-1, keepdims=True)
    dx = rate * (inner - inner.mean(-1, keepdims=True) - along)
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = (g * unit).sum(rows), g.sum(rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


def _row(v: Array, like: Array) -> Array:
    return v.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))


layer_norm.defvjp(_norm_forward, _norm_backward)


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation `x * sigmoid(1.702 x)`."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu_tanh": jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=True)),
    "quick_gelu": jax.checkpoint(quick_gelu),
}
