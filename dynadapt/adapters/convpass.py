"""Convpass (Jie and Deng, arXiv 2207.07039): a bottleneck with a 3x3 convolution beside a branch.

    z = LN(x)                                       the branch's own norm
    x <- x + branch(x) + s * Up(dropout(act(Conv(act(Down(z))))))           act: quick GELU

The convolution runs over the map of patch tokens; each leading token is a map of its own, `1 1 r`,
so that it meets the centre of the kernel alone. At the start Down is Xavier uniform, the
convolution the identity, Up and the biases zero, as published. Count at rank r on a ViT: for each
of 2 L branches (L with placement "attn") 2 d r + r + d + 9 r^2 + r.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_map, check_rank, check_rate
from dynadapt.attach import attach
from dynadapt.context import Context, drop_path, dropout, join_map, split_map
from dynadapt.errors import UnknownName
from dynadapt.layers import Linear, quick_gelu

Array = jax.Array
TRAINS = ()
NOT_MERGEABLE = "a quick GELU stands before and behind its convolution"
PRINTED = {"vit_b16": "0.33 M"}

PLACEMENTS = {
    "both": f"{BLOCK}/(?:attn|mlp)",
    "attn": f"{BLOCK}/attn",
}
CONVS = ("identity", "xavier")


class Conv3x3(nnx.Module):
    """A convolution of the patch tokens among `b n r`; `kernel` is `3 3 r r`."""

    def __init__(self, rank: int, start: str, *, rngs: nnx.Rngs):
        if start == "identity":
            kernel = jnp.zeros((3, 3, rank, rank)).at[1, 1].set(jnp.eye(rank))
        else:
            kernel = nnx.initializers.xavier_uniform()(rngs.params(), (3, 3, rank, rank))
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(rank))

    def __call__(self, h: Array, ctx: Context) -> Array:
        # In float32: the sums of half precision are too coarse on some devices.
        leading, m = split_map(h.astype(jnp.float32), ctx)
        kernel = self.kernel[...]
        m = jax.lax.conv_general_dilated(
            m, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = join_map(leading @ kernel[1, 1], m)
        return (y + self.bias[...][None, None]).astype(h.dtype)


class ConvBottleneck(nnx.Module):
    """Host: a residual branch over tokens `b n d`; zero effect at the start."""

    def __init__(self, host, *, rank, scale, conv, rate, rngs: nnx.Rngs):
        self.scale, self.rate = scale, rate
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        self.down = Linear(host.dim, rank, kernel_init=xavier, rngs=rngs)
        self.conv = Conv3x3(rank, conv, rngs=rngs)
        self.up = Linear(rank, host.dim, kernel_init=zeros, rngs=rngs)
        # The sites of one block share a key: each needs a mask of its own.
        self.site = f"convpass/{getattr(host, 'name', '')}"

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        y = self.scale * self.branch(host.norm(x, ctx), ctx)
        return host.bare(x, ctx) + drop_path(y, ctx, self.site)

    def branch(self, z: Array, ctx: Context) -> Array:
        """The adapter alone, unscaled, `b n d`."""
        h = quick_gelu(self.conv(quick_gelu(self.down(z)), ctx))
        return self.up(dropout(h, self.rate, ctx, self.site))


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 8,
    placement: str = "both",
    scale: float = 1.0,
    conv: str = "identity",
    dropout: float = 0.1,
) -> None:
    """Attaches a convolutional bottleneck to both branches of every block, or to attention.

    Args:
        backbone: a transformer over a map of patches, plain or in stages.
        rngs: source of the random weights.
        rank: r.
        placement: "both" or "attn".
        scale: s; chosen for each data set in the paper, the default is ours.
        conv: what the convolution starts from, "identity" or "xavier".
        dropout: rate before the up-projection.
    """
    if placement not in PLACEMENTS:
        raise UnknownName("placement", placement, PLACEMENTS)
    if conv not in CONVS:
        raise UnknownName("start of the convolution", conv, CONVS)
    check_rate("dropout", dropout)
    check_map("convpass", backbone)
    check_rank(rank, backbone, PLACEMENTS[placement])
    make = functools.partial(
        ConvBottleneck, rank=rank, scale=scale, conv=conv, rate=dropout, rngs=rngs
    )
    attach(backbone, PLACEMENTS[placement], make)
