"""HRNet's head (Sun et al., arXiv 1904.04514), as multi-task adapters decode each task with it.

    outputs = Linear(mix(concat_i resize(project_i(x_i))))

`project_i` is 1x1 without bias, twice as wide from level to level; all levels are resized to the
first, at whose stride the outputs are. `mix` is 1x1, four times as wide as what it gets, with batch
norm and ReLU. Count for levels of d_i and c_i channels, C the sum of all c_i, and o outputs:
sum of d_i c_i + 4 C (C + 3) + o (4 C + 1).
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads.dense import Pixelwise
from dynadapt.heads.pyramid import joined
from dynadapt.layers import Linear
from dynadapt.layers.conv_norm import ConvNorm

Array = jax.Array

WIDER = 4  # of the joined levels in `mix`


def made_for(like: Any, outputs: int, *, channels: int = 18, rngs: nnx.Rngs) -> "HrnetHead":
    """The head for features like these, of one stride or several; `channels` of the first level."""
    dims = [m.shape[-1] for m in like.maps]
    return HrnetHead(dims, [channels * 2**i for i in range(len(dims))], outputs, rngs=rngs)


class HrnetHead(nnx.Module):
    """One float32 map `b h w outputs` in a tuple, at the stride of the finest level."""

    def __init__(
        self, dims: Sequence[int], channels: Sequence[int], outputs: int, *, rngs: nnx.Rngs
    ):
        pairs = zip(dims, channels, strict=True)
        self.project = nnx.List([Linear(d, c, use_bias=False, rngs=rngs) for d, c in pairs])
        total = sum(channels)
        self.mix = ConvNorm(total, WIDER * total, use_bias=True, rngs=rngs)
        self.out = Pixelwise(WIDER * total, outputs, rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> tuple[Array]:
        x = self.mix(joined(self.project, features.maps, ctx), ctx)
        return (self.out(x, ctx),)
