"""ScanObjectNN's variants are its own files, and their points stay as they are stored."""

import h5py
import numpy as np
import pytest

from dynadapt.data import loader, scanobjectnn
from dynadapt.errors import DataError, MissingSplit, UnknownName
from tests.data import cloud_layouts as layouts


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return layouts.scanobjectnn(tmp_path_factory.mktemp("scanobjectnn"))


@pytest.mark.parametrize(
    ("variant", "seed", "file"),
    [("obj_bg", 0, "main_split/training_objectdataset.h5"),
     ("obj_only", 1, "main_split_nobg/training_objectdataset.h5"),
     ("pb_t50_rs", 2, "main_split/training_objectdataset_augmentedrot_scale75.h5")],
)  # fmt: skip
def test_points_are_those_of_the_variants_file(root, variant, seed, file):
    source = scanobjectnn.source("train", str(root), variant)
    assert len(source) == 3 and source.info.counts == {"train": 3}
    with h5py.File(root / "h5_files" / file) as stored:
        assert np.array_equal(source[1]["points"], stored["data"][1])
    assert np.array_equal(source[1]["points"], layouts.many(3, seed=seed)[1])
    assert source.labels.tolist() == [0, 7, 14] and source[2]["label"] == 14
    assert len(source.info.classes) == 15 and source.info.classes[14] == "toilet"
    assert source.info.fields["points"].size == (2048, 3)
    assert source[2]["name"] == "train[2]"


def test_the_hardest_variant_is_the_default(root):
    inner = scanobjectnn.source("test", str(root / "h5_files"))
    assert len(inner) == 2
    outer = scanobjectnn.source("test", str(root), "pb_t50_rs")
    assert inner.info.fingerprint == outer.info.fingerprint
    prints = {
        scanobjectnn.source("test", str(root), v).info.fingerprint for v in scanobjectnn.VARIANTS
    }
    assert len(prints) == 3
    both = scanobjectnn.source("train[1:]+test", str(root))
    assert [both[i]["name"] for i in range(4)] == ["train[1]", "train[2]", "test[0]", "test[1]"]


def test_batches_hold_them_as_they_are(root):
    source = scanobjectnn.source("train", str(root))
    [batch] = loader.eval_batches(source, "", batch_size=4)
    assert batch["points"].shape == (4, 2048, 3) and batch["mask"].tolist() == [1, 1, 1, 0]
    assert np.array_equal(batch["points"][0], source[0]["points"])


def test_wrong_settings_and_files(root, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'obj_bg'"):
        scanobjectnn.source("train", str(root), "obj_gb")
    with pytest.raises(MissingSplit, match="no split 'training'; did you mean 'train'"):
        scanobjectnn.source("training", str(root))
    with pytest.raises(DataError, match="no folder ''; ask for h5_files.zip"):
        scanobjectnn.source("train")
    with pytest.raises(DataError, match="no file .*main_split_nobg/test_objectdataset.h5; ask"):
        scanobjectnn.source("test", str(tmp_path), "obj_only")
    file = tmp_path / "main_split" / "test_objectdataset.h5"
    layouts.hdf5(file, layouts.many(2, 1024), [0, 1])
    with pytest.raises(DataError, match=r"\(2, 1024, 3\), not of 2,048 points"):
        scanobjectnn.source("test", str(tmp_path), "obj_bg")
    layouts.hdf5(file, layouts.many(2), [0, 15])
    with pytest.raises(DataError, match="label 15, out of the range 0 to 14"):
        scanobjectnn.source("test", str(tmp_path), "obj_bg")
