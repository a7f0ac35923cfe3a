"""Maps of one class against the rest: the balanced loss, and counts at thresholds."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def known(labels: Array, fill: float) -> Array:
    """Which pixels are of the class, 1, or of the rest, 0; `fill` is void."""
    return ((labels == 0) | (labels == 1)) & (labels != fill)


def balanced(logits: Array, labels: Array, valid: Array, share: float | None = None) -> Array:
    """The sum over each image's valid pixels of cross-entropy, `b`, weighted by `share` where the
    label is 1 and by 1 - `share` where it is 0 (Xie and Tu, arXiv 1504.06375, equation 2).

    Args:
        logits: `b h w`.
        labels: `b h w`, 0 or 1 where valid.
        valid: `b h w`, bool.
        share: None for the share of zeros among the valid pixels of all images.
    """
    positive = valid & (labels == 1)
    if share is None:
        share = (valid & ~positive).sum() / jnp.maximum(valid.sum(), 1)
    loss = optax.sigmoid_binary_cross_entropy(logits, positive.astype(jnp.float32))
    weight = jnp.where(positive, share, 1 - share)
    return jnp.where(valid, weight * loss, 0.0).sum(2).sum(1)


def counts(
    chances: Array, labels: Array, valid: Array, thresholds: Sequence[float]
) -> dict[str, Array]:
    """Valid pixels of every image above each threshold, int32.

    Args:
        chances: `b h w`, from 0 to 1.
        labels: `b h w`, 0 or 1 where valid.
        valid: `b h w`, bool.
        thresholds: k of them.

    Returns:
        `both` and `given`, `b k`: those of the class among those above, and all above; `there`,
        `b`, those of the class, and `pixels`, `b`, all.
    """
    positive = valid & (labels == 1)

    def above(where: Array) -> Array:
        found = [((chances > t) & where).sum((1, 2)) for t in thresholds]
        return jnp.stack(found, axis=1)

    return {
        "both": above(positive),
        "given": above(valid),
        "there": positive.sum((1, 2)),
        "pixels": valid.sum((1, 2)),
    }


def dilated(values: Array, reach: float) -> Array:
    """The largest of the values `b h w`, at least 0, within `reach` pixels of each."""
    r, h = int(reach), values.shape[1]
    padded, found = jnp.pad(values, ((0, 0), (r, r), (0, 0))), []
    for down in range(-r, r + 1):
        wide = 2 * int(math.sqrt(reach**2 - down**2)) + 1
        part = padded[:, r + down : r + down + h]
        found.append(jax.lax.reduce_window(part, 0.0, jax.lax.max, (1, 1, wide), (1, 1, 1), "SAME"))
    return functools.reduce(jnp.maximum, found)


def near(chances: Array, labels: Array, valid: Array, steps: int, reach: float) -> dict[str, Array]:
    """Pixels of lines in every image, answered and true, of which the other ones are within reach.

    Args:
        chances: `b h w`, from 0 to 1.
        labels: `b h w`, 0 or 1 where valid.
        valid: `b h w`, bool.
        steps: thresholds are 1/steps, 2/steps, to (steps - 1)/steps.
        reach: pixels, between centres.

    Returns:
        For each threshold, `b steps-1`, int32: `given`, pixels of at least that chance; `right`,
        those of them near a true one; `found`, true ones near a given one. And `there`, `b`.
    """
    true = valid & (labels == 1)
    chances = jnp.where(valid, chances, 0.0)
    around = dilated(true.astype(jnp.float32), reach) > 0

    def at_least(values: Array, where: Array) -> Array:
        level = jnp.clip(jnp.floor(values * steps), 0, steps - 1).astype(jnp.int32)
        level = jnp.where(where, level, 0).reshape(len(values), -1)
        each = jax.vmap(lambda row: jnp.bincount(row, length=steps))(level)
        return jnp.cumsum(each[:, ::-1], axis=1)[:, ::-1][:, 1:]

    return {
        "given": at_least(chances, valid),
        "right": at_least(chances, valid & around),
        "found": at_least(dilated(chances, reach), true),
        "there": true.sum((1, 2)),
    }
