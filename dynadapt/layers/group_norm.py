"""Group normalisation, and the convolutions of detectors' towers that it follows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import Conv

Array = jax.Array

GROUPS = 32


class GroupNorm(nnx.GroupNorm):
    """Group normalisation of `b h w d` (Wu and He, arXiv 1803.08494) in float32, answered in the
    dtype of its input.

    There are 32 groups, or the most below that divide 32 and d.
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        groups = math.gcd(GROUPS, dim)
        super().__init__(dim, groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Array, ctx: Context | None = None) -> Array:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class ConvGroupNorm(nnx.Module):
    """A 3x3 convolution without bias, group norm and ReLU: `b h w d` to `b h w o`."""

    def __init__(self, dim: int, out: int, *, rngs: nnx.Rngs, **options: Any):
        self.conv = Conv(dim, out, (3, 3), use_bias=False, rngs=rngs, **options)
        self.norm = GroupNorm(out, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        return jax.nn.relu(self.norm(self.conv(x, ctx), ctx))
