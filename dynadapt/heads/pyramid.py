"""ViTDet's simple feature pyramid (Li et al., arXiv 2203.16527): all levels from the last map."""

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.layers import ACTIVATIONS, Conv, LayerNorm, Linear

Array = jax.Array

SCALES = (4, 2, 1, 0.5)


class Upsample(nnx.Module):
    """Transposed convolution, kernel and stride 2: `b h w d` to `b 2h 2w o`.

    Each pixel alone makes its 2x2 outputs, so it is one product. `kernel` is `d 2 2 o`.
    """

    def __init__(self, dim: int, out: int, *, rngs: nnx.Rngs):
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (dim, 4 * out))
        self.kernel = nnx.Param(kernel.reshape(dim, 2, 2, out))
        self.bias = nnx.Param(jnp.zeros(out))

    def __call__(self, x: Array, ctx: Context) -> Array:
        b, h, w, d = x.shape
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        y = (x.reshape(-1, d) @ kernel.reshape(d, -1)).reshape(b, h, w, 2, 2, -1)
        y = y.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1)
        return y + bias[None, None, None]


class Level(nnx.Module):
    """One level: the map `b h w d` rescaled, then a 1x1 and a 3x3 convolution, each normed."""

    def __init__(self, dim: int, channels: int, scale: float, *, epsilon: float, rngs: nnx.Rngs):
        self.scale = scale
        if scale >= 2:
            self.up1 = Upsample(dim, dim // 2, rngs=rngs)
            dim //= 2
        if scale == 4:
            self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
            self.up2 = Upsample(dim, dim // 2, rngs=rngs)
            dim //= 2
        # The norms that follow have biases, so the convolutions need none.
        self.conv1 = Linear(dim, channels, use_bias=False, rngs=rngs)
        self.norm1 = LayerNorm(channels, epsilon=epsilon, rngs=rngs)
        self.conv2 = Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = LayerNorm(channels, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        if self.scale >= 2:
            x = self.up1(x, ctx)
        if self.scale == 4:
            x = self.up2(ACTIVATIONS["gelu"](self.norm(x, ctx)), ctx)
        if self.scale == 0.5:
            x = nnx.max_pool(x, (2, 2), (2, 2))
        x = self.norm1(self.conv1(x, ctx), ctx)
        return self.norm2(self.conv2(x, ctx), ctx)


class SimplePyramid(nnx.Module):
    """Levels `b sh sw channels`, fine to coarse, from the last map `b h w d` of the features.

    Of a map at stride 16, scales 4, 2, 1 and 0.5 make strides 4, 8, 16 and 32. A last row or
    column without a partner is dropped at scale 0.5.

    Attributes:
        dims: width of each level.
        scales: size of each level over that of the map.
    """

    def __init__(
        self,
        dim: int,
        channels: int = 256,
        scales: tuple[float, ...] = SCALES,
        *,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        if unknown := [s for s in scales if s not in SCALES]:
            raise ConfigError(f"no pyramid level of scale {unknown[0]}; choose among {SCALES}")
        if dim % 4:
            raise ConfigError(f"width {dim} is not divisible by 4, as halving it twice needs")
        self.scales = tuple(sorted(scales, reverse=True))
        self.dims = (channels,) * len(self.scales)
        self.levels = nnx.List(
            [Level(dim, channels, s, epsilon=epsilon, rngs=rngs) for s in self.scales]
        )

    def __call__(self, features: object, ctx: Context) -> tuple[Array, ...]:
        x = features.maps[-1]
        if 0.5 in self.scales and min(x.shape[1:3]) < 2:
            raise ConfigError(f"a map of {x.shape[1]}x{x.shape[2]} is too small to halve")
        return tuple(level(x, ctx) for level in self.levels)
