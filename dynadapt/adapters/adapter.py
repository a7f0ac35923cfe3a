"""Adapters after the branches of a block (Houlsby et al., arXiv 1902.00751), or after the MLP alone
(Pfeiffer et al., arXiv 2005.00247).

    y <- y + Up(gelu(Down(y)))            y: what the branch gives, before it is added to x

Down starts Kaiming uniform, Up and the biases zero: one benchmark's code starts both matrices at
zero, which leaves every gradient zero but that of Up's bias. Count at rank r: L (2 d r + r + d) for
"pfeiffer", twice that for "houlsby".
"""

import functools

import jax
from flax import nnx

from dynadapt.adapters import BLOCK, check_rank, rank_of_width
from dynadapt.attach import attach
from dynadapt.context import Context, drop_path
from dynadapt.errors import UnknownName
from dynadapt.layers import ACTIVATIONS, Linear, kaiming

Array = jax.Array
TRAINS = ()
NOT_MERGEABLE = "a GELU stands between its two projections"

FORMS = {
    "houlsby": f"{BLOCK}/(?:attn|mlp)",
    "pfeiffer": f"{BLOCK}/mlp",
}


class SequentialAdapter(nnx.Module):
    """Host: a residual branch over tokens `b n d`; zero effect at the start."""

    def __init__(self, host, *, rank: int, rngs: nnx.Rngs):
        self.down = Linear(host.dim, rank, kernel_init=kaiming, rngs=rngs)
        self.up = Linear(rank, host.dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        # The adapter is a part of the branch: drop-path takes both.
        y = host.bare(x, ctx.replace(drop_path=None))
        return drop_path(y + self.branch(y, ctx), ctx, host.name)

    def branch(self, y: Array, ctx: Context) -> Array:
        """The adapter alone, `b n d`."""
        return self.up(ACTIVATIONS["gelu"](self.down(y)))


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    form: str = "houlsby",
) -> None:
    """Attaches a bottleneck behind both branches of every block, or behind the MLP.

    Args:
        backbone: a transformer, plain or in stages.
        rngs: source of the random weights.
        rank: r; 0 is a twelfth of the width, the widest stage's, from 4 to 64 (ours).
        form: "houlsby" (after attention and MLP) or "pfeiffer" (after the MLP).
    """
    if form not in FORMS:
        raise UnknownName("form", form, FORMS)
    check_rank(rank, backbone, FORMS[form])
    attach(backbone, FORMS[form], functools.partial(SequentialAdapter, rank=rank, rngs=rngs))
