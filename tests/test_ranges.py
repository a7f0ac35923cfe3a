import math

import pytest

from dynadapt import ranges


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("(0, inf)", (1e-9, 3, 1e300), (0, -1, math.inf, math.nan), "above 0"),
        ("[1, inf)", (1, 2.5), (0, 0.99, math.inf), "at least 1"),
        ("[0, 1)", (0, 0.5), (-1e-9, 1, math.nan), "in [0, 1)"),
        ("(0, 1]", (1, 0.5), (0, 1.01), "in (0, 1]"),
        ("(-inf, inf)", (-1e300, 0, 1e300), (math.inf, -math.inf, math.nan), "finite"),
    ],
)
def test_intervals(interval, inside, outside, words):
    assert all(ranges.inside(v, interval) for v in inside)
    assert not any(ranges.inside(v, interval) for v in (*outside, "0.5", None, True, (1,)))
    assert ranges.words(interval) == words
