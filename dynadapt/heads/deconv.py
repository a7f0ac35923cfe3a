"""Transposed convolutions on the last map alone, the depth decoder of MIM-Depth (Xie et al., arXiv
2205.13543), after the simple baseline for poses (Xiao et al., arXiv 1804.06208).

    y = norm_relu(up(.))  three times              up: kernel and stride 2, `channels` wide
    outputs = conv(relu(conv(double(double(conv_norm_relu(y))))))

The convolutions are 3x3 and an eighth as wide as the map, as published, but no narrower than
`channels`, which is ours. Doubling, bilinear, is left out where all maps have one stride, which is
ours too: there the published last stride of 32 is 16 or less, and the answer would be finer than
the image.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads.pyramid import Upsample, has_strides
from dynadapt.layers import Conv
from dynadapt.layers.batch_norm import BatchNorm
from dynadapt.layers.conv_norm import ConvNorm
from dynadapt.layers.resample import resize

Array = jax.Array

_small = nnx.initializers.normal(0.001)


def made_for(like: Any, outputs: int, *, channels: int = 32, rngs: nnx.Rngs) -> "Deconvolutions":
    """The head for features like these."""
    doublings = 2 if has_strides(like) else 0
    dim = like.maps[-1].shape[-1]
    return Deconvolutions(dim, outputs, channels=channels, doublings=doublings, rngs=rngs)


class Deconvolutions(nnx.Module):
    """One float32 map `b sh sw outputs` in a tuple, s = 8 times 2 to the power of `doublings`.

    Attributes:
        doublings: of the map before the last convolutions.
    """

    def __init__(self, dim: int, outputs: int, *, channels: int, doublings: int, rngs: nnx.Rngs):
        self.doublings = doublings
        widths = (dim, channels, channels)
        options = dict(kernel_init=_small, rngs=rngs)
        self.ups = nnx.List([Upsample(d, channels, use_bias=False, **options) for d in widths])
        self.norms = nnx.List([BatchNorm(channels) for _ in widths])
        wide = max(dim // 8, channels)
        self.conv1 = ConvNorm(channels, wide, 3, use_bias=True, **options)
        self.conv2 = Conv(wide, wide, (3, 3), **options)
        self.out = Conv(wide, outputs, (3, 3), **options)

    def __call__(self, features: object, ctx: Context) -> tuple[Array]:
        x = features.maps[-1]
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = jax.nn.relu(norm(up(x, ctx), ctx))
        x = self.conv1(x, ctx)
        for _ in range(self.doublings):
            x = resize(x, (2 * x.shape[1], 2 * x.shape[2]))
        x = jax.nn.relu(self.conv2(x, ctx))
        return (self.out(x.astype(jnp.float32), ctx),)
