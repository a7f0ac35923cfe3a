"""Transforms of examples on the host, written as `"resize_short(256)|center_crop(224)"`.

A geometric transform is `f((h, w), settings..., rng) -> Frame` and moves all fields; a transform of
pixels is `f(image, settings..., rng) -> image` and touches the image alone, uint8 `h w 3`. One that
takes no `rng` is not random. docs/transforms.md lists them.
"""

import ast
import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageEnhance

from dynadapt.data import frames
from dynadapt.data.decode import MAX_PIXELS, decode
from dynadapt.data.fields import DENSE, Field
from dynadapt.data.frames import Frame
from dynadapt.errors import ConfigError, DataError, UnknownName, suggest

MAX_SIDE = 8000  # pixels


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SIDE


def _number(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _pair(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


def _interval(value: Any) -> bool:
    return _pair(value, _number) and value[0] <= value[1]


# Kinds of settings: the type, what a literal must be in words, and its test or its choices.
Length = Annotated[int, "a whole number of at least 1, at most 8,000", _whole]
Margin = Annotated[int, "a whole number of at least 0, at most 8,000", lambda v: _whole(v, 0)]
Share = Annotated[float, "a number between 0 and 1", lambda v: _number(v, 0, 1)]
Shift = Annotated[float, "a number between 0 and 0.5", lambda v: _number(v, 0, 0.5)]
Strength = Annotated[float, "a number of at least 0, at most 1,000,000", lambda v: _number(v, 0)]
Interval = Annotated[
    tuple[float, float],
    "two numbers (low, high) above 0.0001, at most 1,000,000",
    lambda v: _interval(v) and v[0] > 1e-4,
]
Angle = Annotated[
    float | tuple[float, float],
    "an angle in degrees or two of them (low, high), at most 1,000,000",
    lambda v: _number(v) or _interval(v),
]
Canvas = Annotated[
    int | tuple[int, int],
    "a whole number of at least 1 or two of them (h, w), at most 8,000",
    lambda v: _whole(v) or _pair(v, _whole),
]
Method = Annotated[str, "resize method", tuple(frames.METHODS)]
RotateMethod = Annotated[str, "rotate method", ("bicubic", "bilinear", "nearest")]
Size = tuple[int, int]


def resize(given: Size, size: Length, width: Margin = 0, method: Method = "bicubic") -> Frame:
    """Stretches to `size` square, or to height `size` and `width`; antialiased.

    The method "plain_bilinear" is not: it is TensorFlow's default resize, on pixels of 8 bits.
    """
    return frames.window(0, 0, *given, (size, width or size), method)


def resize_short(given: Size, size: Length, method: Method = "bicubic") -> Frame:
    """Brings the shorter side to `size` and keeps the aspect."""
    h, w = given
    scale = size / min(h, w)
    result = max(size, round(h * scale)), max(size, round(w * scale))
    return frames.window(0, 0, h, w, result, method)


def center_crop(given: Size, size: Length) -> Frame:
    """Cuts the middle `size` square out."""
    h, w = _room(given, size, "center_crop")
    return frames.window(h // 2, w // 2, size, size, (size, size))


def random_crop(
    given: Size, size: Length, padding: Margin = 0, *, rng: np.random.Generator
) -> Frame:
    """Cuts a `size` square at a random place, after `padding` black pixels on each side."""
    padded = given[0] + 2 * padding, given[1] + 2 * padding
    h, w = _room(padded, size, "random_crop")
    top, left = rng.integers(h + 1), rng.integers(w + 1)
    return frames.window(top - padding, left - padding, size, size, (size, size))


def random_resized_crop(
    given: Size,
    size: Length,
    scale: Interval = (0.08, 1.0),
    ratio: Interval = (0.75, 4 / 3),
    method: Method = "bicubic",
    *,
    rng: np.random.Generator,
) -> Frame:
    """Cuts a part of random area (share `scale`) and aspect (`ratio`, width to height), stretched
    to `size` square (Szegedy et al., arXiv:1409.4842, section 6)."""
    h, w = given
    for _ in range(10):
        area = h * w * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        high, wide = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < high <= h and 0 < wide <= w:
            top, left = rng.integers(h - high + 1), rng.integers(w - wide + 1)
            break
    else:  # an extreme shape: the largest middle part whose aspect is allowed
        aspect = np.clip(w / h, *ratio)
        high, wide = min(h, max(1, round(w / aspect))), min(w, max(1, round(h * aspect)))
        top, left = (h - high) // 2, (w - wide) // 2
    return frames.window(top, left, high, wide, (size, size), method)


def flip(given: Size, p: Share = 0.5, *, rng: np.random.Generator) -> Frame:
    """Mirrors left to right with probability `p`."""
    if rng.random() >= p:
        return frames.identity(given)
    return Frame(np.array([[-1.0, 0, given[1]], [0, 1, 0]]), given)


def rotate(
    given: Size, degrees: Angle, method: RotateMethod = "bicubic", *, rng: np.random.Generator
) -> Frame:
    """Turns about the centre by a random angle, counter-clockwise, and keeps the size.

    The angle is between -`degrees` and `degrees`, or within (low, high).
    """
    low, high = degrees if isinstance(degrees, tuple) else (-abs(degrees), abs(degrees))
    angle = math.radians(rng.uniform(low, high))
    cosine, sine = round(math.cos(angle), 12), round(math.sin(angle), 12)  # exact quarter turns
    linear = np.array([[cosine, -sine], [sine, cosine]])
    centre = np.array([given[1], given[0]]) / 2
    return Frame(np.column_stack([linear, centre - linear @ centre]), given, method)


def pad(given: Size, size: Canvas) -> Frame:
    """Adds black pixels at the bottom and on the right up to `size` square, or (h, w)."""
    h, w = size if isinstance(size, tuple) else (size, size)
    if given[0] > h or given[1] > w:
        raise ConfigError(
            f"pad({size}) met an image of {given[0]} x {given[1]} pixels; "
            "put a resize before it after which all images fit"
        )
    return frames.window(0, 0, h, w, (h, w))


def jitter(
    image: np.ndarray,
    brightness: Strength = 0.0,
    contrast: Strength = 0.0,
    saturation: Strength = 0.0,
    hue: Shift = 0.0,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Changes the colours by factors from 1 - x to 1 + x, at least 0, in a random order.

    The hue is shifted by up to `hue` of the whole circle. The factors mean what they mean to
    torchvision's ColorJitter: 0 is black, the mean grey or no colour, 1 the image itself.
    """
    picture = Image.fromarray(image)
    strengths = (brightness, contrast, saturation, hue)
    for i in rng.permutation(len(strengths)):
        if strengths[i] and i < len(_ENHANCE):
            factor = rng.uniform(max(0, 1 - strengths[i]), 1 + strengths[i])
            picture = _ENHANCE[i](picture).enhance(factor)
        elif strengths[i]:
            picture = _shift_hue(picture, rng.uniform(-hue, hue))
    return np.asarray(picture)


_ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _shift_hue(picture: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = hue.point([(h + int(share * 255)) % 256 for h in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def grey(image: np.ndarray, p: Share = 0.1, *, rng: np.random.Generator) -> np.ndarray:
    """Takes the colours away with probability `p`."""
    if rng.random() >= p:
        return image
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _room(given: Size, size: int, name: str) -> Size:
    """How much larger than `size` the image is, in height and width."""
    h, w = given
    if min(h, w) < size:
        # not a DataError: skipping such images would hide a transform that cannot work
        raise ConfigError(
            f"{name}({size}) met an image of {h} x {w} pixels; put resize_short({size}) before it"
        )
    return h - size, w - size


GEOMETRIC = (resize, resize_short, center_crop, random_crop, random_resized_crop, flip, rotate, pad)
TRANSFORMS = {f.__name__: f for f in (*GEOMETRIC, jitter, grey)}

IMAGE = {"image": Field("pixels")}
# Sizes of pictures by which to judge whether all become one size: too large for any canvas, and too
# small for any crop; what a pipeline refuses tells nothing.
_STAND_INS = ((8191, 10007), (10007, 8191), (2, 3), (3, 2))


@dataclasses.dataclass(frozen=True)
class _Step:
    transform: Callable
    settings: dict[str, Any]
    geometric: bool
    random: bool

    def __call__(self, given: Any, rng: np.random.Generator | None) -> Any:
        drawn = {"rng": rng} if self.random else {}
        return self.transform(given, **self.settings, **drawn)


class Pipeline:
    """Transforms one after another; `random` says whether they draw from the generator."""

    def __init__(self, text: str, steps: list[_Step]):
        self.text = text
        self._steps = steps
        self.random = any(step.random for step in steps)

    def __call__(
        self,
        example: Mapping[str, Any],
        rng: np.random.Generator | None = None,
        *,
        fields: Mapping[str, Field] = IMAGE,
    ) -> dict[str, Any]:
        """The example with its image decoded, uint8 `h w 3`, and all fields transformed alike.

        Args:
            example: of a data set; its `image` may be the bytes of a file.
            rng: to draw from; may be None where nothing is random.
            fields: what the arrays of the example are; those it lacks are passed over.

        Returns:
            The example, with `frame` from its image to the result, and `size`, (h, w) of its image;
            one without an image as it is.

        Raises:
            DataError: for an image that cannot be decoded or would become too large, or a field of
                another size.
        """
        if "image" not in example:
            return dict(example)
        name = example.get("name", "an image")
        image = decode(example["image"], name, example.get("orient", False))
        out = dict(example) | {"image": image}
        size = image.shape[:2]
        _check_sizes(out, fields, size, name)
        whole = frames.identity(size)
        for step in self._steps:
            if step.geometric:
                frame = step(whole.size, rng)
                if math.prod(frame.size) > MAX_PIXELS:
                    raise DataError(f"{name} would get {frame.size} pixels (h, w) in {self.text!r}")
                out = frames.warp_all(out, fields, frame)
                whole = frames.compose(whole, frame)
            else:
                out["image"] = step(out["image"], rng)
        return out | {"frame": whole, "size": size}

    def size(self, given: tuple[int, ...] = ()) -> Size | None:
        """(h, w) that an image of the `given` size gets, or that any gets for (); None where it
        depends on the image.

        Raises:
            ConfigError: for a given size that the transforms refuse.
        """
        if given:
            return self._size(given)
        found = set()
        for size in _STAND_INS:
            with contextlib.suppress(ConfigError):
                found.add(self._size(size))
        return found.pop() if len(found) == 1 else None

    def _size(self, size: tuple[int, ...]) -> Size:
        rng = np.random.default_rng(0)
        for step in self._steps:
            size = step(size, rng).size if step.geometric else size
        return size

    def __repr__(self) -> str:
        return f"pipeline({self.text!r})"


def _check_sizes(example: dict, fields: Mapping[str, Field], size: Size, name: str) -> None:
    for key, field in fields.items():
        if field.kind in DENSE and key in example and example[key].shape[:2] != size:
            raise DataError(
                f"{key} of {name} is an array {example[key].shape}, but the image has "
                f"{size[0]} x {size[1]} pixels"
            )


def pipeline(text: str) -> Pipeline:
    """Reads `"random_resized_crop(224)|flip"`; an empty text only decodes.

    Settings are literals; a word needs no quotes.

    Raises:
        UnknownName: for a transform or method that is not there.
        ConfigError: for what cannot be read, and settings that a transform does not take.
    """
    if not text.strip():
        return Pipeline(text, [])
    try:
        node = ast.parse(text.strip(), mode="eval").body
        ast.unparse(node)  # fails where it is nested too deeply
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(
            f"cannot read the transforms {text!r:.200}; write them as in 'resize(224)|flip'"
        ) from None
    calls = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        calls.append(node.right)
        node = node.left
    return Pipeline(text, [_step(call, text) for call in [node, *reversed(calls)]])


def _step(node: ast.expr, text: str) -> _Step:
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    written = ast.unparse(node)
    if not isinstance(call.func, ast.Name):
        raise ConfigError(f"{written!r} in {text!r} is not a transform with settings")
    name = call.func.id
    if name not in TRANSFORMS:
        raise UnknownName("transform", name, TRANSFORMS)
    transform = TRANSFORMS[name]
    try:
        settings = _settings(call, _known(transform))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{written!r} does not fit {signature(name)}: {error}") from None
    random = "rng" in inspect.signature(transform).parameters
    return _Step(transform, settings, transform in GEOMETRIC, random)


def signature(name: str) -> str:
    """How a transform is written, with the defaults of its settings."""
    known = _known(TRANSFORMS[name]).values()
    shown = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in known)
    return f"{name}({', '.join(shown)})"


def _known(transform: Callable) -> dict[str, inspect.Parameter]:
    """The parameters that are settings, by name."""
    _, *parameters = inspect.signature(transform).parameters.values()
    return {p.name: p for p in parameters if p.name != "rng"}


def _settings(call: ast.Call, known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The settings of a call by name; raises TypeError or ValueError with what is wrong."""
    args = [_literal(arg) for arg in call.args]
    named = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    for name in named:
        if name not in known:
            raise TypeError(f"there is no setting {name!r}, {suggest(name, known)}")
    settings = inspect.Signature(list(known.values())).bind(*args, **named).arguments
    for name, value in settings.items():
        wanted, fits = known[name].annotation.__metadata__
        if isinstance(fits, tuple) and value not in fits:
            raise UnknownName(wanted, value, fits)
        if callable(fits) and not fits(value):
            raise ValueError(f"{name} must be {wanted}")
    return settings


class _Words(ast.NodeTransformer):
    """Bare words are strings."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        return ast.Constant(node.id)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(_Words().visit(node))
    except (TypeError, ValueError, RecursionError):
        raise ValueError("its settings must be literals") from None
