"""ADE20K's folders give 150 classes, of which masks count from 1."""

import pytest

from dynadapt.data import ade20k, loader, transforms
from dynadapt.errors import DataError
from tests.data import layouts


def labels(source):
    values, _ = loader.example(source, transforms.pipeline(""), 0, None)
    return values["labels"][0, ::4].tolist()


def test_zero_is_void_and_classes_count_from_one(tmp_path):
    root = layouts.ade20k(tmp_path)
    for path in (tmp_path, root):
        source = ade20k.source("train[:2]+val", path=str(path))
        assert len(source) == 5 and source.info.counts == {"train": 3, "val": 3}
        assert labels(source) == [-1, 0, 74, 149]
        assert len(source.info.classes) == 150
        assert source.info.classes[149] == "thing 150, object"


def test_without_names_classes_are_numbers(tmp_path):
    layouts.ade20k(tmp_path, info=False)
    classes = ade20k.source("val", path=str(tmp_path)).info.classes
    assert classes == tuple(map(str, range(1, 151)))


def test_wrong_splits_and_names_are_said(tmp_path):
    root = layouts.ade20k(tmp_path)
    with pytest.raises(DataError, match="ADE20K has no split 'training'; did you mean 'train'"):
        ade20k.source("training", path=str(root))
    (root / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(DataError, match="must name 150 classes after its heading"):
        ade20k.source("val", path=str(root))
    with pytest.raises(DataError, match="no folder .*; unpack ADEChallengeData2016.zip"):
        ade20k.source("val", path=str(tmp_path / "nowhere"))
