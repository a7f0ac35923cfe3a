"""One token of each block's own for all later blocks, in a sequence that keeps its length.

The first block makes room for the tokens of all, behind the leading ones. What lies in a free place
is no token: nothing attends to it, and `mean_of_tokens` leaves it out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynadapt.context import Context, join_map, split_map

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Places:
    """Where blocks put their tokens.

    Attributes:
        first: number of the first block that puts one.
        count: of the blocks that do, one after another.
    """

    first: int
    count: int

    @classmethod
    def of(cls, blocks: Sequence[tuple[str, Any]]) -> "Places":
        """Those of blocks by path, such as `blocks/3`, as `attach.sites` finds them."""
        return cls(int(blocks[0][0].rpartition("/")[2]), len(blocks))

    def entered(self, x: Array, ctx: Context) -> tuple[Array, Context]:
        """Tokens `b p+count+hw d` of `b p+hw d` or of those with room, and which are there."""
        leading, m = split_map(x, ctx)
        if leading.shape[1] == ctx.prefix:
            room = jnp.zeros((x.shape[0], self.count, x.shape[2]), x.dtype)
            x = join_map(jnp.concatenate([leading, room], axis=1), m)
        taken = jnp.arange(self.count) < ctx.number - self.first
        sides = [jnp.ones(n) for n in (ctx.prefix, x.shape[1] - ctx.prefix - self.count)]
        return x, ctx.replace(seen=jnp.concatenate([sides[0], taken, sides[1]]))

    def put(self, x: Array, token: Array, ctx: Context) -> Array:
        """The tokens with this block's own, `b d`, at its place."""
        here = jnp.arange(x.shape[1]) == ctx.prefix + ctx.number - self.first
        return jnp.where(here[None, :, None], token.astype(x.dtype)[:, None], x)
