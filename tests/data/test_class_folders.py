"""Folders of classes are found for whatever files are sought."""

import pytest

from dynadapt.data import class_folders
from dynadapt.data.class_folders import Sought
from dynadapt.errors import DataError, MissingSplit

SOUGHT = Sought(lambda name: name.endswith(".dat"), "thing", "put things there")


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_splits_hold_classes(tmp_path, caplog):
    write(tmp_path, "train/a/1.dat", "train/b/c/2.dat", "test/b/3.dat", "train/a/no.txt")
    files, classes = class_folders.read(tmp_path, ["train", "test"], (), SOUGHT)
    assert classes == ("a", "b")
    assert sorted(files["train"]) == [("train/a/1.dat", (0,)), ("train/b/c/2.dat", (1,))]
    assert files["test"] == [("test/b/3.dat", (1,))]
    assert "passed over 1 files that are no things in" in caplog.text


def test_a_class_alone_has_no_split(tmp_path, caplog):
    write(tmp_path, "a/1.dat", "b/2.dat", "c/3.png")
    (tmp_path / "classes.txt").write_text("b\na\nz\n")
    files, classes = class_folders.read(tmp_path, ["train"], (), SOUGHT)
    assert classes == ("b", "a", "z") and sorted(files["train"])[0] == ("a/1.dat", (1,))
    assert "1 of the 3 classes have no thing at all: z" in caplog.text
    with pytest.raises(MissingSplit, match="no split 'val'; use slices of train"):
        class_folders.read(tmp_path, ["val"], (), SOUGHT)


def test_nothing_is_found(tmp_path):
    write(tmp_path, "a/1.png")
    with pytest.raises(DataError, match="holds no folders of things; put things there"):
        class_folders.read(tmp_path, ["train"], (), SOUGHT)
    write(tmp_path, "train/a/1.dat", "val/1.dat")
    with pytest.raises(DataError, match="val holds no things in folders of classes; put"):
        class_folders.read(tmp_path, ["val"], (), SOUGHT)
    with pytest.raises(DataError, match="is none of the 1 classes"):
        class_folders.read(tmp_path, ["train"], ("b",), SOUGHT)
