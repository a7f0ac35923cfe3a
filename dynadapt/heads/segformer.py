"""SegFormer's head (Xie et al., arXiv 2105.15203): every level to one width, joined and mixed.

    logits = Linear(dropout(mix(concat_i resize(project_i(x_i)))))

`project_i` and `mix` are 1x1 convolutions with batch norm and ReLU; all levels are resized to the
first, at whose stride the logits are.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads.dense import Pixelwise
from dynadapt.heads.pyramid import Levels
from dynadapt.layers.conv_norm import ConvNorm
from dynadapt.layers.resample import resize

Array = jax.Array


def made_for(
    like: Any, outputs: int, *, channels: int = 256, dropout: float = 0.1, rngs: nnx.Rngs
) -> "SegFormer":
    """The head for features like these; ConfigError where no levels can be made of them."""
    return SegFormer(like, outputs, channels=channels, dropout=dropout, rngs=rngs)


class SegFormer(nnx.Module):
    """One float32 map `b h w outputs` in a tuple, at the stride of the finest level."""

    def __init__(self, like: Any, outputs: int, *, channels: int, dropout: float, rngs: nnx.Rngs):
        self.levels = Levels(like, rngs=rngs)
        dims = self.levels.dims
        self.project = nnx.List([ConvNorm(d, channels, rngs=rngs) for d in dims])
        self.mix = ConvNorm(len(dims) * channels, channels, rngs=rngs)
        self.out = Pixelwise(channels, outputs, rate=dropout, site="segformer", rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> tuple[Array]:
        maps = self.levels(features, ctx)
        size = maps[0].shape[1:3]
        same = [resize(p(x, ctx), size) for p, x in zip(self.project, maps, strict=True)]
        return (self.out(self.mix(jnp.concatenate(same, -1), ctx), ctx),)
