"""ATSS (Zhang et al., arXiv 1912.02424): which anchors learn which object, what they learn of it,
and the answers that they give. All of one image, in fixed shapes; use `jax.vmap` for a batch.

Anchors `a` are those of all levels, one after another, fine to coarse.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from dynadapt.targets import nms
from dynadapt.targets.boxes import centres, decode, giou, iou
from dynadapt.targets.focal import focal

Array = jax.Array

NEAREST = 9  # anchors of a level that an object looks at
INSIDE = 0.01  # pixels that an anchor's centre must lie within an object
BOX = 2.0  # weight of the boxes' loss
CANDIDATES = 1000  # pairs of anchor and class of a level that answers are chosen from


def valid(sizes: Sequence[tuple[int, int]], strides: Sequence[float], extent: Array) -> Array:
    """Whether each anchor's cell holds any of the picture, `a`.

    Args:
        sizes: (h, w) of each level.
        strides: of each level.
        extent: (h, w) of the canvas that the picture fills, `2`.
    """
    found = []
    for (h, w), stride in zip(sizes, strides, strict=True):
        rows, columns = jnp.arange(h) * stride < extent[0], jnp.arange(w) * stride < extent[1]
        found.append((rows[:, None] & columns[None]).ravel())
    return jnp.concatenate(found)


def assign(levels: Sequence[Array], valid: Array, boxes: Array, there: Array) -> Array:
    """The object that each anchor learns, `a`; -1 for none.

    Of each level an object looks at the anchors whose centres are nearest to its own. Those learn
    it whose centre lies inside and whose IoU with it is at least the mean of all it looks at, and
    their standard deviation more. An anchor of several objects learns that of the largest IoU, the
    first of equals.

    Args:
        levels: anchors `hw 4` of each level.
        valid: `a`; others are looked at by no object.
        boxes: of the objects, `g 4`.
        there: `g`, whether a row is an object.
    """
    middle, seen, start = centres(boxes), [], 0
    for level in levels:
        gaps = jnp.square(middle[:, None] - centres(level)[None]).sum(-1)  # g hw
        gaps = jnp.where(valid[None, start : start + len(level)], gaps, jnp.inf)
        _, nearest = jax.lax.top_k(-gaps, min(NEAREST, len(level)))
        seen.append(start + nearest)
        start += len(level)
    seen = jnp.concatenate(seen, axis=1)  # g k
    real, anchors = valid[seen], jnp.concatenate(levels)[seen]
    overlap = iou(anchors, boxes[:, None])
    count = real.sum(1, keepdims=True)
    mean = jnp.where(real, overlap, 0.0).sum(1, keepdims=True) / jnp.maximum(count, 1)
    spread = jnp.where(real, jnp.square(overlap - mean), 0.0).sum(1, keepdims=True)
    least = mean + jnp.sqrt(spread / jnp.maximum(count - 1, 1))
    point = centres(anchors)
    margins = jnp.concatenate([point - boxes[:, None, :2], boxes[:, None, 2:] - point], axis=-1)
    learns = real & there[:, None] & (overlap >= least) & (margins.min(-1) > INSIDE)
    # Held, as it is compared with itself: computed anew it might be off in the last bit.
    overlap = jax.lax.optimization_barrier(jnp.where(learns, overlap, -1.0))
    best = jnp.full(start, -1.0).at[seen].max(overlap)
    number = jnp.broadcast_to(jnp.arange(len(boxes))[:, None], seen.shape)
    chosen = learns & (overlap == best[seen])
    owner = jnp.full(start, len(boxes)).at[seen].min(jnp.where(chosen, number, len(boxes)))
    return jnp.where(owner < len(boxes), owner, -1)


def centerness(anchors: Array, boxes: Array) -> Array:
    """How central the centres of anchors `a 4` lie in boxes `a 4` around them, `a`, in (0, 1]."""
    point = centres(anchors)
    low, high = point - boxes[:, :2], boxes[:, 2:] - point
    return jnp.sqrt((jnp.minimum(low, high) / jnp.maximum(low, high)).prod(-1))


def losses(
    outputs: tuple[Array, Array, Array],
    anchors: Array,
    valid: Array,
    owner: Array,
    boxes: Array,
    classes: Array,
) -> dict[str, Array]:
    """The losses of each anchor, and what their sums are to be divided by.

    Args:
        outputs: logits of the classes `a c`, deltas `a 4`, logits of the centerness `a`.
        anchors: `a 4`.
        valid: `a`; others have no loss.
        owner: as of `assign`, `a`.
        boxes: `g 4`.
        classes: of the objects, `g`.

    Returns:
        `class`, `box` and `centre`, `a` each; `positive`, the number of anchors that learn an
        object, at least 1, which divides `class` and `centre`; and `central`, the sum of their
        centerness, which divides `box`.
    """
    logits, deltas, centred = outputs
    learns = owner >= 0
    own = jnp.where(learns, owner, 0)
    each = focal(logits, jnp.where(learns, classes[own], -1))
    # Where there is no object, the anchor stands for it: nothing there may be infinite.
    target = jnp.where(learns[:, None], boxes[own], anchors)
    central = jnp.where(learns, centerness(anchors, target), 0.0)
    found = decode(anchors, jnp.where(learns[:, None], deltas, 0.0))
    cross = optax.losses.sigmoid_binary_cross_entropy(centred, central)
    return {
        "class": jnp.where(valid, each.sum(-1), 0.0),
        "box": BOX * central * (1 - giou(found, target)),
        "centre": jnp.where(learns, cross, 0.0),
        "positive": jnp.maximum(learns.sum(dtype=jnp.float32), 1.0),
        "central": central.sum(),
    }


def detections(
    outputs: Sequence[tuple[Array, Array, Array]],
    levels: Sequence[Array],
    valid: Array,
    extent: Array,
    *,
    least: float,
    threshold: float,
    most: int,
) -> dict[str, Array]:
    """The best boxes of an image.

    The score is the class's probability times that of the centerness.

    Args:
        outputs: of each level, as of `losses`.
        levels: anchors `hw 4` of each level.
        valid: `a`; others give no answer.
        extent: (h, w) that boxes are clipped to.
        least: probability of a class, beyond which there is an answer.
        threshold: IoU beyond which the worse of two boxes of one class goes.
        most: k.

    Returns:
        `boxes` `k 4`, `scores` `k`, best first, and `classes` `k`; 0 and -1 where there is none.
    """
    parts, start = [], 0
    edges = jnp.concatenate([extent[::-1]] * 2).astype(jnp.float32)
    for (logits, deltas, centred), level in zip(outputs, levels, strict=True):
        chance = jax.nn.sigmoid(logits)
        real = valid[start : start + len(level), None] & (chance > least)
        flat = jnp.where(real, chance, 0.0).ravel()
        chance, place = jax.lax.top_k(flat, min(CANDIDATES, len(flat)))
        cell, number = jnp.divmod(place, logits.shape[-1])
        boxes = jnp.clip(decode(jnp.asarray(level)[cell], deltas[cell]), 0.0, edges[None])
        parts.append((boxes, chance * jax.nn.sigmoid(centred[cell]), number))
        start += len(level)
    boxes, scores, classes = (jnp.concatenate(x) for x in zip(*parts, strict=True))
    kept, scores = nms.greedy(boxes, scores, classes, threshold=threshold, most=most)
    some = scores > 0
    return {
        "boxes": jnp.where(some[:, None], boxes[kept], 0.0),
        "scores": scores,
        "classes": jnp.where(some, classes[kept], -1),
    }
