"""Each kind of setting takes what it says and refuses all else."""

import pytest

from dynadapt.data import arguments

KINDS = {
    "Length": ((1, 8000), (0, 8001, 2.0, True, "a")),
    "Margin": ((0, 8000), (-1, 1.5, False)),
    "Share": ((0, 0.5, 1), (-0.1, 1.1, True, "a")),
    "Shift": ((0, 0.5), (0.6, -0.1)),
    "Strength": ((0, 1e6), (-1, 1e7)),
    "Interval": (((0.5, 2), (1, 1)), ((0, 1), (2, 1), 1, (1, 2, 3))),
    "Angle": ((-20, 3.5, (-5, 5)), ((5, -5), "a", True)),
    "Canvas": ((1, (2, 8000)), (0, (2, 0), (2, 3.0), (1, 2, 3))),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_take_what_they_say(name):
    _, fits = getattr(arguments, name).__metadata__
    taken, refused = KINDS[name]
    assert all(fits(value) for value in taken)
    assert not any(fits(value) for value in refused)


def test_methods_are_those_that_pictures_are_resampled_by():
    for kind in (arguments.Method, arguments.RotateMethod):
        assert {"bicubic", "bilinear", "nearest"} <= set(kind.__metadata__[1])
    assert "plain_bilinear" not in arguments.RotateMethod.__metadata__[1]
