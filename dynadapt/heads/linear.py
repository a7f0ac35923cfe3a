"""Pooling and one linear layer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.layers import Linear
from dynadapt.layers.maximum import largest

Array = jax.Array

POOLINGS = ("cls", "mean", "max")
POOLED = "features/pooled"  # what a head records of what it sees


def made_for(like: Any, classes: int, *, pool: str, rngs: nnx.Rngs) -> "LinearHead":
    """The head for features like these; ConfigError where they have no class token to pool."""
    if pool == "cls" and not like.tokens.shape[1]:
        raise ConfigError("pool='cls' needs a backbone with a class token; use pool='mean'")
    return LinearHead(like.maps[-1].shape[-1], classes, pool=pool, rngs=rngs)


class LinearHead(nnx.Module):
    """Class logits `b c`, in float32, from the pooled last level of the features.

    Attributes:
        pool: "cls" (class token), "mean" or "max" over the patch tokens.
    """

    def __init__(self, dim: int, classes: int, *, pool: str, rngs: nnx.Rngs):
        self.pool = pool
        self.linear = Linear(dim, classes, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> Array:
        x = self.pooled(features).astype(jnp.float32)
        ctx.record(POOLED, x)
        return self.linear(x, ctx)

    def pooled(self, features: object) -> Array:
        """One vector for each image, `b d`."""
        if self.pool == "cls":
            return features.tokens[:, 0]
        last = features.maps[-1].astype(jnp.float32)
        if self.pool == "mean":
            return last.mean(tuple(range(1, last.ndim - 1)))
        return largest(last.reshape(last.shape[0], -1, last.shape[-1]))
