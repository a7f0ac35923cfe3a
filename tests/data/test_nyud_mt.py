"""NYUD_MT's lists, masks and arrays."""

import numpy as np
import pytest

from dynadapt.data import loader, nyud_mt, transforms
from dynadapt.errors import DataError, UnknownName
from tests.data import layouts


def test_every_field(tmp_path, caplog):
    root = layouts.nyud_mt(tmp_path)
    for path in (tmp_path, root):
        source = nyud_mt.source("train", str(path))
        assert len(source) == 2
    assert "train.txt lists 2 images, where 795 are published" in caplog.messages[0]
    assert len(source.info.classes) == 40
    found = loader.example(source, transforms.pipeline(""), 0, None)[0]
    assert found["labels"][0, ::4].tolist() == [-1, 0, 39, 1]
    assert found["depth"][0, ::8].tolist() == [0, 2.5]
    assert found["edges"][0, ::8].tolist() == [0, 1]
    assert not found["normals"][:2].any() and found["normals"][2, 0].tolist() == [0, 0, -1]


def test_the_published_zoom_divides_depths(tmp_path):
    layouts.nyud_mt(tmp_path)
    source = nyud_mt.source("train", str(tmp_path), ("depth",))
    change = transforms.pipeline("flip|zoom((1, 1.2, 1.5))")
    tops = set()
    for seed in range(20):
        found = loader.example(source, change, 0, np.random.default_rng(seed))[0]
        tops.add(round(float(found["depth"].max()), 4))
    assert tops == {2.5, round(2.5 / 1.2, 4), round(2.5 / 1.5, 4)}


def test_only_files_of_the_fields_are_needed(tmp_path):
    root = layouts.nyud_mt(tmp_path)
    for place in ("edge", "normals", "segmentation"):
        (root / place).rename(root / f"no {place}")
    source = nyud_mt.source("val", str(tmp_path), fields=("depth",))
    assert set(source[0]) == {"image", "depth", "name"}
    with pytest.raises(DataError, match="asks for 3 of 5 files .* segmentation/0003.png"):
        nyud_mt.source("val", str(tmp_path))
    with pytest.raises(UnknownName, match="field of nyud_mt 'normal'; did you mean 'normals'"):
        nyud_mt.source("val", str(tmp_path), fields=("normal",))
    with pytest.raises(DataError, match="no list .*/test.txt; choose one of train, val"):
        nyud_mt.source("test", str(tmp_path))
    (root / "depth" / "0003.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="cannot read .*0003.npy"):
        nyud_mt.source("val", str(tmp_path), fields=("depth",))
