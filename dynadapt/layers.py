"""Layers that compute in the dtype of their input; norms run in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context

Array = jax.Array


def _follow_input(values: tuple, *, dtype: Any = None) -> tuple:
    del dtype
    return tuple(None if v is None else v.astype(values[0].dtype) for v in values)


class Linear(nnx.Linear):
    """`x @ kernel + bias` in the dtype of `x`; the context is for an adapter on it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, promote_dtype=_follow_input, **kwargs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        return super().__call__(x)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32, answered in the dtype of `x`.

    Its intermediates are recomputed in the backward pass: cheaper than saving them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, use_fast_variance=False, **kwargs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        bare = super().__call__
        return jax.checkpoint(lambda x: bare(x.astype(jnp.float32)))(x).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation `x * sigmoid(1.702 x)`."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu_tanh": jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=True)),
    "quick_gelu": jax.checkpoint(quick_gelu),
}
