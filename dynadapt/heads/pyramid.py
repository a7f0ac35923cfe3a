"""Levels from the last map alone, by transposed convolutions and pooling: ViTDet's simple feature
pyramid (Li et al., arXiv 2203.16527), and that of VFM-Adapter's detectors.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.layers import ACTIVATIONS, Conv, LayerNorm, Linear
from dynadapt.layers.resample import resize

Array = jax.Array
Initializer = jax.nn.initializers.Initializer

_lecun = nnx.initializers.lecun_normal()

SCALES = (4, 2, 1, 0.5, 0.25)
VITDET = SCALES[:4]


class Upsample(nnx.Module):
    """Transposed convolution, kernel and stride 2: `b h w d` to `b 2h 2w o`.

    Each pixel alone makes its 2x2 outputs, so it is one product. `kernel` is `d 2 2 o`.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer = _lecun,
        rngs: nnx.Rngs,
    ):
        kernel = kernel_init(rngs.params(), (dim, 4 * out))
        self.kernel = nnx.Param(kernel.reshape(dim, 2, 2, out))
        self.bias = nnx.Param(jnp.zeros(out)) if use_bias else nnx.data(None)

    def __call__(self, x: Array, ctx: Context) -> Array:
        b, h, w, d = x.shape
        kernel = self.kernel[...].astype(x.dtype).reshape(d, -1)
        y = (x.reshape(-1, d) @ kernel).reshape(b, h, w, 2, 2, -1)
        y = y.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None, None]


class Rescaled(nnx.Module):
    """The map `b h w d` at one of the `SCALES`: `b sh sw dim`.

    Last rows and columns that fill no window are dropped at scales below 1.

    Attributes:
        dim: width of the outcome: a quarter of d at scale 4, half of it at scale 2, else d.
    """

    def __init__(self, dim: int, scale: float, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.scale = scale
        if scale >= 2:
            self.up1 = Upsample(dim, dim // 2, rngs=rngs)
            dim //= 2
        if scale == 4:
            self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
            self.up2 = Upsample(dim, dim // 2, rngs=rngs)
            dim //= 2
        self.dim = dim

    def __call__(self, x: Array, ctx: Context) -> Array:
        if self.scale >= 2:
            x = self.up1(x, ctx)
        if self.scale == 4:
            x = self.up2(ACTIVATIONS["gelu"](self.norm(x, ctx)), ctx)
        if self.scale < 1:
            side = round(1 / self.scale)
            _check_side(x.shape, side)
            x = nnx.max_pool(x, (side, side), (side, side))
        return x


class Level(Rescaled):
    """One level: the map `b h w d` rescaled, then a 1x1 and a 3x3 convolution, each normed."""

    def __init__(self, dim: int, channels: int, scale: float, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(dim, scale, epsilon=epsilon, rngs=rngs)
        # The norms that follow have biases, so the convolutions need none.
        self.conv1 = Linear(self.dim, channels, use_bias=False, rngs=rngs)
        self.norm1 = LayerNorm(channels, epsilon=epsilon, rngs=rngs)
        self.conv2 = Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = LayerNorm(channels, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        x = self.norm1(self.conv1(super().__call__(x, ctx), ctx), ctx)
        return self.norm2(self.conv2(x, ctx), ctx)


class SimplePyramid(nnx.Module):
    """Levels `b sh sw channels`, fine to coarse, from the last map `b h w d` of the features.

    Of a map at stride 16, scales 4, 2, 1 and 0.5 make strides 4, 8, 16 and 32.

    Args:
        dim: d.
        channels: width of the levels.
        scales: of `SCALES`.
        subsampled: further levels at the coarse end, each of every other row and column of the one
            before.

    Attributes:
        dims: width of each level.
        scales: size of each level over that of the map.
    """

    def __init__(
        self,
        dim: int,
        channels: int = 256,
        scales: tuple[float, ...] = VITDET,
        *,
        subsampled: int = 0,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        if unknown := [s for s in scales if s not in SCALES]:
            raise ConfigError(f"no pyramid level of scale {unknown[0]}; choose among {SCALES}")
        _check_width(dim)
        scales = tuple(sorted(scales, reverse=True))
        self.levels = nnx.List(
            [Level(dim, channels, s, epsilon=epsilon, rngs=rngs) for s in scales]
        )
        self.scales = scales + tuple(scales[-1] / 2**n for n in range(1, subsampled + 1))
        self.dims = (channels,) * len(self.scales)

    def __call__(self, features: object, ctx: Context) -> tuple[Array, ...]:
        maps = [level(features.maps[-1], ctx) for level in self.levels]
        for _ in self.scales[len(maps) :]:
            maps.append(maps[-1][:, ::2, ::2])
        return tuple(maps)


class Levels(nnx.Module):
    """Maps at several strides, fine to coarse, for heads that need them.

    They are the backbone's own where it has several strides, and else the last map at the
    scales `VITDET`, by transposed convolutions and pooling alone.

    Attributes:
        dims: width of each level.
    """

    def __init__(self, like: Any, *, rngs: nnx.Rngs):
        if has_strides(like):
            self.dims = tuple(m.shape[-1] for m in like.maps)
            return
        last = like.maps[-1]
        _check_width(last.shape[-1])
        _check_side(last.shape, 2)
        self.rescaled = nnx.List([Rescaled(last.shape[-1], s, rngs=rngs) for s in VITDET])
        self.dims = tuple(level.dim for level in self.rescaled)

    def __call__(self, features: object, ctx: Context) -> tuple[Array, ...]:
        if not hasattr(self, "rescaled"):
            return features.maps
        return tuple(level(features.maps[-1], ctx) for level in self.rescaled)


def joined(projections: Iterable[Any], maps: Sequence[Array], ctx: Context) -> Array:
    """Maps, each through its projection, at the size of the first: `b h w c`, c the sum of all."""
    pairs = zip(projections, maps, strict=True)
    same = [resize(project(m, ctx), maps[0].shape[1:3]) for project, m in pairs]
    return jnp.concatenate(same, -1)


def has_strides(like: Any) -> bool:
    """Whether the maps of such features differ in size."""
    return len({m.shape[1:3] for m in like.maps}) > 1


def _check_width(dim: int) -> None:
    if dim % 4:
        raise ConfigError(f"width {dim} is not divisible by 4, as halving it twice needs")


def _check_side(shape: tuple[int, ...], side: int) -> None:
    if min(shape[1:3]) < side:
        part = {2: "halve", 4: "quarter"}[side]
        raise ConfigError(f"a map of {shape[1]}x{shape[2]} is too small to {part}")
