"""Suppression of answers that other, better ones make superfluous; of one image, in fixed shapes.

A score of 0 is no answer. Use `jax.vmap` for a batch.
"""

import jax
import jax.numpy as jnp

from dynadapt.errors import UnknownName
from dynadapt.targets.boxes import iou

Array = jax.Array

KERNELS = ("gaussian", "linear")


def greedy(
    boxes: Array, scores: Array, classes: Array, *, threshold: float, most: int
) -> tuple[Array, Array]:
    """The best boxes, of which no two of one class overlap by more than the threshold.

    Args:
        boxes: `n 4`.
        scores: `n`, at least 0.
        classes: `n`.
        threshold: IoU beyond which the worse box of two goes.
        most: boxes that are kept.

    Returns:
        Positions `most` in the given boxes, best first and equal ones in their order, and their
        scores; 0 and 0 where no box is left.
    """

    def keep(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = left.argmax()
        gone = (iou(boxes, boxes[best][None]) > threshold) & (classes == classes[best])
        score = left[best]
        return jnp.where(gone, 0.0, left).at[best].set(0.0), (best, score)

    _, (chosen, kept) = jax.lax.scan(keep, scores, length=most)
    return chosen, kept


def matrix(
    masks: Array, scores: Array, classes: Array, *, kernel: str = "gaussian", sigma: float = 2.0
) -> Array:
    """Scores `n` that better masks of the same class have lowered (Wang et al., arXiv 2003.10152).

    A mask j loses by each better one i, but less so if i itself is covered:
    score_j * min_i f(iou_ij) / f(max_k iou_ki), f(x) = exp(-sigma x^2) or 1 - x.

    Args:
        masks: `n h w`, 0 or 1.
        scores: `n`, at least 0; of equal ones the first is the better.
        classes: `n`.
        kernel: f, one of `KERNELS`.
        sigma: of the Gaussian one.
    """
    if kernel not in KERNELS:
        raise UnknownName("kernel", kernel, KERNELS)
    flat = masks.reshape(len(masks), -1).astype(jnp.float32)
    areas, both = flat.sum(1), flat @ flat.T
    overlap = both / jnp.maximum(areas[:, None] + areas[None] - both, 1.0)
    place = jnp.arange(len(scores))
    better = scores[:, None] > scores[None]
    better |= (scores[:, None] == scores[None]) & (place[:, None] < place[None])
    counts = better & (classes[:, None] == classes[None]) & (scores[:, None] > 0)
    overlap = jnp.where(counts, overlap, 0.0)  # [i, j]: of j by a better i
    covered = overlap.max(0)[:, None]
    if kernel == "gaussian":
        factor = jnp.exp(-sigma * (jnp.square(overlap) - jnp.square(covered)))
    else:
        factor = (1 - overlap) / jnp.maximum(1 - covered, 1e-6)
    return scores * jnp.minimum(jnp.where(counts, factor, 1.0).min(0), 1.0)
