"""Images with several maps: all of them or none, each of the size of its image."""

import numpy as np
import pytest

from dynadapt.data import maps
from dynadapt.errors import DataError
from tests.data import layouts
from tests.data.layouts import blocks, write

PATTERNS = {"image": "{split}/*_rgb.jpg", "depth": "{split}/*_depth.png",
            "labels": "{split}/*_label.png"}  # fmt: skip
ENDS = {"depth": (".png",), "labels": (".png",)}


def test_an_image_that_lacks_a_map_is_passed_over_and_counted(tmp_path, caplog):
    layouts.several(tmp_path)
    whole = maps.find(tmp_path, PATTERNS, ENDS, ["learn"], "get them")
    assert len(whole["learn"]) == 3 and not caplog.messages
    assert all({path.split("_")[0] for path in row.values()} == {row["image"].split("_")[0]}
               for row in whole["learn"])  # fmt: skip
    (tmp_path / "learn" / "0_depth.png").unlink()
    (tmp_path / "learn" / "2_rgb.jpg").unlink()
    [row] = maps.find(tmp_path, PATTERNS, ENDS, ["learn"], "get them")["learn"]
    assert row["labels"] == "learn/1_label.png"
    [message] = caplog.messages
    assert "has 1 images with all maps; passed over 1 images without depth, such as 0" in message
    assert "1 depth without an image, such as 2" in message
    (tmp_path / "learn" / "1_label.png").unlink()
    with pytest.raises(DataError, match="no image of learn in .* has all maps: 1 images without"):
        maps.find(tmp_path, PATTERNS, ENDS, ["learn"], "get them")


@pytest.fixture
def one(tmp_path):
    """one(name, array) -> the content and name of a file."""

    def run(name, array):
        file = write(tmp_path / name, array)
        return file.read_bytes(), str(file)

    return run


def test_binary_maps(one):
    stripes = blocks([0, 1, 0, 1])
    for scale, dtype in ((1, np.uint8), (255, np.uint8), (65535, np.uint16)):
        found = maps.read_binary(*one("1.png", (stripes * scale).astype(dtype)))
        assert np.array_equal(found, stripes) and found.dtype == np.int32
    assert np.array_equal(maps.read_binary(*one("1.npy", stripes.astype(np.float64))), stripes)
    soft = maps.read_binary(*one("1.png", blocks([1, 127, 128, 255]).astype(np.uint8)))
    assert soft[0, ::4].tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="holds 1 and 255, of which either may be void"):
        maps.read_binary(*one("1.png", blocks([0, 1, 255]).astype(np.uint8)))
    with pytest.raises(DataError, match="not one number a pixel"):
        maps.read_binary(*one("1.png", layouts.picture()))


def test_normals_are_unit_vectors_or_unknown(one):
    colours = np.array([[[255, 128, 128], [0, 0, 0], [127, 128, 127], [128, 128, 0]]], np.uint8)
    found = maps.read_normals(*one("1.png", colours))
    np.testing.assert_allclose(found[0], [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, -1]], atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=-1), [1, 0, 0, 1], atol=1e-6)
    vectors = np.float64([[[0, 0, -2], [np.nan, 1, 0], [np.inf, 0, 0], [0, 0, 0]]])
    found = maps.read_normals(*one("1.npy", vectors))
    assert found.tolist() == [[[0, 0, -1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]]
    for name, array in (("1.png", blocks([1]).astype(np.uint8)), ("1.npy", colours)):
        with pytest.raises(DataError, match="not a vector a pixel in red, green"):
            maps.read_normals(*one(name, array))


def test_a_list_is_checked_before_anything_is_read(tmp_path, caplog):
    layouts.several(tmp_path)
    rows = [{"image": f"learn/{i}_rgb.jpg", "depth": f"learn/{i}_depth.png"} for i in range(3)]
    file = tmp_path / "list.txt"
    assert maps.checked(tmp_path, file, rows, 3) == rows and not caplog.messages
    maps.checked(tmp_path, file, rows, 795)
    assert "lists 3 images, where 795 are published" in caplog.messages[0]
    lacking = [{**row, "normals": row["image"].replace("rgb.jpg", "n.npy")} for row in rows]
    message = "asks for 3 of 9 files that are not under .*, the first of them learn/0_n.npy"
    with pytest.raises(DataError, match=message):
        maps.checked(tmp_path, file, lacking)
    write(tmp_path / "learn" / "1_depth.png", blocks([9], (5, 6)).astype(np.uint16))
    with pytest.raises(
        DataError, match=r"1_depth.png has the shape \(5, 6\), but its image has 12"
    ):
        maps.checked(tmp_path, file, rows)
    (tmp_path / "learn" / "0_rgb.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot decode .*0_rgb.jpg"):
        maps.checked(tmp_path, file, rows)
    with pytest.raises(DataError, match="lists no images"):
        maps.checked(tmp_path, file, [])


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_arrays_are_checked_by_their_heading(tmp_path, content):
    write(tmp_path / "1.jpg", layouts.picture())
    row = {"image": "1.jpg", "normals": "1.npy"}
    write(tmp_path / "1.npy", np.zeros((12, 15, 3), np.float32))
    with pytest.raises(DataError, match=r"1.npy has the shape \(12, 15\)"):
        maps.checked(tmp_path, tmp_path / "list", [row])
    (tmp_path / "1.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot read .*1.npy"):
        maps.checked(tmp_path, tmp_path / "list", [row])
