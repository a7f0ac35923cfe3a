"""Square windows of a map: cut, join, and the mask of a cyclic shift."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def pad(x: Array, side: int) -> Array:
    """Zeros below and to the right of maps `b h w d`, up to multiples of `side`."""
    _, h, w, _ = x.shape
    if h % side == 0 and w % side == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))


def cut(x: Array, side: int) -> Array:
    """Windows `b*m side*side d` of maps `b h w d`, whose sides are multiples of `side`."""
    b, h, w, d = x.shape
    x = x.reshape(b, h // side, side, w // side, side, d).swapaxes(2, 3)
    return x.reshape(-1, side * side, d)


def join(x: Array, side: int, grid: tuple[int, int]) -> Array:
    """Maps `b h w d` of the grid `(h, w)` from their windows `b*m side*side d`."""
    h, w = grid
    x = x.reshape(-1, h // side, w // side, side, side, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(-1, h, w, x.shape[-1])


def shift_mask(grid: tuple[int, int], side: int, shift: int) -> np.ndarray:
    """Which tokens of a window may meet after a cyclic shift, `m side*side side*side`.

    A shift joins opposite borders of the map in one window; tokens meet only those of their side.
    """
    rows, columns = (
        np.digitize(np.arange(length), [length - side, length - shift]) for length in grid
    )
    region = (3 * rows[:, None] + columns).reshape(grid[0] // side, side, grid[1] // side, side)
    region = region.swapaxes(1, 2).reshape(-1, side * side)
    return region[:, :, None] == region[:, None, :]
