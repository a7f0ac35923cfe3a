"""What is left of a cloud to the points that are not: the head of masked pretraining."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import LayerNorm, Linear
from dynadapt.layers.maximum import largest
from dynadapt.layers.transformer import Attention, Block, Mlp

Array = jax.Array

HEADS, CODE = 4, 64


class ReconstructionHead(nnx.Module):
    """Of clouds with groups `b g d`: points `b g k 3` of each group, `b g 3` of the whole, a code.

    One block more, so that the backbone need not end in points, then a layer for the points of a
    group; a layer for the middles of all groups, from the class token; two layers for a code `b c`
    of the cloud, from class token and maximum.
    """

    def __init__(self, dim: int, groups: int, size: int, *, rngs: nnx.Rngs):
        # Spread from the start: points at one place would all follow the same one.
        spread = nnx.initializers.normal(0.5)
        self.position = Linear(3, dim, rngs=rngs)
        attn = Attention(dim, HEADS, epsilon=1e-5, rngs=rngs)
        self.block = Block(attn, Mlp(dim, 2 * dim, act="gelu", epsilon=1e-5, rngs=rngs))
        self.norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.points = Linear(dim, 3 * size, bias_init=spread, rngs=rngs)
        self.whole = Linear(dim, 3 * groups, bias_init=spread, rngs=rngs)
        self.code1 = Linear(2 * dim, dim, rngs=rngs)
        self.code2 = Linear(dim, CODE, rngs=rngs)

    def __call__(self, features: Any, ctx: Context) -> tuple[Array, Array, Array]:
        groups, token = (x.astype(jnp.float32) for x in (features.maps[-1], features.tokens[:, 0]))
        b, g, _ = groups.shape
        inner = ctx.replace(grid=(g, 1), prefix=0)
        x = self.block(groups + self.position(features.places[1], ctx), inner)
        points = self.points(self.norm(x, ctx), ctx).reshape(b, g, -1, 3)
        seen = jnp.concatenate([token, largest(groups)], axis=-1)
        code = self.code2(nnx.relu(self.code1(seen, ctx)), ctx)
        return points, self.whole(token, ctx).reshape(b, -1, 3), code
