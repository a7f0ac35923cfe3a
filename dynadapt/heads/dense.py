"""One linear layer at every patch."""

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import Linear

Array = jax.Array


class DenseHead(nnx.Module):
    """Values `b h w targets`, in float32, from the last level of the features."""

    def __init__(self, dim: int, targets: int, *, rngs: nnx.Rngs):
        self.linear = Linear(dim, targets, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> Array:
        return self.linear(features.maps[-1].astype(jnp.float32), ctx)
