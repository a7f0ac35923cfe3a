"""What follows from other fields of an example: normals from depth, edges from regions, the nearest
object as the salient one."""

import numpy as np
from scipy import ndimage

REACH = 1 / 160  # of a picture's width: how far apart points are from which a slope is taken
BEND = 0.03  # of the inverse depth: what is further from straight is no one surface


def normals(depth: np.ndarray, focal: float, centre: tuple[float, ...] = ()) -> np.ndarray:
    """Unit vectors float32 `h w 3` of the surfaces in a depth map, x to the right, y down and z
    away from the camera, which they face; zero where they aren't known.

    The inverse depth of a plane is linear in the picture, so its slope is that of the plane. It is
    taken between points that lie on a straight line with the one between them, and is the mean over
    as many lines.

    Args:
        depth: metres `h w`, 0 where unknown.
        focal: of the camera, in pixels.
        centre: (x, y) of its axis, counted from the centre of the first pixel; () for the middle of
            the picture.
    """
    h, w = depth.shape
    known = depth > 0
    inverse = np.divide(1, depth, where=known, out=np.zeros((h, w), np.float32))
    reach = max(1, round(w * REACH))
    across, fits = _slope(inverse, reach)
    down, fits_too = (value.T for value in _slope(inverse.T, reach))
    right, low = centre or ((w - 1) / 2, (h - 1) / 2)
    x, y = np.arange(w) - right, np.arange(h)[:, None] - low
    ahead = inverse - x * across - y * down
    out = -np.stack([focal * across, focal * down, ahead], axis=-1).astype(np.float32)
    out /= np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    out[~(known & fits & fits_too)] = 0
    return out


def _slope(inverse: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """What `inverse` `h w` gains by each pixel to the right, and where that is known."""
    before, middle, after = (
        inverse[:, : -2 * reach],
        inverse[:, reach:-reach],
        inverse[:, 2 * reach :],
    )
    straight = (before > 0) & (middle > 0) & (after > 0)
    straight &= abs(before + after - 2 * middle) < BEND * middle
    sums = np.zeros((2, *inverse.shape), np.float32)
    sums[0, :, reach:-reach] = np.where(straight, (after - before) / (2 * reach), 0)
    sums[1, :, reach:-reach] = straight
    slope, share = ndimage.uniform_filter1d(sums, 2 * reach + 1, axis=1)
    fits = share * (2 * reach + 1) > 0.5  # of one point at least
    return slope / np.where(fits, share, 1), fits


def edges(regions: np.ndarray, void: int | None = None) -> np.ndarray:
    """1 where a pixel is of another region than the one above it or left of it, int32 `h w`; what
    is `void` stays so, and has no edges to others."""
    found = np.zeros(regions.shape, np.int32)
    for later, earlier, edge in (
        (regions[1:], regions[:-1], found[1:]),
        (regions[:, 1:], regions[:, :-1], found[:, 1:]),
    ):
        differ = later != earlier
        if void is not None:
            differ &= (later != void) & (earlier != void)
        edge[differ] = 1
    if void is not None:
        found[regions == void] = void
    return found


def nearest(instances: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """1 on the instance whose median depth is the least, int32 `h w`; 0 everywhere where no depth
    of an instance is known."""
    known = (instances > 0) & (depth > 0)
    numbers, far = instances[known], depth[known]
    present = np.unique(numbers)
    if not len(present):
        return np.zeros(instances.shape, np.int32)
    medians = [np.median(far[numbers == number]) for number in present]
    return (instances == present[np.argmin(medians)]).astype(np.int32)
