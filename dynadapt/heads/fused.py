"""Maps of one width added up, and one convolution at twice their resolution. Ours, for small
backbones, whose map is fine and whose levels are few.

    outputs = Linear(dropout(conv(double(sum_i project_i(x_i)))))

`project_i` is 1x1, `conv` 3x3, both with batch norm and ReLU; `double` is bilinear.
"""

from typing import Any

import jax
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads.dense import Pixelwise
from dynadapt.layers.conv_norm import ConvNorm
from dynadapt.layers.resample import resize

Array = jax.Array


def made_for(
    like: Any, outputs: int, *, channels: int = 64, dropout: float = 0.0, rngs: nnx.Rngs
) -> "Fused":
    """The head for features like these, of one stride or several."""
    dims = tuple(m.shape[-1] for m in like.maps)
    return Fused(dims, outputs, channels=channels, dropout=dropout, rngs=rngs)


class Fused(nnx.Module):
    """One float32 map `b 2h 2w outputs` in a tuple, at twice the resolution of the first map."""

    def __init__(
        self,
        dims: tuple[int, ...],
        outputs: int,
        *,
        channels: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.project = nnx.List([ConvNorm(d, channels, rngs=rngs) for d in dims])
        self.conv = ConvNorm(channels, channels, 3, rngs=rngs)
        self.out = Pixelwise(channels, outputs, rate=dropout, site="fused", rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> tuple[Array]:
        h, w = features.maps[0].shape[1:3]
        levels = zip(self.project, features.maps, strict=True)
        x = sum(resize(project(m, ctx), (h, w)) for project, m in levels)
        return (self.out(self.conv(resize(x, (2 * h, 2 * w)), ctx), ctx),)
