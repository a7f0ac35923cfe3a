"""Rays of a camera and where they meet solids: what every drawn scene is made of.

The world is in metres, x to the right, y ahead and z up, and its floor is z = 0. Every picture is
`size` pixels square.
"""

import math
from dataclasses import dataclass

import numpy as np

VIEW = 0.6  # tangent of half the camera's angle
FAR = 1e4  # of rays that meet nothing
# Of the radius 1 at the middle, which falls by a factor of height in units of half the height.
_TAPER = {"cylinder": (1.0, 0.0), "cone": (0.5, 0.5)}


@dataclass(frozen=True)
class Solid:
    """A box, ellipsoid, upright cylinder or upright cone, turned by `yaw` about the vertical
    through its centre `3`.

    `half` holds half its lengths along its own axes, `3`; `colour` is red, green, blue in 0 to 1.
    """

    kind: str
    centre: np.ndarray
    half: np.ndarray
    yaw: float
    colour: np.ndarray


@dataclass(frozen=True)
class Camera:
    """A camera above (0, 0), `pitch` below the horizon; it looks along the second axis."""

    height: float
    pitch: float


def cast(camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The eye `3` and a direction for each pixel `p 3`, row by row from the top left.

    A direction is one long along the camera's axis, so that what multiplies it is the depth.
    """
    steps = ((np.arange(size) + 0.5) / size * 2 - 1) * VIEW
    up, right = (a.ravel()[:, None] for a in np.meshgrid(-steps, steps, indexing="ij"))
    sine, cosine = math.sin(camera.pitch), math.cos(camera.pitch)
    rays = np.array([0, cosine, -sine]) + right * [1, 0, 0] + up * [0, sine, cosine]
    return np.array([0, 0, camera.height], np.float32), rays.astype(np.float32)


def meet(solid: Solid, eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth `p` where rays meet the solid first, FAR where they don't, and its normals `p 3`."""
    sine, cosine = math.sin(solid.yaw), math.cos(solid.yaw)
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
    half = solid.half.astype(np.float32)
    # in the solid's own axes, in which half its lengths are 1
    start = turn @ (eye - solid.centre.astype(np.float32)) / half
    step = rays @ turn.T / half
    if solid.kind == "box":
        step = np.where(np.abs(step) < 1e-6, np.float32(1e-6), step)
        enter, leave = (-np.sign(step) - start) / step, (np.sign(step) - start) / step
        depth = enter.max(1)
        hit = (depth < leave.min(1)) & (depth > 0)
        own = -np.sign(step) * (enter == depth[:, None])
    elif solid.kind == "ellipsoid":
        a, b, c = (step * step).sum(1), step @ start, start @ start - 1
        inside = b * b - a * c
        depth = (-b - np.sqrt(np.maximum(inside, 0))) / a
        hit = (inside > 0) & (depth > 0)
        own = start + depth[:, None] * step
    else:
        depth, own = _meet_round(start, step, *_TAPER[solid.kind])
        hit = depth < FAR
    normal = (own / half) @ turn
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    return np.where(hit, depth, FAR).astype(np.float32), normal.astype(np.float32)


def _meet_round(
    start: np.ndarray, step: np.ndarray, radius: float, taper: float
) -> tuple[np.ndarray, np.ndarray]:
    """Depth `p` and normals `p 3` of the solid |z| <= 1, x² + y² <= (radius - taper z)²."""
    (x, y, z), (dx, dy, dz) = start, step.T
    dz = np.where(np.abs(dz) < 1e-6, np.float32(1e-6), dz)
    there = np.float32(radius - taper * z)
    a = dx * dx + dy * dy - (taper * dz) ** 2
    a = np.where(np.abs(a) < 1e-6, np.float32(1e-6), a)
    b, c = dx * x + dy * y + taper * dz * there, x * x + y * y - there**2
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    best, own = np.full(len(step), FAR, np.float32), np.zeros_like(step)
    for depth in ((-b - root) / a, (-b + root) / a):
        point = start + depth[:, None] * step
        slope = taper * (radius - taper * point[:, 2])
        hit = (b * b > a * c) & (np.abs(point[:, 2]) <= 1) & (depth > 0) & (depth < best)
        best = np.where(hit, depth, best)
        side = np.stack([point[:, 0], point[:, 1], slope], axis=1)
        own = np.where(hit[:, None], side, own)
    for end in (-1.0, 1.0):
        depth = (end - z) / dz
        point = start + depth[:, None] * step
        within = (point[:, :2] ** 2).sum(1) <= (radius - taper * end) ** 2
        hit = within & (depth > 0) & (depth < best)
        best = np.where(hit, depth, best)
        own = np.where(hit[:, None], np.float32([0, 0, end]), own)
    return best, own
