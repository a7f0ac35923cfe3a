"""SOLO's head (Wang et al., arXiv 1912.04488): each cell of a grid names a class and draws a mask.

    class logits = conv(tower(resize(x, g x g)))
    mask logits = Linear(double(tower(concat(x, coordinates))))           one channel a cell, g^2

`tower` is `depth` 3x3 convolutions with group norm and ReLU; weights but those of `Linear` are
shared by all levels. The first level is halved, the last one brought to the size of the one before.

All masks of a picture take gigabytes, and few are ever wanted. So the head gives the features and
the `Linear` of each level, from which `mask_logits` draws chosen cells alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import Conv, Linear
from dynadapt.layers.group_norm import ConvGroupNorm
from dynadapt.layers.resample import resize

Array = jax.Array

_small = nnx.initializers.normal(0.01)
# Where every cell starts: one in a hundred has an object, one in a hundred pixels is its mask's.
_rare = nnx.initializers.constant(-math.log(99))


class Cells(NamedTuple):
    """What the cells of each level answer.

    Attributes:
        classes: logits `b g g c`, float32.
        features: `b h w d`, of masks of twice that height and width.
        kernels: `d g^2`, a column for each cell, row by row.
        biases: `g^2`.
    """

    classes: tuple[Array, ...]
    features: tuple[Array, ...]
    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]


EACH = Cells(0, 0, None, None)  # the axes of images, for `jax.vmap`


class SOLO(nnx.Module):
    """`Cells` from features, by a neck that makes levels of them.

    Args:
        neck: makes as many levels as there are grids, of widths `neck.dims`, which are all equal.
        classes: c.
        grids: cells on a side of each level's grid, g.
        channels: width of the towers, d.
        depth: convolutions of a tower.
    """

    def __init__(
        self,
        neck: nnx.Module,
        classes: int,
        *,
        grids: tuple[int, ...],
        channels: int = 256,
        depth: int = 7,
        rngs: nnx.Rngs,
    ):
        self.neck, self.grids = neck, grids
        dims = (neck.dims[0], *(channels,) * depth)
        masks = (dims[0] + 2, *dims[1:])  # two coordinates besides
        self.mask_tower, self.class_tower = (
            nnx.List([ConvGroupNorm(d, channels, rngs=rngs) for d in widths[:-1]])
            for widths in (masks, dims)
        )
        options = dict(kernel_init=_small, bias_init=_rare, rngs=rngs)
        self.masks = nnx.List([Linear(channels, g**2, **options) for g in grids])
        self.out = Conv(channels, classes, (3, 3), **options)

    def __call__(self, features: object, ctx: Context) -> Cells:
        levels = resized(self.neck(features, ctx))
        classes = (
            self.class_logits(resize(x, (g, g)), ctx)
            for x, g in zip(levels, self.grids, strict=True)
        )
        return Cells(
            tuple(classes),
            tuple(self.mask_features(x, ctx) for x in levels),
            tuple(linear.kernel[...] for linear in self.masks),
            tuple(linear.bias[...] for linear in self.masks),
        )

    def class_logits(self, x: Array, ctx: Context) -> Array:
        """Class logits `b g g c` of a level `b g g d`."""
        for layer in self.class_tower:
            x = layer(x, ctx)
        return self.out(x.astype(jnp.float32), ctx)

    def mask_features(self, x: Array, ctx: Context) -> Array:
        """What masks of a level `b h w d` are drawn from, `b h w channels`."""
        x = jnp.concatenate([x, coordinates(x)], axis=-1)
        for layer in self.mask_tower:
            x = layer(x, ctx)
        return x


def resized(levels: tuple[Array, ...]) -> list[Array]:
    """Levels `b h w d`, the first of them halved and the last as large as the one before."""
    first, *others = levels
    found = [resize(first, tuple(n // 2 for n in first.shape[1:3])), *others]
    if len(found) > 1:
        found[-1] = resize(found[-1], found[-2].shape[1:3])
    return found


def effective(strides: tuple[float, ...]) -> tuple[float, ...]:
    """The strides of levels after `resized`, from those before."""
    found = [2 * strides[0], *strides[1:]]
    return (*found[:-1], found[-2]) if len(found) > 1 else tuple(found)


def coordinates(x: Array) -> Array:
    """x and y of each position of maps `b h w d`, from -1 to 1: `b h w 2`."""
    b, h, w, _ = x.shape
    y, x_ = jnp.meshgrid(*(jnp.linspace(-1.0, 1.0, n) for n in (h, w)), indexing="ij")
    return jnp.broadcast_to(jnp.stack([x_, y], -1)[None], (b, h, w, 2)).astype(x.dtype)


def mask_logits(features: Array, kernel: Array, bias: Array, cells: Array) -> Array:
    """Mask logits `p 2h 2w`, float32, of some cells of a level.

    Args:
        features: `h w d`.
        kernel: `d g^2`.
        bias: `g^2`.
        cells: `p`, counted row by row.
    """
    kernel, bias = kernel[:, cells].astype(features.dtype), bias[cells]
    # Doubled after the product and not before: it is the same, at a quarter of the cost.
    x = jnp.einsum("hwd,dp->hwp", features, kernel, preferred_element_type=jnp.float32)
    h, w = x.shape[:2]
    x = resize((x + bias[None, None])[None], (2 * h, 2 * w))[0]
    return jnp.moveaxis(x, -1, 0)
