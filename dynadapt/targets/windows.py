"""Large maps by a window that slides over them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Size = tuple[int, int]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start, so that they cover a length; the last one ends with it."""
    count = -(-max(length - window, 0) // stride) + 1
    return [min(n * stride, max(length - window, 0)) for n in range(count)]


def slide(forward: Callable[[Array], Array], x: Array, window: Size, stride: Size) -> Array:
    """Mean over all windows that see a pixel of what `forward` makes of them.

    Args:
        forward: from windows `b h w d` to maps of the same height and width, `b h w c`.
        x: `b H W d`; windows larger than it are cut to its size.
        window: (h, w).
        stride: (down, across) between neighbouring windows.

    Returns:
        `b H W c`.
    """
    b, *size, _ = x.shape
    h, w = (min(side, whole) for side, whole in zip(window, size, strict=True))
    tops, lefts = (starts(*given) for given in zip(size, (h, w), stride, strict=True))
    corners = jnp.array([(top, left) for top in tops for left in lefts])

    def one(corner: Array) -> Array:
        top, left = corner
        return forward(jax.lax.dynamic_slice(x, (0, top, left, 0), (b, h, w, x.shape[-1])))

    # One window at a time, and one compilation for all.
    found = jax.lax.map(one, corners)
    total = jnp.zeros((b, *size, found.shape[-1]), found.dtype)
    seen = jnp.zeros((1, *size, 1), found.dtype)
    for number, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        where = (slice(None), slice(top, top + h), slice(left, left + w))
        total, seen = total.at[where].add(found[number]), seen.at[where].add(1)
    return total / seen
