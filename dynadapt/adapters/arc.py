"""ARC (Dong et al., arXiv 2310.10700): linear bottlenecks whose projections all blocks share.

    x' = x + (x (D * c)) D^T + b

before qkv and before fc1, with one D, `d r`, for all qkv layers and one for all fc1; c, `r`, and b,
`d`, are each layer's own. Where widths differ, as between Swin's stages, each width has its D.
Count on a ViT: 2 d r + 2 L (r + d); half of it with `positions=("attn",)`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import POSITIONS, check_among, check_rank, check_rate
from dynadapt.attach import Lent, Shared, attach, each_device, lent, sites
from dynadapt.context import Context, dropout

Array = jax.Array
TRAINS = ()
PRINTED = {"vit_b16": "0.13 M with head"}


class Projections(nnx.Module):
    """One D, `d r`, for each position and width, such as `attn_768`."""

    def __init__(self, dims: dict[str, int], rank: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        for name, dim in dims.items():
            setattr(self, name, nnx.Param(init(rngs.params(), (dim, rank))))


class Arc(nnx.Module):
    """Host: a linear layer; what it sees goes through the shared projection first."""

    def __init__(self, host, *, position: str, rank: int, rate: float, rngs: nnx.Rngs):
        self.site, self.rate = f"arc/{position}", rate
        self.name = _name(position, host)
        # As the published code: nothing at attention, xavier of `1 r` at the MLP.
        bound = math.sqrt(6 / (1 + rank)) if position == "mlp" else 0.0
        self.scale = nnx.Param(jax.random.uniform(rngs.params(), rank, minval=-bound, maxval=bound))
        self.shift = nnx.Param(jnp.zeros(host.in_features))

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        def down(shared: Projections, x: Array) -> Array:
            return x @ self.weights(shared)[0].astype(x.dtype)

        def up(shared: Projections, h: Array) -> Array:
            return h @ self.weights(shared)[1].astype(h.dtype)

        shared = lent(ctx, Projections)
        h = dropout(each_device(ctx, shared, down, x), self.rate, ctx, self.site)
        shift = self.shift[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return host.bare(x + each_device(ctx, shared, up, h) + shift, ctx)

    def weights(self, shared: Projections) -> tuple[Array, Array, Array]:
        """`D * c`, `d r`; `D^T`, `r d`; b, `d`."""
        both = getattr(shared, self.name)[...]
        return both * self.scale[...][None], both.T, self.shift[...]

    def merged(self, host: nnx.Module, shared: Lent) -> dict[str, Array]:
        """The host's parameters with the bottleneck before them, float32."""
        kernel = host.kernel[...].astype(jnp.float32)
        down, up, shift = self.weights(shared[Projections])
        times = functools.partial(jnp.matmul, precision="highest")
        bias = 0.0 if host.bias is None else host.bias[...].astype(jnp.float32)
        return {
            "kernel": kernel + times(down, times(up, kernel)),
            "bias": bias + times(shift, kernel),
        }


def _name(position: str, host: nnx.Module) -> str:
    return f"{position}_{host.in_features}"


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 50,
    positions: tuple[str, ...] = ("attn", "mlp"),
    dropout: float = 0.1,
) -> None:
    """Attaches a rescaled bottleneck to qkv and fc1 of every block, and their D to the root.

    The published code places them between norm and qkv or fc1. Standing before qkv itself, they
    also act on the zeros with which windows are padded, which is what makes merging exact (ours).

    Args:
        backbone: a transformer.
        rngs: source of the random weights.
        rank: r.
        positions: "attn", "mlp" or both.
        dropout: rate between the two projections.
    """
    check_rate("dropout", dropout)
    check_among("ARC", "position", positions, POSITIONS)
    for position in positions:
        check_rank(rank, backbone, POSITIONS[position])
    dims = {}
    for position in positions:
        make = functools.partial(Arc, position=position, rank=rank, rate=dropout, rngs=rngs)
        attach(backbone, POSITIONS[position], make)
        for _, host in sites(backbone, POSITIONS[position]):
            dims[_name(position, host)] = host.in_features
    projections = Projections(dims, rank, rngs=rngs)
    attach(backbone, "", lambda host: Shared(host, projections))
