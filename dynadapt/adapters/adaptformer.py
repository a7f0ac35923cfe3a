"""AdaptFormer (Chen et al., arXiv 2205.13535): a bottleneck beside the MLP, or after it.

    parallel:    x <- x + m + s * Up(dropout(relu(Down(LN?(x)))))        m = MLP(LN(x))
    sequential:  x <- x + m + s * Up(dropout(relu(Down(LN?(m)))))

The parallel bottleneck sees the un-normed tokens. At the start Down is Kaiming uniform, Up and the
biases are zero, as published. Count at rank r: L (2 d r + r + d), with `norm` 2 d L more, with
`learn_scale` L more.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_rank, check_rate, rank_of_width
from dynadapt.attach import attach
from dynadapt.context import Context, dropout
from dynadapt.errors import UnknownName
from dynadapt.layers import LayerNorm, Linear, kaiming

Array = jax.Array
TRAINS = ()
NOT_MERGEABLE = "a ReLU stands between its two projections"
PRINTED = {"vit_b16": "1.19 M"}

_SITES = f"{BLOCK}/mlp"
FORMS = ("parallel", "sequential")


class AdaptMlp(nnx.Module):
    """Host: a residual branch over tokens `b n d`; zero effect at the start."""

    def __init__(self, host, *, rank, form, scale, learn_scale, norm, rate, rngs: nnx.Rngs):
        self.sequential, self.normed, self.rate = form == "sequential", norm, rate
        if norm:
            self.norm = LayerNorm(host.dim, epsilon=1e-5, rngs=rngs)
        self.down = Linear(host.dim, rank, kernel_init=kaiming, rngs=rngs)
        self.up = Linear(rank, host.dim, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.learn_scale = learn_scale
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32)) if learn_scale else scale

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        y = host.bare(x, ctx)
        return y + self.branch(y if self.sequential else x, ctx)

    def branch(self, x: Array, ctx: Context) -> Array:
        """The adapter alone, `b n d`."""
        u = self.norm(x, ctx) if self.normed else x
        h = dropout(jax.nn.relu(self.down(u)), self.rate, ctx, "adaptformer")
        scale = self.scale[...].astype(x.dtype) if self.learn_scale else self.scale
        return scale * self.up(h)


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    form: str = "parallel",
    scale: float = 0.1,
    learn_scale: bool = False,
    norm: bool = False,
    dropout: float = 0.1,
) -> None:
    """Attaches a bottleneck to the MLP of every block.

    Args:
        backbone: a transformer, plain or in stages.
        rngs: source of the random weights.
        rank: r; 0 is a twelfth of the width, the widest stage's, from 4 to 64.
        form: "parallel" or "sequential".
        scale: s; its start where `learn_scale` is on (published: 1).
        learn_scale: train s.
        norm: normalise the bottleneck's input.
        dropout: rate after the activation.
    """
    if form not in FORMS:
        raise UnknownName("form", form, FORMS)
    check_rate("dropout", dropout)
    check_rank(rank, backbone, _SITES)
    make = functools.partial(
        AdaptMlp, rank=rank, form=form, scale=scale, learn_scale=learn_scale, norm=norm,
        rate=dropout, rngs=rngs,
    )  # fmt: skip
    attach(backbone, _SITES, make)
