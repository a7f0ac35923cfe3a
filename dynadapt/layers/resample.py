"""Maps at another size; position embeddings too, each by the rule of its source.

The rules differ, and features with them: `antialias` shrinks with a widened cubic (a = -0.5, timm,
DINOv2 with registers), `cubic` takes four neighbours at every size (a = -0.75, borders repeated;
Hugging Face, MAE), `offset` does the same with the scale `(new + 0.1) / old` (DINOv2's own code
for models without registers), `linear` takes two neighbours (AugReg `.npz` files).
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

RULES = ("antialias", "cubic", "offset", "linear")


def resize(x: Array, size: tuple[int, int]) -> Array:
    """Maps `b h w c` at `size`, bilinear: half-pixel centres, borders repeated, no antialiasing."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear", antialias=False)


def resample(grid: Array, old: tuple[int, int], new: tuple[int, int], rule: str) -> Array:
    """Embeddings `1 hw d` of the grid `old`, resampled for the grid `new`: `1 h'w' d`."""
    if old == new:
        return grid
    d = grid.shape[-1]
    grid = grid.reshape(1, *old, d)
    if rule == "antialias":
        grid = jax.image.resize(grid, (1, *new, d), "cubic", antialias=True)
    else:
        rows, columns = (
            jnp.asarray(_weights(o, n, rule), grid.dtype) for o, n in zip(old, new, strict=True)
        )
        grid = jnp.einsum("yh,xw,bhwd->byxd", rows, columns, grid)
    return grid.reshape(1, -1, d)


def _weights(old: int, new: int, rule: str) -> np.ndarray:
    if rule == "linear":
        return linear(old, new)
    return cubic(old, new, (new + 0.1 if rule == "offset" else new) / old)


def linear(old: int, new: int) -> np.ndarray:
    """Weights `new old` of linear interpolation, half-pixel centres, borders repeated."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)[None]))


def cubic(old: int, new: int, scale: float) -> np.ndarray:
    """Weights `new old` of cubic convolution (Keys 1981, a = -0.75), half-pixel centres.

    `scale` is new over old, or nearly so; borders are repeated.
    """
    at = (np.arange(new) + 0.5) / scale - 0.5
    first = np.floor(at).astype(int) - 1
    matrix = np.zeros((new, old))
    for k in range(4):
        x = np.abs(at - (first + k))
        near = 1.25 * x**3 - 2.25 * x**2 + 1.0
        far = -0.75 * (x**3 - 5.0 * x**2 + 8.0 * x - 4.0)
        columns = np.clip(first + k, 0, old - 1)
        np.add.at(matrix, (np.arange(new), columns), np.where(x <= 1.0, near, far))
    return matrix
