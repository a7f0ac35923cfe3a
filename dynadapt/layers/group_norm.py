"""Group normalisation, and convolutions that it follows."""

import math
from typing import Any

import jax
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import Conv

Array = jax.Array

GROUPS = 32


class GroupNorm(nnx.GroupNorm):
    """Group normalisation of `b h w d` in float32, answered in the dtype of `x`.

    There are `GROUPS` groups, or the greatest common divisor of that and d.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        groups = math.gcd(GROUPS, dim)
        super().__init__(dim, groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        return super().__call__(x).astype(x.dtype)


class ConvGroup(nnx.Module):
    """A 3x3 convolution without bias, group norm and ReLU: `b h w d` to `b h w o`."""

    def __init__(self, dim: int, out: int, *, rngs: nnx.Rngs, **options: Any):
        self.conv = Conv(dim, out, (3, 3), use_bias=False, rngs=rngs, **options)
        self.norm = GroupNorm(out, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        return jax.nn.relu(self.norm(self.conv(x, ctx), ctx))
