"""What the settings of transforms may be: the type, what a literal must be in words, and its test
or its choices."""

from collections.abc import Callable
from typing import Annotated, Any

from dynadapt.data import frames

MAX_SIDE = 8000  # pixels


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SIDE


def _number(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _pair(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


def _interval(value: Any) -> bool:
    return _pair(value, _number) and value[0] <= value[1]


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
Factors = Annotated[
    tuple[float, ...],
    "one or more numbers above 0.0001, at most 1,000,000",
    lambda v: isinstance(v, tuple) and bool(v) and all(_number(f) and f > 1e-4 for f in v),
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
