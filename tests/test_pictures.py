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


RED, NAVY = (230, 40, 40), (10, 10, 80)


def boxed(image, boxes, names=None, colours=(RED,)):
    boxes = np.array(boxes, float).reshape(-1, 4)
    colours = np.array((list(colours) * len(boxes))[: len(boxes)])
    return pictures.with_boxes(image, boxes, names or [""] * len(boxes), colours)


@pytest.mark.parametrize("colour", [RED, NAVY, (255, 255, 120)])
@pytest.mark.parametrize("ground", [0, 255, 128])
def test_lines_show_on_any_ground(ground, colour):
    """Across each side of the box stand the colour and, on both sides of it, its contrary."""
    found = boxed(plain(300, 300, ground), [(50, 60, 200, 220)], colours=[colour])
    assert found.shape == (300, 300, 3) and found.dtype == np.uint8
    row, column = found[140], found[:, 120]
    for across in (row[45:56], row[195:206], column[55:66], column[215:226]):
        (at,) = np.nonzero((across == colour).all(1))
        assert at.tolist() == [at[0], at[0] + 1]
        contrary = 255 if np.mean(colour) < 127 else 0
        assert (across[[at[0] - 1, at[1] + 1]] == contrary).all()
    inside = found[70:210, 60:190]
    assert (inside == ground).all()


def test_lines_stand_on_the_edges_of_a_box():
    found = boxed(plain(300, 300), [(50, 60, 200, 220)])
    ys, xs = np.nonzero((found == RED).all(-1))
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (50, 60, 200, 220)


def test_boxes_of_small_pictures_are_enlarged_with_them():
    image = np.random.default_rng(0).integers(100, size=(64, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(boxed(image, [])[2::4, 1::4], image)
    found = boxed(image, [(10, 20, 30, 40)])
    ys, xs = np.nonzero((found == RED).all(-1))
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (40, 80, 120, 160)


def test_lines_of_a_photograph_are_thicker():
    found = boxed(plain(1500, 3000), [(500, 500, 1000, 1000)])
    assert (found[750, 500:520] == RED).all(1).sum() == 3000 // 256


def test_the_first_box_is_on_top():
    found = boxed(plain(300, 300), [(50, 60, 200, 220)] * 2, colours=[RED, NAVY])
    assert (found == RED).all(-1).any() and not (found == NAVY).all(-1).any()


def test_a_name_stays_in_the_picture():
    """Wherever the box is, all of its name can be read; also of one that leaves the picture."""
    name = ["owl 0.93"]
    middle = boxed(plain(300, 300), [(100, 100, 200, 200)], name)
    written = (middle != boxed(plain(300, 300), [(100, 100, 200, 200)])).any(-1)
    ys, xs = np.nonzero(written[:99])  # above the box and its line
    tag = middle[ys.min() : 99, xs.min() : xs.max() + 1, 1]
    assert 8 < tag.shape[0] < 20 < tag.shape[1] < 100
    for box in ((0, 0, 30, 30), (270, 270, 300, 300), (280, 0, 300, 9), (0, 290, 9, 300),
                (-50, -50, 400, 400), (299, 299, 299, 299)):  # fmt: skip
        found = boxed(plain(300, 300), [box], name)[..., 1]
        windows = np.lib.stride_tricks.sliding_window_view(found, tag.shape)
        assert (windows == tag).all((-1, -2)).any(), box


def test_a_name_may_be_longer_than_the_picture():
    found = boxed(plain(300, 300), [(100, 100, 200, 200)], ["a very long name of things" * 9])
    assert found.shape == (300, 300, 3) and (found[95, :20] == RED).all(1).any()


def test_masks_are_painted_and_outlined():
    image = np.random.default_rng(1).integers(256, size=(20, 30, 3), dtype=np.uint8)
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:10, 3:12], masks[1, 5:15, 8:20], masks[2, 2:10, 20:25] = True, True, True
    colours = np.array([RED, NAVY, (0, 200, 0)])
    found = pictures.with_masks(image, masks, colours)
    outside = ~masks.any(0)
    np.testing.assert_array_equal(found[outside], image[outside])
    assert (found[2, 3:12] == RED).all() and (found[2:10, 3] == RED).all()
    np.testing.assert_array_equal(
        found[5, 5], np.rint((image[5, 5].astype(np.float32) + RED) / 2).astype(np.uint8)
    )
    assert (found[9, 8:12] == RED).all()  # the first is on top, its line too
    assert (found[7:10, 19] == NAVY).all() and (found[7:10, 20] == (0, 200, 0)).all()  # they touch


def test_no_masks_change_nothing():
    image = np.random.default_rng(1).integers(256, size=(20, 30, 3), dtype=np.uint8)
    found = pictures.with_masks(image, np.zeros((0, 20, 30), bool), np.zeros((0, 3)))
    np.testing.assert_array_equal(found, image)


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
