"""GLPDepth's decoder (Kim et al., arXiv 2201.07436): levels joined from coarse to fine, each by a
choice between the level and what came before.

    y_n = project_n(x_n)
    y_i = a * project_i(x_i) + c * resize(y_i+1)      (a, c) = sigmoid(convs(project_i(x_i), y_i+1))
    outputs = conv(relu(conv(double(double(y_1)))))

A level that has the decoder's width already is not projected.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.heads.pyramid import Levels
from dynadapt.layers import Conv, Linear
from dynadapt.layers.conv_norm import ConvNorm
from dynadapt.layers.resample import resize

Array = jax.Array


def made_for(like: Any, outputs: int, *, channels: int = 64, rngs: nnx.Rngs) -> "GLPDepth":
    """The head for features like these; ConfigError where no levels can be made of them."""
    if channels % 2:
        raise ConfigError(f"channels must be even, such as {channels + 1}, not {channels}")
    return GLPDepth(like, outputs, channels=channels, rngs=rngs)


class GLPDepth(nnx.Module):
    """One float32 map `b 4h 4w outputs` in a tuple, at four times the finest level's resolution.

    Attributes:
        channels: width of the decoder.
    """

    def __init__(self, like: Any, outputs: int, *, channels: int, rngs: nnx.Rngs):
        self.channels = channels
        self.levels = Levels(like, rngs=rngs)
        dims = self.levels.dims
        other = [d for d in dims if d != channels]
        self.project = nnx.List([Linear(d, channels, rngs=rngs) for d in other])
        self.select = nnx.List([Selection(channels, rngs=rngs) for _ in dims[1:]])
        self.conv = Conv(channels, channels, (3, 3), rngs=rngs)
        self.out = Conv(channels, outputs, (3, 3), rngs=rngs)

    def __call__(self, features: object, ctx: Context) -> tuple[Array]:
        projections = iter(self.project)
        maps = [
            x if x.shape[-1] == self.channels else next(projections)(x, ctx)
            for x in self.levels(features, ctx)
        ]
        *finer, y = maps
        for x, select in reversed(list(zip(finer, self.select, strict=True))):
            y = select(x, resize(y, x.shape[1:3]), ctx)
        for _ in range(2):
            y = resize(y, (2 * y.shape[1], 2 * y.shape[2]))
        y = jax.nn.relu(self.conv(y, ctx))
        return (self.out(y.astype(jnp.float32), ctx),)


class Selection(nnx.Module):
    """Two maps `b h w d` weighed at every position, each by its own sigmoid, and added."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(2 * dim, dim, 3, use_bias=True, rngs=rngs)
        self.conv2 = ConvNorm(dim, dim // 2, 3, use_bias=True, rngs=rngs)
        self.conv3 = Conv(dim // 2, 2, (3, 3), rngs=rngs)

    def __call__(self, fine: Array, coarse: Array, ctx: Context) -> Array:
        both = self.conv1(jnp.concatenate([fine, coarse], -1), ctx)
        weights = jax.nn.sigmoid(self.conv3(self.conv2(both, ctx), ctx))
        return weights[..., :1] * fine + weights[..., 1:] * coarse
