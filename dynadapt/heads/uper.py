"""UPerNet (Xiao et al., arXiv 1807.10221): pyramid pooling of the last level, then a pyramid from
coarse to fine, joined; beside it, in training, a convolutional head on the last level but one.

    y_n = fuse(concat(x_n, resize(pool_p(x_n)) for p = 1, 2, 3, 6))
    y_i = lateral_i(x_i) + resize(y_i+1)
    logits = Linear(dropout(join(concat_i resize(smooth_i(y_i)))))              y_n is not smoothed

All convolutions have batch norm and ReLU; those of `lateral` and `pool` are 1x1, others 3x3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads.dense import Pixelwise
from dynadapt.heads.pyramid import Levels
from dynadapt.layers.conv_norm import ConvNorm
from dynadapt.layers.resample import resize

Array = jax.Array

POOLS = (1, 2, 3, 6)
AUXILIARY = 256  # channels of the auxiliary head


def made_for(
    like: Any, outputs: int, *, channels: int = 512, dropout: float = 0.1, rngs: nnx.Rngs
) -> "UPerNet":
    """The head for features like these; ConfigError where no levels can be made of them."""
    return UPerNet(like, outputs, channels=channels, dropout=dropout, rngs=rngs)


class UPerNet(nnx.Module):
    """Float32 maps `b h w outputs` in a tuple, the first at the stride of the finest level.

    In training a second one comes from the last level but one, at its stride.
    """

    def __init__(self, like: Any, outputs: int, *, channels: int, dropout: float, rngs: nnx.Rngs):
        self.levels = Levels(like, rngs=rngs)
        *finer, last = dims = self.levels.dims
        self.pool = nnx.List([ConvNorm(last, channels, rngs=rngs) for _ in POOLS])
        self.fuse = ConvNorm(last + len(POOLS) * channels, channels, 3, rngs=rngs)
        self.lateral = nnx.List([ConvNorm(d, channels, rngs=rngs) for d in finer])
        self.smooth = nnx.List([ConvNorm(channels, channels, 3, rngs=rngs) for _ in finer])
        self.join = ConvNorm(len(dims) * channels, channels, 3, rngs=rngs)
        self.out = Pixelwise(channels, outputs, rate=dropout, site="uper", rngs=rngs)
        self.auxiliary = Convolutional(dims[-2], outputs, dropout=dropout, rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> tuple[Array, ...]:
        *finer, last = maps = self.levels(features, ctx)
        y = self.pooled(last, ctx)
        levels = [y]
        stages = zip(finer, self.lateral, self.smooth, strict=True)
        for x, lateral, smooth in reversed(list(stages)):
            y = lateral(x, ctx) + resize(y, x.shape[1:3])
            levels.insert(0, smooth(y, ctx))
        size = levels[0].shape[1:3]
        joined = self.join(jnp.concatenate([resize(y, size) for y in levels], -1), ctx)
        answer = self.out(joined, ctx)
        return (answer, self.auxiliary(maps[-2], ctx)) if ctx.train else (answer,)

    def pooled(self, x: Array, ctx: Context) -> Array:
        """The last level `b h w d` beside its averages over 1, 4, 9 and 36 parts, fused."""
        size = x.shape[1:3]
        pools = zip(POOLS, self.pool, strict=True)
        parts = [resize(project(average(x, n), ctx), size) for n, project in pools]
        return self.fuse(jnp.concatenate([x, *parts], -1), ctx)


class Convolutional(nnx.Module):
    """Outputs `b h w o`, in float32, of maps `b h w d`: one 3x3 convolution before the linear."""

    def __init__(self, dim: int, outputs: int, *, dropout: float, rngs: nnx.Rngs):
        self.conv = ConvNorm(dim, AUXILIARY, 3, rngs=rngs)
        self.out = Pixelwise(AUXILIARY, outputs, rate=dropout, site="auxiliary", rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        return self.out(self.conv(x, ctx), ctx)


def average(x: Array, parts: int) -> Array:
    """Averages of maps `b h w d` over `parts` rows and columns of bins: `b parts parts d`."""
    rows, columns = (jnp.asarray(bins(n, parts), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("yh,xw,bhwd->byxd", rows, columns, x)


def bins(length: int, parts: int) -> np.ndarray:
    """Weights `parts length` of means over bins from floor(i n / p) to ceil((i + 1) n / p).

    Neighbours share an entry where the parts don't divide the length.
    """
    i, at = np.arange(parts)[:, None], np.arange(length)[None]
    inside = (at >= i * length // parts) & (at < -(-(i + 1) * length // parts))
    return inside / inside.sum(1, keepdims=True)
