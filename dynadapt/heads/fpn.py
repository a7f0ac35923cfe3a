"""Feature pyramid network (Lin et al., arXiv 1612.03144): levels of one width from maps of several
strides.

    y_n = lateral_n(x_n)        y_i = lateral_i(x_i) + double(y_i+1)        level_i = smooth_i(y_i)

`lateral` is 1x1, `smooth` 3x3; `double` repeats every row and column.
"""

from collections.abc import Sequence

import jax
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import Conv, Linear

Array = jax.Array


class FPN(nnx.Module):
    """Levels `b h w channels`, fine to coarse, from the last maps of the features.

    Args:
        dims: widths of those maps, each half as fine as the one before.
        channels: width of the levels.
        extra: further levels at the coarse end, each from the one before: by a 3x3 convolution of
            stride 2 (Lin et al., arXiv 1708.02002, but on the levels and without activation), or,
            unless `learned`, of its every other row and column.

    Attributes:
        dims: width of each level.
    """

    def __init__(
        self,
        dims: Sequence[int],
        channels: int = 256,
        *,
        extra: int = 0,
        learned: bool = True,
        rngs: nnx.Rngs,
    ):
        self.lateral = nnx.List([Linear(d, channels, rngs=rngs) for d in dims])
        options = dict(padding=((1, 1), (1, 1)), rngs=rngs)
        self.smooth = nnx.List([Conv(channels, channels, (3, 3), **options) for _ in dims])
        options["strides"] = (2, 2)
        learned_levels = range(extra if learned else 0)
        self.down = nnx.List([Conv(channels, channels, (3, 3), **options) for _ in learned_levels])
        self.subsampled = 0 if learned else extra
        self.dims = (channels,) * (len(dims) + extra)

    def __call__(self, features: object, ctx: Context) -> tuple[Array, ...]:
        maps = features.maps[-len(self.lateral) :]
        levels, above = [], None
        for x, lateral, smooth in reversed(list(zip(maps, self.lateral, self.smooth, strict=True))):
            y = lateral(x, ctx)
            above = y if above is None else y + doubled(above, y.shape[1:3])
            levels.insert(0, smooth(above, ctx))
        for down in self.down:
            levels.append(down(levels[-1], ctx))
        for _ in range(self.subsampled):
            levels.append(levels[-1][:, ::2, ::2])
        return tuple(levels)


def doubled(x: Array, size: tuple[int, int]) -> Array:
    """Maps `b h w d` with every entry four times, cut to a size of at most `2h 2w`."""
    for axis in (1, 2):
        x = x.repeat(2, axis)
    return x[:, : size[0], : size[1]]
