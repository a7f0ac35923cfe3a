"""LoRand (Yin et al., CVPR 2023): a bottleneck whose matrices are sums of low-rank products.

    W = sum over a branches of A_i G_i B_i          A_i: `in k`, G_i: `k k`, B_i: `k out`
    y <- y + W_up gelu(W_down y + b) + b'           y: what a branch gives, before it is added to x

Both branches of every block have one. All factors start uniform, A_i and G_i within 1 / sqrt(k)
and B_i within 1 / sqrt(out), biases within 1 / sqrt(in), as in the authors' code: unlike most
methods it does not start at zero effect. Count of one matrix: a (in k + k^2 + k out), plus out for
its bias; the published counts leave the biases out.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_least, check_rank, rank_of_width
from dynadapt.adapters.adapter import SequentialAdapter
from dynadapt.attach import attach

Array = jax.Array
TRAINS = ()
NOT_MERGEABLE = "a GELU stands between its two matrices"

_SITES = f"{BLOCK}/(?:attn|mlp)"


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], bound: float) -> nnx.Param:
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


class Multi(nnx.Module):
    """`x W + bias` for a sum of products W; `a` is `a in k`, `g` is `a k k`, `b` is `a k out`."""

    def __init__(self, dim_in, dim_out, *, branches, rank, bias, rngs: nnx.Rngs):
        self.a = _uniform(rngs, (branches, dim_in, rank), rank**-0.5)
        self.g = _uniform(rngs, (branches, rank, rank), rank**-0.5)
        self.b = _uniform(rngs, (branches, rank, dim_out), dim_out**-0.5)
        self.biased = bias
        if bias:
            self.bias = _uniform(rngs, (dim_out,), 1 / math.sqrt(dim_in))

    def __call__(self, x: Array) -> Array:
        # Through the factors, which is less work than making W where a k < out.
        a, g, b = (v[...].astype(x.dtype) for v in (self.a, self.g, self.b))
        h = jnp.einsum("bni,aik->bnak", x, a)
        h = jnp.einsum("bnak,akl->bnal", h, g)
        y = jnp.einsum("bnal,alo->bno", h, b)
        return y + self.bias[...].astype(y.dtype)[None, None] if self.biased else y


class Lorand(SequentialAdapter):
    """Host: a residual branch over tokens `b n d`; acts from the start."""

    def __init__(self, host, *, factor, branches, rank, bias, rngs: nnx.Rngs):
        given = dict(branches=branches, rank=rank, bias=bias, rngs=rngs)
        self.down = Multi(host.dim, host.dim // factor, **given)
        self.up = Multi(host.dim // factor, host.dim, **given)


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone, part=48, most=8)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    branches: int = 4,
    factor: int = 2,
    bias: bool = True,
) -> None:
    """Attaches a bottleneck behind both branches of every block.

    Args:
        backbone: a transformer, plain or in stages.
        rngs: source of the random weights.
        rank: k, the inner size of each product; 0 is a 48th of the width, the widest stage's, from
            4 to 8, the published one.
        branches: a, how many products make a matrix.
        factor: the bottleneck is this many times narrower than the tokens.
        bias: whether both matrices have a bias.
    """
    check_least("branches", branches)
    check_rank(factor, backbone, _SITES, name="factor")
    check_rank(rank, backbone, _SITES, parts=factor)
    make = functools.partial(
        Lorand, factor=factor, branches=branches, rank=rank, bias=bias, rngs=rngs
    )
    attach(backbone, _SITES, make)
