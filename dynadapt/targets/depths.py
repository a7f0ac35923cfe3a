"""Depth maps against each other: the scale-invariant loss, and errors."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_TINY = 1e-12  # below this a root has no slope worth following


def silog(predicted: Array, target: Array, valid: Array, *, variance: float, pooled: bool) -> Array:
    """Scale-invariant logarithmic error `b` (Eigen et al., arXiv 1406.2283, equation 4).

    sqrt(mean d^2 - variance (mean d)^2) with d = log target - log predicted over valid pixels; 0
    without any.

    Args:
        predicted: `b h w`, above 0.
        target: `b h w`.
        valid: `b h w`, true where the target is known.
        variance: the part of the squared mean that is taken off.
        pooled: take means over the pixels of all images; every entry is then the same.
    """
    axes = (0, 1, 2) if pooled else (1, 2)
    d = jnp.where(valid, jnp.log(jnp.where(valid, target, 1.0)) - jnp.log(predicted), 0.0)
    count = jnp.maximum(valid.sum(axes), 1)
    inside = jnp.square(d).sum(axes) / count - variance * jnp.square(d.sum(axes) / count)
    some = inside > _TINY
    return jnp.broadcast_to(
        jnp.where(some, jnp.sqrt(jnp.where(some, inside, 1.0)), 0.0), target.shape[:1]
    )


def sums(predicted: Array, target: Array, valid: Array) -> dict[str, Array]:
    """What errors are made of: sums over the valid pixels of each image, `b` each, and `pixels`."""
    p, t = (jnp.where(valid, x, 1.0) for x in (predicted, target))
    log = jnp.log(p) - jnp.log(t)
    more, less = jnp.maximum(p, t), jnp.minimum(p, t)
    # Exact where it is close, as quotients are not: such differences and such parts lose no bit.
    within = {
        "d1": more - less < less / 4,  # more < 1.25 less
        "d2": (more - less) - less / 2 < less / 16,  # more < 1.5625 less
        "d3": (more - 2 * less) + less / 32 < -less / 64,  # more < 1.953125 less
    }
    each = {
        "abs_rel": jnp.abs(p - t) / t,
        "sq_rel": jnp.square(p - t) / t,
        "square": jnp.square(p - t),
        "log": log,
        "log_square": jnp.square(log),
        "log10": jnp.abs(log) / np.log(10.0),
        **{k: v.astype(jnp.float32) for k, v in within.items()},
    }
    # Row by row: a float32 sum over a whole picture is off in the sixth digit.
    found = {k: jnp.where(valid, v, 0.0).sum(2).sum(1) for k, v in each.items()}
    return {**found, "pixels": valid.sum((1, 2))}


def errors(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Errors from sums, both of any shape, float64.

    `abs_rel`, `sq_rel`, `rmse` in units of the depth, `rmse_log`, `log10`, `silog` with half of the
    squared mean taken off, and `d1`, `d2`, `d3`: shares within a factor of 1.25, its square, cube.
    """
    count = np.maximum(rows["pixels"], 1)
    mean = {k: rows[k].astype(np.float64) / count for k in rows if k != "pixels"}
    log, square = mean.pop("log"), mean.pop("log_square")
    return {
        **{k: mean[k] for k in ("abs_rel", "sq_rel")},
        "rmse": np.sqrt(mean["square"]),
        "rmse_log": np.sqrt(square),
        "log10": mean["log10"],
        "silog": np.sqrt(np.maximum(square - 0.5 * log**2, 0.0)),
        **{k: mean[k] for k in ("d1", "d2", "d3")},
    }
