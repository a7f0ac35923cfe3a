"""Numbers that must lie in an interval such as `[0, 1)`; an infinite bound never belongs to it."""

import math
from typing import Any


def number(value: Any) -> bool:
    """Whether a value is a number, which truth values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def inside(value: Any, interval: str) -> bool:
    """Whether a value is a number of the interval."""
    low, high = _bounds(interval)
    if not number(value) or not low <= value <= high:
        return False
    return (value != low or interval[0] == "[") and (value != high or interval[-1] == "]")


def words(interval: str) -> str:
    """The interval in words: `above 0`, `at least 1`, `in [0, 1)`, `finite`."""
    low, high = _bounds(interval)
    if math.isfinite(high):
        return f"in {interval}"
    if math.isinf(low):
        return "finite"
    return f"{'above' if interval[0] == '(' else 'at least'} {low:g}"


def _bounds(interval: str) -> tuple[float, float]:
    low, high = map(float, interval[1:-1].split(", "))
    return low, high
