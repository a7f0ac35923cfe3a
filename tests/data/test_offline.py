"""The offline suite: fixed splits of small real sets and of drawn scenes."""

import os
import shutil

import numpy as np
import pytest

from dynadapt.data import SPLITS, decode, offline, structured
from dynadapt.errors import DataError, UnknownName

REAL = ("clothing10", "omniglot", "bccd", "nuclei")
HERE = ("digits", "orientation")  # need no folder; the other scenes are made alike


def content(source):
    rows = [source[i] for i in range(len(source))]
    return [(row["name"], row["label"], decode.decode(row["image"]).tobytes()) for row in rows]


def check(task, path=""):
    """Sizes, order, overlap and labels of all splits; the sources."""
    sources = {split: offline.source(split, task, path) for split in SPLITS}
    train, val, both, test = (content(sources[split]) for split in SPLITS)
    known = offline.TASKS[task]
    assert (len(train), len(val), len(test)) == (800, 200, known.test)
    assert offline.count_test(task, path) == known.test
    assert train + val == both
    names = [row[0] for row in both + test]
    assert len(set(names)) == len(names)
    classes = sources["test"].info.classes
    assert len(classes) == known.classes
    for rows in (train, val, test):
        assert {label for _, label, _ in rows} == set(range(known.classes))
    # a guess at the commonest class is far from right
    assert np.bincount([label for _, label, _ in test]).max() / len(test) < 0.55
    assert len({source.info.fingerprint for source in sources.values()}) == 4
    return sources


@pytest.mark.slow
@pytest.mark.parametrize("task", HERE)
def test_sets_that_need_no_folder(task, tmp_path, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DATA", str(tmp_path))
    sources = check(task)
    assert sources["train800"].in_memory
    again = offline.source("val200", task)
    assert again.info.fingerprint == sources["val200"].info.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_sets_of_the_shared_folder(task, shared_data):
    check(task, str(shared_data))


def test_scenes_are_the_drawn_ones():
    source = offline.source("val200", "count")
    for i in (0, 199):
        np.testing.assert_array_equal(source[i]["image"], structured.draw("count", 800 + i))
        assert source[i]["label"] == structured.label("count", 800 + i)
    assert set(structured.TASKS) <= set(offline.TASKS)


def test_training_draws_nothing_of_the_test_split(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        structured, "draw", lambda task, i: drawn.append(i) or np.zeros((8, 8, 3), "u1")
    )
    offline.source("train800val200", "azimuth")
    assert drawn == list(range(1000))
    drawn.clear()
    offline.source("test", "azimuth")
    assert drawn == list(range(1000, 2000))


def test_training_opens_no_marks_of_the_test_split(shared_data, monkeypatch):
    real, opened = offline.ElementTree.parse, []
    monkeypatch.setattr(
        offline.ElementTree, "parse", lambda file: opened.append(file.stem) or real(file)
    )
    offline.source("train800val200", "bccd", str(shared_data))
    train = opened.copy()
    test = offline.source("test", "bccd", str(shared_data))
    names = {test[i]["name"].split()[0] for i in range(len(test))}
    assert len(names & set(train)) <= 1 and len(names) > 80


@pytest.mark.slow
def test_crops_of_an_image_stay_together(shared_data):
    for task in ("bccd", "nuclei"):
        train = offline.source("train800val200", task, str(shared_data))
        test = offline.source("test", task, str(shared_data))
        seen, other = ({s[i]["name"].split()[0] for i in range(len(s))} for s in (train, test))
        assert len(seen & other) <= 1


def test_alphabets_that_are_in_both_archives_count_once(shared_data):
    rows = list(offline._omniglot(shared_data / "omniglot"))
    assert len(rows) == 4840
    assert len({name for name, *_ in rows}) == 4840


def test_what_nuclei_crops_show():
    instances = np.zeros((200, 200), int)
    instances[40:52, 40:52] = 1
    instances[120:132, 60:72] = 2
    instances[120:132, 73:85] = 3  # one pixel of ground between 2 and 3
    found = {p: row for p, row in offline._points("made", instances).items() if row[0]}
    assert {(p, row[0]) for p, row in found.items()} == {
        ("made 1", 1),
        ("made 2", 2),
        ("made 3", 2),
    }
    label, y, x, side = found["made 1"]
    assert (y, x, side) == (45.5, 45.5, 36)
    ground = [row for row in offline._points("made", instances).values() if not row[0]]
    assert len(ground) == 2
    for _, y, x, _ in ground:
        assert not instances[y - 6 : y + 6, x - 6 : x + 6].any()
        assert 18 <= y < 182 and 18 <= x < 182


def test_boxes_of_cells(shared_data, tmp_path):
    name = "BloodImage_00001"
    for folder, end in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder).mkdir()
        shutil.copy(shared_data / "bccd" / folder / f"{name}.{end}", tmp_path / folder)
    marks = (tmp_path / "Annotations" / f"{name}.xml").read_text()
    rows = list(offline._bccd(tmp_path))
    kinds = [offline.CLASSES["bccd"][label] for _, label, _ in rows]
    assert kinds.count("RBC") == min(2, marks.count("<name>RBC</name>")) == 2
    assert kinds.count("WBC") == marks.count("<name>WBC</name>")
    for _, _, read in rows:
        crop = read()
        assert crop.shape[0] == crop.shape[1] >= 10 and crop.dtype == np.uint8


@pytest.mark.parametrize("task", REAL)
def test_a_set_that_is_not_there_says_what_to_do(task, tmp_path, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"no folder {tmp_path}/{task}.*put there.*DYNADAPT_DATA"):
        offline.source("train800", task)
    (tmp_path / task).mkdir()
    with pytest.raises(DataError, match=r"no file .*small1.zip|has only 0 examples of the 800"):
        offline.source("train800", task)


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DYNADAPT_DATA", str(tmp_path / "a"))
    assert offline.folder() == tmp_path / "a"
    assert offline.folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert offline.folder("~/b") == tmp_path / "b"
    monkeypatch.delenv("DYNADAPT_DATA")
    assert offline.folder().parts[-2:] == ("shared", "data") and os.path.isabs(offline.folder())


def test_wrong_names():
    with pytest.raises(UnknownName, match="unknown task 'omniglott'; did you mean 'omniglot'"):
        offline.source("test", "omniglott")
    with pytest.raises(DataError, match="no split 'train'; did you mean 'train800'"):
        offline.source("train", "digits")
