"""From the centres of groups to single points."""

import jax
import jax.numpy as jnp

Array = jax.Array

NEAREST = 3


def shares(points: Array, centers: Array) -> Array:
    """What each centre has in each point, `n g`, float32: inverse squares of distances, of the
    three nearest centres, adding up to 1 (PointNet++, arXiv 1706.02413).

    Args:
        points: of one cloud, `n 3`.
        centers: `g 3`; all of them count where they are fewer than three.
    """
    points, centers = (jnp.asarray(x, jnp.float32) for x in (points, centers))
    away = jnp.square(points[:, None] - centers[None]).sum(-1)
    near, numbers = jax.lax.top_k(-away, min(NEAREST, len(centers)))
    weights = 1.0 / (1e-8 - near)
    weights = weights / weights.sum(1, keepdims=True)
    # A product of the whole instead of a choice of rows, whose gradient would add them up one by
    # one.
    return (jax.nn.one_hot(numbers, len(centers)) * weights[..., None]).sum(1)
