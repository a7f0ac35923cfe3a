"""VOC's lists, images and palette masks."""

import pytest

from dynadapt.data import loader, transforms, voc_segmentation
from dynadapt.errors import DataError
from tests.data import layouts


def test_lists_choose_images_and_palettes_are_indices(tmp_path):
    root = layouts.voc(tmp_path)
    for path in (tmp_path, root):
        source = voc_segmentation.source("trainval", path=str(path))
        assert len(source) == 3 and len(source.info.classes) == 21
        assert source.info.classes[15] == "person"
        values, about = loader.example(source, transforms.pipeline(""), 0, None)
        assert values["labels"][0, ::4].tolist() == [0, 15, 20, -1]
        assert about["name"].endswith("JPEGImages/2007_000032.jpg")
    names = [voc_segmentation.source(s, path=str(root))[0]["name"] for s in ("train", "val")]
    assert [name[-15:-4] for name in names] == ["2007_000032", "2007_000033"]


def test_what_is_missing_is_said(tmp_path):
    root = layouts.voc(tmp_path)
    with pytest.raises(DataError, match="no list .*/test.txt"):
        voc_segmentation.source("test", path=str(root))
    (root / "SegmentationClass" / "2007_000033.png").unlink()
    with pytest.raises(DataError, match="val.txt names 1 files .* SegmentationClass/2007_000033"):
        voc_segmentation.source("val", path=str(root))
    with pytest.raises(DataError, match="no folder .*; unpack VOCtrainval"):
        voc_segmentation.source("val")
