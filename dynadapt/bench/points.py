"""Farthest points and nearest neighbours beside a loop of numpy."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynadapt.backbones import point_mae
from dynadapt.bench import interleaved, machine, milliseconds, ratio, timed

# Clouds of a batch, their points, points that are chosen, and neighbours of each.
CASES = ((32, 1024, 64, 32), (32, 2048, 128, 32), (8, 8192, 1200, 32))


def farthest_in_numpy(points: np.ndarray, groups: int) -> np.ndarray:
    """What `farthest_points` chooses of clouds `b n 3`: `b g`."""
    found = np.zeros((len(points), groups), np.int64)
    for cloud, chosen in zip(points, found, strict=True):
        distance = np.full(len(cloud), np.inf, np.float32)
        for i in range(1, groups):
            own = np.square(cloud - cloud[chosen[i - 1]]).sum(-1)
            distance = np.minimum(distance, own)
            chosen[i] = distance.argmax()
    return found


def nearest_in_numpy(points: np.ndarray, centers: np.ndarray, k: int) -> np.ndarray:
    """What `nearest` chooses of clouds `b n 3` for centres `b g 3`: `b g k`."""
    found = np.zeros((*centers.shape[:2], k), np.int64)
    for cloud, middles, rows in zip(points, centers, found, strict=True):
        for row, middle in zip(rows, middles, strict=True):
            row[:] = np.square(cloud - middle).sum(-1).argsort(kind="stable")[:k]
    return found


def run(rounds: int) -> dict[str, Any]:
    """Times both, in float32 on the device that is here; `equal` is the share of equal choices.

    That of farthest points can be less than 100 % where more than a thousand are chosen: compiled
    programs may round a product and a sum once, and of two points nearly as far another is first.

    Args:
        rounds: readings of each.
    """
    rows = []
    for b, n, g, k in CASES:
        points = np.random.default_rng(0).normal(size=(b, n, 3)).astype(np.float32)
        centers = points[:, :g]
        farthest = jax.jit(jax.vmap(lambda cloud, g=g: point_mae.farthest_points(cloud, g)))
        nearest = jax.jit(jax.vmap(lambda cloud, c, k=k: point_mae.nearest(cloud, c, k)))
        pairs = {
            "farthest points": (farthest, farthest_in_numpy, (points,), g),
            "nearest points": (nearest, nearest_in_numpy, (points, centers), k),
        }
        for what, (ours, loop, given, count) in pairs.items():
            rows.append(
                dict(what=what, case=f"{b}x{n}, {g} of {k}" if count == k else f"{b}x{n}, {g}")
                | _compared(ours, lambda f=loop, v=given, c=count: f(*v, c), given, rounds)
            )
    return dict(machine=machine(), rows=rows)


def _compared(
    ours: Callable[..., Any], loop: Callable[[], np.ndarray], given: tuple, rounds: int
) -> dict[str, Any]:
    placed = jax.device_put(given)
    equal = 100 * float((np.asarray(ours(*placed)) == loop()).mean())
    own, other = interleaved([timed(lambda: ours(*placed)), timed(loop)], rounds)
    times = dict(ms=milliseconds(own), numpy_ms=milliseconds(other))
    return times | dict(ours_over_numpy=ratio(own, other), equal=f"{equal:.2f} %")
