"""Mona (Yin et al., arXiv 2408.08345): a bottleneck with depth-wise convolutions of three sizes.

    z = LN(u) * gamma + u * gamma_x                 u: tokens after a branch has been added
    h = Down(z)
    h <- h + (DW3(h) + DW5(h) + DW7(h)) / 3         depth-wise, over the map of patch tokens
    h <- h + Conv1x1(h)
    u <- u + Up(dropout(gelu(h)))

One follows the residual addition of each branch. Its host is that branch, which gives y instead of
x + y: the adapter gives y + f(x + y), so that the block's own addition makes Mona(x + y). Leading
tokens pass the depth-wise step by and share the rest (ours; the published model has none). At the
start gamma is 1e-6, gamma_x 1, and every layer uniform within 1 / sqrt(fan in), as in the authors'
code: unlike most methods it does not start at zero effect. Count at rank r for each of 2 L sites:
2 d r + 5 d + r + 83 r + 3 r + r^2 + r.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_map, check_rank, check_rate, rank_of_width
from dynadapt.attach import attach
from dynadapt.context import Context, dropout, join_map, split_map
from dynadapt.dynamic import depthwise
from dynadapt.layers import ACTIVATIONS, LayerNorm, Linear, kaiming

Array = jax.Array
TRAINS = ()
NOT_MERGEABLE = "a norm and a GELU stand around its convolutions"
# A benchmark prints these; the authors' code has 3,667,456 and 5,267,712, as here.
PRINTED = {"swin_b": "4.16 M", "swin_l": "5.08 M"}

_SITES = f"{BLOCK}/(?:attn|mlp)"


def _bias(rngs: nnx.Rngs, size: int, fan_in: int) -> Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(rngs.params(), (size,), jnp.float32, -bound, bound)


def _linear(dim_in: int, dim_out: int, rngs: nnx.Rngs) -> Linear:
    layer = Linear(dim_in, dim_out, kernel_init=kaiming, rngs=rngs)
    layer.bias[...] = _bias(rngs, dim_out, dim_in)
    return layer


class Depthwise(nnx.Module):
    """A convolution of each channel of maps `b h w r` alone; `kernel` is `k k 1 r`."""

    def __init__(self, rank: int, side: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kaiming(rngs.params(), (side, side, 1, rank)))
        self.bias = nnx.Param(_bias(rngs, rank, side * side))

    def __call__(self, m: Array) -> Array:
        kernel = jnp.squeeze(self.kernel[...], 2)
        y = depthwise(m, jnp.broadcast_to(kernel, (m.shape[0], *kernel.shape)))
        return y + self.bias[...].astype(m.dtype)[None, None, None]


class Mona(nnx.Module):
    """Host: a residual branch over tokens `b n d` with `ctx.grid` patch tokens at the end."""

    def __init__(self, host, *, rank: int, rate: float, rngs: nnx.Rngs):
        self.rate = rate
        self.norm = LayerNorm(host.dim, epsilon=1e-5, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(host.dim, 1e-6, jnp.float32))
        self.gamma_x = nnx.Param(jnp.ones(host.dim))
        self.down = _linear(host.dim, rank, rngs)
        self.convs = nnx.List([Depthwise(rank, side, rngs=rngs) for side in (3, 5, 7)])
        self.mix = _linear(rank, rank, rngs)
        self.up = _linear(rank, host.dim, rngs)
        # The sites of one block share a key: each needs a mask of its own.
        self.site = f"mona/{getattr(host, 'name', '')}"

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        y = host.bare(x, ctx)
        return y + self.branch(x + y, ctx)

    def branch(self, u: Array, ctx: Context) -> Array:
        """What is added to tokens `b n d`."""
        gamma, gamma_x = (v[...].astype(u.dtype)[None, None] for v in (self.gamma, self.gamma_x))
        h = self.convolve(self.down(self.norm(u, ctx) * gamma + u * gamma_x), ctx)
        h = ACTIVATIONS["gelu"](h + self.mix(h))
        return self.up(dropout(h, self.rate, ctx, self.site))

    def convolve(self, h: Array, ctx: Context) -> Array:
        """Adds the mean of the three convolutions to the patch tokens of `b n r`."""
        leading, m = split_map(h, ctx)
        # In float32: the sums of half precision are too coarse on some devices.
        m = m.astype(jnp.float32)
        m = m + sum(conv(m) for conv in self.convs) / 3
        return join_map(leading, m.astype(h.dtype))


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    dropout: float = 0.1,
) -> None:
    """Attaches one to each branch of every block.

    Args:
        backbone: a transformer over a map of patches, plain or in stages.
        rngs: source of the random weights.
        rank: r; 0 is a twelfth of the width, the widest stage's, from 4 to 64.
        dropout: rate before the up-projection.
    """
    check_rate("dropout", dropout)
    check_map("mona", backbone)
    check_rank(rank, backbone, _SITES)
    make = functools.partial(Mona, rank=rank, rate=dropout, rngs=rngs)
    attach(backbone, _SITES, make)
