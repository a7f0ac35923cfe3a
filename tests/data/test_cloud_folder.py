"""Clouds of one's own are found by their folders, whatever the files' form."""

import os
from pathlib import Path

import numpy as np
import pytest

from dynadapt import data
from dynadapt.data import cloud_folder, loader
from dynadapt.errors import DataError, MissingSplit
from tests.data import cloud_layouts as layouts

REAL = Path(os.environ.get("DYNADAPT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def fill(root, splits=("train", "test"), each=3):
    """A folder of each split, class and form."""
    forms = {
        "npy": lambda file, x: np.save(file, x),
        "ply": lambda file, x: layouts.ply(file, x, "binary_little_endian"),
        "txt": layouts.text,
    }
    for split in splits:
        for number, name in enumerate(("cat", "dog")):
            folder = root / split / name / "deeper"
            folder.mkdir(parents=True)
            for i in range(each):
                form = list(forms)[i % 3]
                forms[form](folder / f"{i}.{form}", layouts.points(10 * number + i) + 5)
    return root


def test_splits_and_classes_are_folders(tmp_path):
    fill(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    source = cloud_folder.source("train", str(tmp_path), count=32)
    assert len(source) == 6 and source.info.classes == ("dog", "cat")
    x = source[0]
    assert x["points"].shape == (32, 3) and x["points"].dtype == np.float32
    assert ("cat" in x["name"]) == (x["label"] == 1)
    assert np.bincount(source.labels).tolist() == [3, 3]
    assert np.linalg.norm(x["points"], axis=1).max() <= 1 + 1e-6
    [batch] = loader.eval_batches(cloud_folder.source("test", str(tmp_path)), "", batch_size=6)
    assert batch["points"].shape == (6, 1024, 3)


def test_every_form_gives_the_same_points_in_the_same_order(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    layouts.text(tmp_path / "a" / "1.xyz", layouts.points())
    layouts.pcd(tmp_path / "b" / "1.pcd", layouts.points(), "binary_compressed")
    source = cloud_folder.source("train", str(tmp_path), count=60, unit=False)
    clouds = [np.sort(source[i]["points"], axis=0) for i in range(2)]
    assert np.allclose(clouds[0], clouds[1], atol=1e-6)
    assert np.allclose(clouds[0], np.sort(layouts.points(), axis=0), atol=1e-6)
    again = cloud_folder.source("train", str(tmp_path), count=60, unit=False)
    assert np.array_equal(again[0]["points"], source[0]["points"])
    assert again.info.fingerprint == source.info.fingerprint
    assert cloud_folder.source("train", str(tmp_path)).info.fingerprint != again.info.fingerprint


def test_without_splits_all_is_train_to_be_sliced(tmp_path):
    fill(tmp_path, ("things",))
    parts = [cloud_folder.source(s, str(tmp_path / "things")) for s in ("train[:4]", "train[4:]")]
    names = [{part[i]["name"] for i in range(len(part))} for part in parts]
    assert [len(n) for n in names] == [4, 2] and not names[0] & names[1]
    with pytest.raises(MissingSplit, match="no split 'test'; use slices of train"):
        cloud_folder.source("test", str(tmp_path / "things"))


def test_known_classes_are_kept(tmp_path):
    fill(tmp_path)
    section = {"name": "cloud_folder", "path": str(tmp_path), "count": 8, "unit": True}
    source = data.from_config(section, "test", ("dog", "bird", "cat"))
    assert source.info.classes == ("dog", "bird", "cat") and set(source.labels) == {0, 2}
    with pytest.raises(DataError, match="cat is none of the 2 classes"):
        data.from_config(section, "test", ("dog", "bird"))


def test_wrong_folders_and_files(tmp_path, caplog):
    with pytest.raises(DataError, match="no folder 'nowhere'; put files of points"):
        cloud_folder.source("train", "nowhere")
    with pytest.raises(DataError, match="holds no folders of clouds; put files of points"):
        cloud_folder.source("train", str(tmp_path))
    with pytest.raises(DataError, match="1 to 1,048,576 points, not 0"):
        cloud_folder.source("train", str(tmp_path), count=0)
    fill(tmp_path, ("train",), 1)
    (tmp_path / "train" / "cat" / "notes.md").write_text("nothing")
    bad = tmp_path / "train" / "dog" / "deeper" / "bad.npy"
    np.save(bad, np.full((4, 3), np.nan))
    source = cloud_folder.source("train", str(tmp_path), count=8)
    assert "passed over 1 files that are no clouds" in caplog.text
    with pytest.raises(DataError, match="bad.npy has 4 of 4 points that are not finite"):
        [source[i] for i in range(3)]
    batches = loader.eval_batches(source, "", batch_size=3, on_error="skip")
    [batch] = list(batches)
    assert batch["mask"].sum() == 2 and str(bad) in str(batches.skipped)


def test_real_shapes(tmp_path):
    file = REAL / "pcl-clouds" / "clouds.npz"
    if not file.is_file():
        pytest.skip("DYNADAPT_DATA has no pcl-clouds")
    with np.load(file) as arrays:
        for key in (key for key in arrays if key.startswith("ism_")):
            _, split, name = key.split("_")
            (tmp_path / split / name).mkdir(parents=True)
            form = "binary_compressed" if split == "test" else "binary"
            layouts.pcd(tmp_path / split / name / f"{name}.pcd", arrays[key], form)
    source = cloud_folder.source("train+test", str(tmp_path))
    assert source.info.classes == ("cat", "horse", "lioness", "michael", "wolf")
    assert len(source) == 10
    for x in (source[i] for i in range(10)):
        assert len(np.unique(x["points"], axis=0)) == 1024
        lengths = np.linalg.norm(x["points"], axis=1)
        assert 0.8 < lengths.max() <= 1 + 1e-6 and lengths.mean() > 0.3
