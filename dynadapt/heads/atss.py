"""ATSS's head (Zhang et al., arXiv 1912.02424): two towers over every level, and three predictions
at each of its cells, of one anchor each.

    class = conv(tower(x))     box = scale_level * conv(tower'(x))     centerness = conv(tower'(x))

A tower is `depth` times a 3x3 convolution, group norm and ReLU. All levels share all but the scale.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads.necks import neck
from dynadapt.layers import Conv
from dynadapt.layers.group_norm import ConvGroupNorm

Array = jax.Array

_small = nnx.initializers.normal(0.01)
RARE = -math.log(99)  # at first a cell shows a class with a probability of 1 %


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the head says at the cells of every level, in float32, fine to coarse.

    Attributes:
        classes: logits `b h w c`.
        boxes: deltas to an anchor `b h w 4`.
        centerness: logits `b h w 1`.
        strides: pixels between the cells of each level.
    """

    classes: tuple[Array, ...]
    boxes: tuple[Array, ...]
    centerness: tuple[Array, ...]
    strides: tuple[float, ...] = dataclasses.field(metadata=dict(static=True))


class ATSS(nnx.Module):
    """`Outputs` of levels `b h w dim`.

    Args:
        dim: width of the levels.
        classes: c.
        strides: of the levels.
        channels: width of the towers.
        depth: of the towers, at least 1.
        rngs: source of the random weights.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        strides: Sequence[float],
        *,
        channels: int = 256,
        depth: int = 4,
        rngs: nnx.Rngs,
    ):
        self.strides = tuple(strides)
        dims = (dim, *(channels,) * (depth - 1))
        options = dict(kernel_init=_small, rngs=rngs)
        self.of_class = nnx.List([ConvGroupNorm(d, channels, **options) for d in dims])
        self.of_box = nnx.List([ConvGroupNorm(d, channels, **options) for d in dims])
        rare = nnx.initializers.constant(RARE)
        self.classes = Conv(channels, classes, (3, 3), bias_init=rare, **options)
        self.boxes = Conv(channels, 4, (3, 3), **options)
        self.centerness = Conv(channels, 1, (3, 3), **options)
        self.scale = nnx.Param(jnp.ones(len(self.strides)))

    def __call__(self, levels: Sequence[Array], ctx: Context) -> Outputs:
        found = []
        for x, scale in zip(levels, self.scale[...], strict=True):
            one = other = x
            for conv in self.of_class:
                one = conv(one, ctx)
            for conv in self.of_box:
                other = conv(other, ctx)
            one, other = one.astype(jnp.float32), other.astype(jnp.float32)
            boxes = scale * self.boxes(other, ctx)
            found.append((self.classes(one, ctx), boxes, self.centerness(other, ctx)))
        return Outputs(*zip(*found, strict=True), self.strides)


class Detector(nnx.Module):
    """A neck and ATSS's head: `Outputs` of a backbone's features.

    Args:
        like: shapes of the features, and their strides.
        classes: c.
        name: of the neck, one of `necks.NAMES` or "".
        strides: of the levels; () for the neck's own.
        channels: width of neck and head.
        depth: of the towers, at least 1.
        rngs: source of the random weights.
    """

    def __init__(
        self,
        like: Any,
        classes: int,
        *,
        name: str = "",
        strides: Sequence[float] = (),
        channels: int = 256,
        depth: int = 4,
        rngs: nnx.Rngs,
    ):
        self.neck = neck(name, like, channels, strides, rngs=rngs)
        options = dict(channels=channels, depth=depth, rngs=rngs)
        self.cells = ATSS(channels, classes, self.neck.strides, **options)

    def __call__(self, features: object, ctx: Context) -> Outputs:
        return self.cells(self.neck(features, ctx), ctx)
