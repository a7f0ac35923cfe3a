"""Intersection over union of the parts of single clouds, and their means."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def counts(found: Array, parts: Array, classes: int) -> dict[str, Array]:
    """Points of each part in every cloud, `b c` int32, where the part of a point is known.

    Args:
        found: `b n`, parts.
        parts: `b n`; all that is not in [0, classes) counts nowhere.
        classes: c.

    Returns:
        `intersection` and `union`.
    """
    known = (parts >= 0) & (parts < classes)

    def count(values: Array, where: Array) -> Array:
        numbers = jnp.where(where, values, classes)
        return jax.vmap(lambda row: jnp.bincount(row, length=classes + 1)[:classes])(numbers)

    both = count(parts, known & (found == parts))
    return {"intersection": both, "union": count(found, known) + count(parts, known) - both}


def of_clouds(
    intersection: np.ndarray, union: np.ndarray, category: np.ndarray, owners: np.ndarray
) -> np.ndarray:
    """The mean over the parts of its category of each cloud, `b`, float64.

    A part that is neither there nor answered counts as 1, as ShapeNetPart's protocol has it.

    Args:
        intersection: `b c`.
        union: `b c`.
        category: of each cloud, `b`.
        owners: the category of each part, `c`.
    """
    iou = np.where(union > 0, intersection / np.maximum(union, 1), 1.0)
    own = owners[None] == category[:, None]
    return (iou * own).sum(1) / np.maximum(own.sum(1), 1)
