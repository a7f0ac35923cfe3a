"""Polygons and run lengths become the masks that pycocotools makes of them, or are refused."""

import numpy as np
import pytest

from dynadapt.data import outlines
from dynadapt.data.annotated import Picture
from dynadapt.data.objects import Object
from dynadapt.errors import DataError
from tests.data import layouts

SIZE = (layouts.H, layouts.W)


def draw(shape, size=SIZE):
    """The object and the map of one outline."""
    pytest.importorskip("pycocotools")
    cleaned, _ = outlines.cleaned(shape, size, "x")
    picture = Picture("x.png", size, [Object(0, (0, 0, size[1], size[0]), 1.0)], 1, [cleaned])
    [thing], instances = outlines.drawer()(picture, "x.png")
    return thing, instances


def random_masks(count=60):
    rng = np.random.default_rng(0)
    for _ in range(count):
        size = rng.integers(1, 50, 2)
        yield rng.random(size) < rng.choice([0.01, 0.1, 0.5, 0.99])


def test_run_lengths_of_any_kind_are_one_mask():
    library = pytest.importorskip("pycocotools.mask")
    for mask in random_masks():
        runs = layouts.runs(mask)
        thing, instances = draw(runs, mask.shape)
        assert np.array_equal(instances > 0, mask)
        packed = library.frPyObjects(runs, *mask.shape)
        assert thing.segmentation == packed
        text = {"size": [*mask.shape], "counts": packed["counts"].decode()}
        again, instances = draw(text, mask.shape)
        assert again.segmentation == packed and np.array_equal(instances > 0, mask)
        assert library.area(again.segmentation) == mask.sum()


def test_polygons_of_one_object_are_joined():
    parts = [layouts.rectangle(1, 2, 3, 4), layouts.rectangle(3, 3, 6, 2), [1, 2, 3, 4]]
    _, instances = draw(parts)
    wanted = layouts.filled(2, 1, 6, 4) | layouts.filled(3, 3, 5, 9)
    assert np.array_equal(instances > 0, wanted)
    # what is outside of the picture is cut off
    _, instances = draw([layouts.rectangle(-5, 8, 9, 90)])
    assert np.array_equal(instances > 0, layouts.filled(8, 0, 12, 4))


def test_what_is_too_little_is_left_out():
    one = layouts.rectangle(1, 2, 3, 4)
    assert outlines.cleaned([one, [1, 2, 3, 4], [1] * 7, []], SIZE, "x") == ([one], 3)
    for nothing in (None, [], {}, ""):
        assert outlines.cleaned(nothing, SIZE, "x") == (None, 0)
    assert outlines.cleaned([[1, 2, 3, 4]], SIZE, "x") == (None, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"size": [16, 12], "counts": [192]}, r"x has a mask of size \[16, 12\] in an image of"),
        ({"counts": [192]}, "x has a mask of size None"),
        ({"size": [12, 16]}, "neither polygons nor run lengths"),
        ("x", "neither polygons nor run lengths"),
        ([1, 2, 3, 4, 5, 6], "neither polygons nor run lengths"),
        (7, "neither polygons nor run lengths"),
    ],
)
def test_what_is_no_outline_is_said(shape, message):
    with pytest.raises(DataError, match=message):
        outlines.cleaned(shape, SIZE, "x")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([["a", 0, 4, 0, 4, 3]], "x.png has a polygon with corners that are no pixels"),
        ([[[1], 0, 4, 0, 4, 3]], "a polygon with corners"),
        ([[[1, 2], [3, 4], [5, 6], [7, 8], [1, 1], [2, 2]]], "a polygon with corners"),
        ([[float("nan"), 0, 4, 0, 4, 3]], "a polygon with corners"),
        ([[1e9, 0, 4, 0, 4, 3]], "a polygon with corners"),
        ({"size": [*SIZE], "counts": [3, 4]}, r"x.png has a mask whose run lengths don't fill its"),
        ({"size": [*SIZE], "counts": [3, 400, 41]}, "run lengths don't fill"),
        ({"size": [*SIZE], "counts": [3, -4, 193]}, "run lengths don't fill"),
        ({"size": [*SIZE], "counts": [3, "a"]}, "run lengths don't fill"),
        ({"size": [*SIZE], "counts": [3.5, 188.5]}, "run lengths don't fill"),
        ({"size": [*SIZE], "counts": "zzzzzz"}, "run lengths don't fill"),
        ({"size": [*SIZE], "counts": "34"}, "run lengths don't fill"),
        ({"size": [*SIZE], "counts": "\u20ac"}, "run lengths don't fill"),
    ],
)
def test_what_cannot_be_drawn_is_said(shape, message):
    with pytest.raises(DataError, match=message) as raised:
        draw(shape)
    assert "\n" not in str(raised.value)
