"""Label maps against each other: areas for each class, and what is made of them."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def areas(predicted: Array, labels: Array, classes: int) -> dict[str, Array]:
    """Pixels of each class in every image, `b c` int32, where a label is known.

    Args:
        predicted: `b h w`, classes.
        labels: `b h w`; all that is not in [0, classes) is void and counts nowhere.
        classes: c.

    Returns:
        `intersection`, `predicted` and `labelled`.
    """
    known = (labels >= 0) & (labels < classes)

    def count(values: Array, where: Array) -> Array:
        numbers = jnp.where(where, values, classes).reshape(len(values), -1)
        return jax.vmap(lambda row: jnp.bincount(row, length=classes + 1)[:classes])(numbers)

    return {
        "intersection": count(labels, known & (predicted == labels)),
        "predicted": count(predicted, known),
        "labelled": count(labels, known),
    }


def by_class(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Intersection over union and accuracy of each class over all images, `c` float64.

    Args:
        rows: areas `n c` as of `areas`.

    Returns:
        `iou` and `acc`; NaN for a class that no image has or, of `iou`, that none was given either.
    """
    both, given, there = (
        rows[k].sum(0, dtype=np.int64) for k in ("intersection", "predicted", "labelled")
    )
    with np.errstate(invalid="ignore"):
        return {"iou": both / (given + there - both), "acc": both / there}
