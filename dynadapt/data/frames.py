"""Where the pixels of a transformed picture come from, and how each kind of field follows them.

Coordinates are those of edges: pixel i covers [i, i + 1), so its centre is at i + 0.5. A point is
(x, y), x to the right and y down; a size is (h, w).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from dynadapt.data.fields import DENSE, Field

METHODS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "plain_bilinear": Image.Resampling.BILINEAR,  # TensorFlow's default resize: not antialiased
}
_SNAP = 1e-6  # pixels: edges this near to a whole number are on it


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A geometric change of a picture.

    Attributes:
        matrix: `2 3` float64, from points of the output (x, y, 1) to points of the input.
        size: (h, w) of the output.
        method: how pixels are resampled, one of `METHODS`.
        nearer: what values such as depths are divided by, for a change that is meant to show things
            from nearer; 1 for none.
    """

    matrix: np.ndarray
    size: tuple[int, int]
    method: str = "bicubic"
    nearer: float = 1.0


def identity(size: tuple[int, int]) -> Frame:
    """The frame that changes nothing."""
    return Frame(np.array([[1.0, 0, 0], [0, 1, 0]]), size)


def window(
    top: float, left: float, h: float, w: float, size: tuple[int, int], method: str = "bicubic"
) -> Frame:
    """The part of `h` by `w` pixels at (`top`, `left`) of the input, stretched to `size`."""
    return Frame(np.array([[w / size[1], 0, left], [0, h / size[0], top]]), size, method)


def compose(first: Frame, then: Frame) -> Frame:
    """One frame for two that follow each other: from the output of `then` to the input of `first`.

    It says where pixels come from; resampled in one go they differ from two resamplings.
    """
    # in plain numbers: numpy takes longer to start than this takes
    columns = list(zip(*then.matrix.tolist(), (0, 0, 1), strict=True))
    rows = first.matrix.tolist()
    matrix = np.array([[a * x + b * y + c * one for x, y, one in columns] for a, b, c in rows])
    return Frame(matrix, then.size, then.method, first.nearer * then.nearer)


def warp(value: np.ndarray, field: Field, frame: Frame) -> np.ndarray:
    """Carries the value of a field into the output of a frame.

    Pixels are resampled and black outside of the input; labels, values, vectors and masks are those
    of the nearest input pixel, and outside are `field.fill` (labels, values) or 0. Values are
    divided by `frame.nearer`, vectors turn with the picture. A box becomes the upright one around
    its corners, clipped to the output. An extent becomes how far down and to the right what it
    spans reaches in the output. All other kinds stay as they are.
    """
    if field.kind == "boxes":
        return _warp_boxes(value, frame)
    if field.kind == "extent":
        return _reach(value, frame)
    if field.kind not in DENSE or _changes_nothing(frame, value.shape[:2]):
        return value
    if field.kind == "pixels":
        return _rotate(value, frame) if _turns(frame) else _stretch(value, frame)
    out = _nearest(value, frame, field.fill if field.kind in ("labels", "values") else 0)
    if field.kind == "values" and frame.nearer != 1:
        out[out != field.fill] /= frame.nearer
    return _turn(out, frame) if field.kind == "vectors" else out


def warp_all(example: Mapping[str, Any], fields: Mapping[str, Field], frame: Frame) -> dict:
    """Carries all fields of an example, and passes over those that it lacks.

    Boxes of which less than a pixel's width or height is left are dropped, and their rows.
    """
    present = {name: field for name, field in fields.items() if name in example}
    out = dict(example) | {n: warp(example[n], field, frame) for n, field in present.items()}
    boxes = [out[n] for n, field in present.items() if field.kind == "boxes"]
    if boxes:
        kept = np.all([(b[:, 2:] - b[:, :2] >= 1).all(1) for b in boxes], axis=0)
        rows = [n for n, field in present.items() if field.kind in ("boxes", "rows")]
        out |= {n: out[n][kept] for n in rows}
    return out


def unwarp(
    value: np.ndarray, field: Field, frame: Frame, size: tuple[int, int], smooth: bool = False
) -> np.ndarray:
    """Brings an answer from the output of a frame back to its input, by the rules of `warp`.

    Args:
        value: the answer: labels, values, vectors or masks of `frame.size`, or boxes.
        field: what it is.
        frame: from the input to what was answered on.
        size: (h, w) of the input.
        smooth: bilinear between pixels instead of the nearest one, for float maps `h w` or `h w c`
            that are valid everywhere, such as scores.
    """
    back = Frame(_inverse(frame.matrix), size, frame.method, 1 / frame.nearer)
    if not smooth:
        return warp(value, field, back)
    out = _bilinear(value, back, field.fill)
    return _turn(out, back) if field.kind == "vectors" else out


def restored(
    value: np.ndarray, frame: Frame, size: tuple[int, int], kind: str = "values"
) -> np.ndarray:
    """A float map `h w` or `h w c`, answered on the output of a frame at any resolution, in the
    pixels of its input of `size`: bilinear, 0 where it was not seen."""
    small = compose(frame, window(0, 0, *frame.size, value.shape[:2]))
    return unwarp(value, Field(kind), small, size, smooth=True)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]


def _turns(frame: Frame) -> bool:
    return bool(frame.matrix[0, 1] or frame.matrix[1, 0])


def _changes_nothing(frame: Frame, size: tuple[int, ...]) -> bool:
    return frame.size == size and frame.matrix.tolist() == [[1, 0, 0], [0, 1, 0]]


def _stretch(image: np.ndarray, frame: Frame) -> np.ndarray:
    """A frame without rotation: crop, resize (antialiased), mirror."""
    (across, _, left), (_, down, top) = frame.matrix.tolist()
    h, w = frame.size
    left, right = sorted((_snap(left), _snap(left + across * w)))
    top, bottom = sorted((_snap(top), _snap(top + down * h)))
    x, y = math.floor(left), math.floor(top)
    part = _part(image, y, x, math.ceil(bottom), math.ceil(right))
    box = (left - x, top - y, right - x, bottom - y)
    if box != (0, 0, w, h):
        part = _resample(part, frame, box)
    return part[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]


def _snap(edge: float) -> float:
    return round(edge) if abs(edge - round(edge)) < _SNAP else edge


def _part(image: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """Rows and columns of an image, black where they leave it."""
    h, w = image.shape[:2]
    if min(top, left) >= 0 and bottom <= h and right <= w:
        return image[top:bottom, left:right]
    out = np.zeros((bottom - top, right - left, 3), np.uint8)
    y, x = max(top, 0), max(left, 0)
    known = image[y : max(y, bottom), x : max(x, right)]
    out[y - top :, x - left :][: known.shape[0], : known.shape[1]] = known
    return out


def _resample(part: np.ndarray, frame: Frame, box: tuple[float, ...]) -> np.ndarray:
    picture, size, method = Image.fromarray(part), frame.size[::-1], METHODS[frame.method]
    if frame.method != "plain_bilinear":
        return np.asarray(picture.resize(size, method, box))
    left, top, right, bottom = box
    across = ((right - left) / size[0], 0, left, 0, (bottom - top) / size[1], top)
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, across, method))


def _rotate(image: np.ndarray, frame: Frame) -> np.ndarray:
    """Any frame, in one resampling without antialiasing."""
    matrix, method = frame.matrix.ravel().tolist(), METHODS[frame.method]
    picture = Image.fromarray(image)
    return np.asarray(picture.transform(frame.size[::-1], Image.Transform.AFFINE, matrix, method))


def _centres(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """x and y in the input of each output pixel's centre, both `h w` or what broadcasts to it."""
    h, w = frame.size
    x, y = np.arange(w)[None] + 0.5, np.arange(h)[:, None] + 0.5
    (a, b, c), (d, e, f) = frame.matrix.tolist()
    if _turns(frame):
        return a * x + b * y + c, d * x + e * y + f
    return a * x + c, e * y + f


def _inside(x: np.ndarray, y: np.ndarray, value: np.ndarray) -> np.ndarray:
    h, w = value.shape[:2]
    return (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _nearest(value: np.ndarray, frame: Frame, fill: float) -> np.ndarray:
    # a centre on an edge belongs to the pixel that begins there, however it was rounded
    x, y = (np.floor(at + _SNAP).astype(int) for at in _centres(frame))
    h, w = value.shape[:2]
    out = value[y.clip(0, h - 1), x.clip(0, w - 1)]
    out[~_inside(x, y, value)] = fill
    return out


def _bilinear(value: np.ndarray, frame: Frame, fill: float) -> np.ndarray:
    """Between the four nearest pixels; the outermost half pixel is constant."""
    h, w = value.shape[:2]
    x, y = _centres(frame)
    outside = ~_inside(x, y, value)
    x, y = (x - 0.5).clip(0, w - 1), (y - 0.5).clip(0, h - 1)
    left, top = x.astype(int), y.astype(int)
    right, bottom = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
    shape = (..., *[None] * (value.ndim - 2))
    across, down = ((at - np.floor(at)).astype(value.dtype)[shape] for at in (x, y))
    above = value[top, left] * (1 - across) + value[top, right] * across
    below = value[bottom, left] * (1 - across) + value[bottom, right] * across
    out = above * (1 - down) + below * down
    out[outside] = fill
    return out


def _turn(vectors: np.ndarray, frame: Frame) -> np.ndarray:
    """Turns x and y of vectors `h w 3` as the frame turns or mirrors the picture."""
    u, _, v = np.linalg.svd(frame.matrix[:, :2])
    turn = u @ v  # the orthogonal part from output to input; rows times it go the other way
    if np.array_equal(turn, np.eye(2)):
        return vectors
    xy = vectors[..., :2] @ turn.astype(vectors.dtype)
    out = np.concatenate([xy, vectors[..., 2:]], axis=-1)
    length = np.linalg.norm(out, axis=-1, keepdims=True)
    return out / np.where(length > 0, length, 1)


def _warp_boxes(boxes: np.ndarray, frame: Frame) -> np.ndarray:
    """The upright boxes around the carried corners of boxes `n 4`, clipped to the output."""
    corners = boxes.astype(np.float64)[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]  # n 4 2
    matrix = _inverse(frame.matrix)
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    h, w = frame.size
    around = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    return around.clip(0, [w, h, w, h]).astype(boxes.dtype)


def _reach(extent: np.ndarray, frame: Frame) -> np.ndarray:
    """The bottom and right edges, whole pixels, of what spans (h, w) from the top left corner."""
    whole = np.array([[0, 0, extent[1], extent[0]]], np.float64)
    edges = _warp_boxes(whole, frame)[0, [3, 2]].tolist()
    return np.array([math.ceil(_snap(edge)) for edge in edges], extent.dtype)
