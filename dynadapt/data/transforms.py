"""Transforms of examples on the host, written as `"resize_short(256)|center_crop(224)"`.

Those of `geometric` move all fields, those of `colours` touch the image alone. docs/transforms.md
lists them.
"""

import ast
import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynadapt.data import frames
from dynadapt.data.colours import COLOURS
from dynadapt.data.decode import MAX_PIXELS, decode
from dynadapt.data.fields import DENSE, Field
from dynadapt.data.geometric import GEOMETRIC, Size
from dynadapt.errors import ConfigError, DataError, UnknownName, suggest

TRANSFORMS = {f.__name__: f for f in (*GEOMETRIC, *COLOURS)}
DRAWN = ("rng", "labels")  # parameters of a transform that are no settings

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
    looks: bool  # at the labels

    def __call__(
        self, given: Any, rng: np.random.Generator | None, labels: np.ndarray | None = None
    ) -> Any:
        drawn = {"rng": rng} if self.random else {}
        seen = {"labels": labels} if self.looks else {}
        return self.transform(given, **self.settings, **drawn, **seen)


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
        out |= {n: np.array(size, np.int32) for n, f in fields.items() if f.kind == "extent"}
        whole = frames.identity(size)
        for step in self._steps:
            if step.geometric:
                frame = step(whole.size, rng, _labels(out, fields) if step.looks else None)
                if math.prod(frame.size) > MAX_PIXELS:
                    raise DataError(f"{name} would get {frame.size} pixels (h, w) in {self.text!r}")
                out = frames.warp_all(out, fields, frame)
                whole = frames.compose(whole, frame)
            else:
                out["image"] = step(out["image"], rng)
        return out | {"frame": whole, "size": size}

    def size(self, given: tuple[int, ...] = ()) -> Size | None:
        """(h, w) that an image of the `given` size gets, or that any gets for (); None where it
        depends on the image or on what is drawn.

        Raises:
            ConfigError: for a given size that the transforms refuse.
        """
        if given:
            found = self._sizes(given)
        else:
            found = set()
            for size in _STAND_INS:
                with contextlib.suppress(ConfigError):
                    found |= self._sizes(size)
        return found.pop() if len(found) == 1 else None

    def _sizes(self, given: Size) -> set[Size]:
        """What becomes of a size in a few draws, which may differ."""
        found = set()
        for seed in range(8 if self.random else 1):
            size, rng = given, np.random.default_rng(seed)
            for step in self._steps:
                size = step(size, rng).size if step.geometric else size
            found.add(size)
        return found

    def __repr__(self) -> str:
        return f"pipeline({self.text!r})"


def _labels(example: dict, fields: Mapping[str, Field]) -> np.ndarray | None:
    """The field `labels` of an example, -1 where it is void."""
    if "labels" not in fields or "labels" not in example:
        return None
    return np.where(example["labels"] == fields["labels"].fill, -1, example["labels"])


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
    random, looks = (name in inspect.signature(transform).parameters for name in DRAWN)
    return _Step(transform, settings, transform in GEOMETRIC, random, looks)


def signature(name: str) -> str:
    """How a transform is written, with the defaults of its settings."""
    known = _known(TRANSFORMS[name]).values()
    shown = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in known)
    return f"{name}({', '.join(shown)})"


def _known(transform: Callable) -> dict[str, inspect.Parameter]:
    """The parameters that are settings, by name."""
    _, *parameters = inspect.signature(transform).parameters.values()
    return {p.name: p for p in parameters if p.name not in DRAWN}


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
