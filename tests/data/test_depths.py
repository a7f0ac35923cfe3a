"""Depth maps are metres, and 0 wherever nothing was measured."""

import numpy as np
import pytest

from dynadapt.data import depths, loader, transforms
from dynadapt.errors import DataError
from tests.data import layouts
from tests.data.layouts import blocks, write


@pytest.fixture
def one(tmp_path):
    """one(array, ending, **settings) -> the source of one image with that depth map."""

    def run(array, ending=".png", **settings):
        write(tmp_path / "images" / "1.jpg", layouts.picture())
        write(tmp_path / "depths" / f"1{ending}", array)
        return depths.source("train", path=str(tmp_path), **settings)

    return run


def depth(source, change=""):
    values, _ = loader.example(source, transforms.pipeline(change), 0, np.random.default_rng(0))
    return values["depth"]


def test_16_bits_are_millimetres(one):
    array = blocks([0, 1, 1500, 65535]).astype(np.uint16)
    source = one(array)
    field = source.info.fields["depth"]
    assert (field.kind, field.fill, field.dtype) == ("values", 0, "float32")
    np.testing.assert_allclose(depth(source)[0, ::4], [0, 0.001, 1.5, 65.535], rtol=1e-6)
    np.testing.assert_allclose(depth(one(array, scale=256.0))[0, 8], 1500 / 256, rtol=1e-6)
    assert one(array).info.fingerprint != one(array, scale=256.0).info.fingerprint


def test_arrays_of_floats_are_metres_and_whole_ones_are_scaled(one):
    source = one(blocks([0.0, 2.5, np.nan, -1.0]).astype(np.float32), ".npy")
    assert depth(source)[0, ::4].tolist() == [0, 2.5, 0, 0]
    source = one(blocks([np.inf, 1.0]).astype(np.float16)[..., None], ".npy")
    assert depth(source)[0, ::8].tolist() == [0, 1]
    source = one(blocks([-5, 2000]).astype(np.int32), ".npy")
    assert depth(source)[0, ::8].tolist() == [0, 2]


def test_invalid_pixels_never_mix_with_valid_ones(one):
    source = one(blocks([0, 4000]).astype(np.uint16))
    found = depth(source, "resize(7, 9)|rotate((20, 20))|pad(16)")
    assert set(np.unique(found)) == {0.0, 4.0}


@pytest.mark.parametrize(
    ("array", "ending", "message"),
    [
        (blocks([0, 9]).astype(np.uint8), ".png", "1.png has 8 bits a pixel, too few for depths"),
        (layouts.picture(), ".png", r"1.png is uint8 with shape \(12, 16, 3\), not one depth a"),
        (np.zeros((3, 12, 16), np.float32), ".npy", r"shape \(3, 12, 16\), not one depth a pixel"),
        (np.zeros((12, 16), bool), ".npy", "1.npy is bool"),
        (np.array({"a": 1}), ".npy", "cannot read .*1.npy"),
        (np.ones((5, 6), np.float32), ".npy", r"\(5, 6\), but the image has 12 x 16 pixels"),
    ],
)
def test_what_holds_no_depth_is_named(one, array, ending, message):
    source = one(array, ending)
    with pytest.raises(DataError, match=message) as raised:
        depth(source)
    assert "\n" not in str(raised.value)


def test_8_bits_where_they_are_asked_for(one):
    source = one(blocks([0, 50]).astype(np.uint8), eight_bit=True, scale=10.0)
    assert depth(source)[0, ::8].tolist() == [0, 5]


def test_wrong_settings_are_said(one):
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(DataError, match="units a metre and must be above 0"):
            one(np.zeros((12, 16), np.uint16), scale=scale)
    with pytest.raises(DataError, match="no folder 'nowhere'; put images in"):
        depths.source("train", path="nowhere")


def test_osd(shared_data):
    root = shared_data / "osd-rgbd"
    if not root.is_dir():
        pytest.skip("DYNADAPT_DATA has no osd-rgbd")
    for split, count in {"learn": 45, "test": 62}.items():
        source = depths.source(split, str(root), "{split}/*_rgb.jpg", "{split}/*_depth.png")
        assert len(source) == count
        found = depth(source)
        assert found.shape == (480, 640) and 0.2 < (found == 0).mean() < 0.6
        assert 0.3 < found[found > 0].min() and found.max() < 5  # a table before a Kinect
