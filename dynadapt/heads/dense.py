"""One linear layer at every position of a map."""

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context, dropout
from dynadapt.layers import Linear

Array = jax.Array
Initializer = jax.nn.initializers.Initializer

_small = nnx.initializers.normal(0.01)


class Pixelwise(nnx.Module):
    """Outputs `b h w o`, in float32, of maps `b h w d`: dropout of whole channels, then linear.

    Attributes:
        rate: of the dropout.
        site: name of its random choice.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        rate: float = 0.0,
        site: str = "",
        kernel_init: Initializer = _small,
        rngs: nnx.Rngs,
    ):
        self.rate, self.site = rate, site
        self.linear = Linear(dim, outputs, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        x = dropout(x, self.rate, ctx, self.site, channels=True)
        return self.linear(x.astype(jnp.float32), ctx)


class DenseHead(Pixelwise):
    """Values `b h w targets`, in float32, from the last level of the features; at first zero."""

    def __init__(self, dim: int, targets: int, *, rngs: nnx.Rngs):
        super().__init__(dim, targets, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> Array:
        return super().__call__(features.maps[-1], ctx)
