"""Atrous spatial pyramid pooling, DeepLabV3's head (Chen et al., arXiv 1706.05587), of all levels.

    x = concat_i resize(narrow_i(x_i))
    y = dropout(mix(concat(conv_1(x), conv_12(x), conv_24(x), conv_36(x), pool(x))))
    outputs = Linear(conv(y))

DeepLabV3 has it on one map at an eighth of the image. The last level of a Swin is four times
coarser, where taps 24 and 36 positions away see padding alone; so levels are joined at the first,
as multi-task code does: `narrow_i` is 1x1 without bias, 18 wide at the first level and twice as
wide from level to level. `conv_1`, `pool`, of the mean over the map, and `mix` are 1x1, others 3x3
with the rate of their taps; all have batch norm and ReLU. Count for levels of d_i channels that
become c_i, C the sum of these, k `channels` and o outputs:
sum of d_i c_i + 29 C k + 14 k (k + 1) + o (k + 1).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context, dropout
from dynadapt.heads.dense import Pixelwise
from dynadapt.heads.pyramid import joined
from dynadapt.layers import Linear
from dynadapt.layers.conv_norm import ConvNorm

Array = jax.Array

NARROW = 18  # channels of the first level
RATES = (12, 24, 36)


def made_for(
    like: Any, outputs: int, *, channels: int = 256, dropout: float = 0.5, rngs: nnx.Rngs
) -> "Atrous":
    """The head for features like these, of one stride or several."""
    dims = [m.shape[-1] for m in like.maps]
    return Atrous(dims, outputs, channels=channels, dropout=dropout, rngs=rngs)


class Atrous(nnx.Module):
    """One float32 map `b h w outputs` in a tuple, at the stride of the finest level.

    Attributes:
        rate: of the dropout.
    """

    def __init__(
        self, dims: list[int], outputs: int, *, channels: int, dropout: float, rngs: nnx.Rngs
    ):
        self.rate = dropout
        narrow = [NARROW * 2**i for i in range(len(dims))]
        pairs = zip(dims, narrow, strict=True)
        self.narrow = nnx.List([Linear(d, c, use_bias=False, rngs=rngs) for d, c in pairs])
        size = sum(narrow), channels
        self.near = ConvNorm(*size, rngs=rngs)
        self.far = nnx.List([ConvNorm(*size, 3, kernel_dilation=r, rngs=rngs) for r in RATES])
        self.pool = ConvNorm(*size, rngs=rngs)
        self.mix = ConvNorm((2 + len(RATES)) * channels, channels, rngs=rngs)
        self.conv = ConvNorm(channels, channels, 3, rngs=rngs)
        self.out = Pixelwise(channels, outputs, rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> tuple[Array]:
        x = joined(self.narrow, features.maps, ctx)
        whole = self.pool(x.mean((1, 2), keepdims=True), ctx)
        parts = [conv(x, ctx) for conv in (self.near, *self.far)]
        parts.append(jnp.broadcast_to(whole, parts[0].shape))
        y = dropout(self.mix(jnp.concatenate(parts, -1), ctx), self.rate, ctx, "aspp")
        return (self.out(self.conv(y, ctx), ctx),)
