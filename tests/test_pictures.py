"""Drawing: what is where, and that text fits."""

import io

import numpy as np
import pytest
from PIL import Image

from dynadapt import pictures


def plain(h, w, value=90):
    return np.full((h, w, 3), value, np.uint8)


@pytest.mark.parametrize("size, drawn", [((8, 8), (128, 128)), ((300, 200), (300, 200)),
                                         ((1, 40), (4, 160))])  # fmt: skip
def test_a_caption_stands_below_the_picture(size, drawn):
    found = pictures.captioned(plain(*size), "seven 93.1 %")
    assert found.shape == (drawn[0] + 18, drawn[1], 3) and found.dtype == np.uint8
    assert (found[: drawn[0]] == 90).all()
    below = found[drawn[0] :]
    assert (below.min() < 100) and (below[:, -1] == 255).all()  # written, and not past the edge


def test_a_long_caption_is_cut():
    long = pictures.captioned(plain(8, 8), "a very long name of a class of things " * 5)
    short = pictures.captioned(plain(8, 8), "a very")
    assert long.shape == short.shape and (long != short).any()


def test_small_pictures_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    found = pictures.captioned(image, "")
    np.testing.assert_array_equal(found[:128].reshape(8, 16, 8, 16, 3)[:, 5, :, 9], image)
    assert (found[128:] == 255).all()


def test_a_sheet_has_each_picture_in_its_cell():
    shapes = [(50, 50), (300, 100), (100, 300), (10, 20), (50, 50)]
    found = pictures.sheet([plain(*s, value=10 * i) for i, s in enumerate(shapes)], side=64)
    cell = 64 + pictures.MARGIN
    assert found.shape == (2 * cell, 4 * cell, 3)
    for number in range(5):
        top, left = number // 4 * cell, number % 4 * cell
        assert found[top + 3, left + 3, 0] == 10 * number
        assert (found[top : top + cell, left + 64 : left + cell] == 255).all()
        assert (found[top + 64 : top + cell, left : left + cell] == 255).all()
    assert (found[cell:, cell:] == 255).all()
    assert pictures.sheet([plain(5, 5)], side=64).shape == (
        5 + pictures.MARGIN,
        5 + pictures.MARGIN,
        3,
    )


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_png_loses_nothing(shape, tmp_path):
    image = np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)
    opened = Image.open(io.BytesIO(pictures.png(image)))
    assert opened.format == "PNG"
    np.testing.assert_array_equal(np.asarray(opened), image)
    pictures.write(tmp_path / "x.png", image)
    assert (tmp_path / "x.png").read_bytes() == pictures.png(image)


def test_views_of_a_cloud():
    """Two points: one to the right, one up and nearer; each is where it belongs in every view."""
    cloud = np.float32([[1, 0, -1], [-1, 1, 1]])
    colours = np.uint8([[255, 0, 0], [0, 0, 255]])
    found = pictures.views(cloud, colours)
    side, step = pictures.SIDE, pictures.SIDE + pictures.MARGIN
    places = {}
    for number, view in enumerate(("front", "side", "top")):
        panel = found[:side, number * step : number * step + side]
        for colour, name in ((colours[0], "right"), (colours[1], "up")):
            rows, columns = np.nonzero((panel == colour).all(-1))
            assert len(rows) == 9
            places[view, name] = rows.mean() / side, columns.mean() / side
    assert places["front", "right"][1] > 0.9 and places["front", "up"][1] < 0.1
    assert places["front", "up"][0] < places["front", "right"][0]
    assert places["side", "up"][1] < 0.1 and places["side", "right"][1] > 0.9  # the far one
    assert places["top", "up"][0] > 0.9 and places["top", "right"][0] < 0.1
    near, far = (pictures.views(cloud)[:side, :side][..., 0].max(0)[x] for x in (2, side - 4))
    assert near != far  # by distance


def test_the_nearest_point_covers_the_others():
    cloud = np.float32([[0, 0, 0], [0, 0, 1], [-1, 0, -1], [1, 0, -1]])
    colours = np.uint8([[255, 0, 0], [0, 255, 0], [9, 9, 9], [9, 9, 9]])
    front = pictures.views(cloud, colours)[: pictures.SIDE, : pictures.SIDE]
    assert (front == [0, 255, 0]).all(-1).any() and not (front == [255, 0, 0]).all(-1).any()
