"""Clouds are brought to one size by their names, and kept once they are read."""

import numpy as np
import pytest

from dynadapt.data import Arrays, Info, cloud_sources
from dynadapt.data.cloud_sources import Files, Sampler
from dynadapt.errors import DataError


def test_a_sample_depends_on_the_name_alone():
    taken = Sampler(50)(80, "a/1.ply")
    assert len(np.unique(taken)) == len(taken) == 50 and taken.max() < 80
    assert np.array_equal(Sampler(50)(80, "a/1.ply"), taken)
    assert not np.array_equal(Sampler(50)(80, "a/2.ply"), taken)
    assert np.array_equal(Sampler(50)(80, "e\u0301"), Sampler(50)(80, "\xe9"))  # as macOS has it
    whole = Sampler(80)(80, "a")
    assert np.array_equal(np.sort(whole), np.arange(80)) and (whole != np.arange(80)).any()


def test_too_few_points_all_stand_there_and_some_twice(caplog):
    sample = Sampler(50)
    taken = sample(40, "a")
    found, times = np.unique(taken, return_counts=True)
    assert len(taken) == 50 and np.array_equal(found, np.arange(40)) and (times > 1).sum() > 4
    assert len(sample(1, "b")) == 50
    assert len(caplog.records) == 1 and "a has 40 points, fewer than 50" in caplog.text


def info(**counts):
    return Info("some", cloud_sources.fields(4, ("a", "b")), counts, "")


def test_arrays():
    clouds = {"train": np.arange(36, dtype=np.float32).reshape(3, 4, 3)}
    labels = {"train": np.array([0, 1, 0])}
    source = Arrays("train[1:]", clouds, labels, info(train=3), "points")
    assert len(source) == 2 and source.labels.tolist() == [1, 0] and source.in_memory
    assert source[0]["label"] == 1 and source[0]["points"][0, 0] == 12


def test_files_are_read_once_as_long_as_there_is_room(tmp_path, monkeypatch):
    read = []

    def points(file, relative):
        read.append(relative)
        return {"points": np.zeros((4, 3), np.float32)}

    items = {"train": [("a/1", 0), ("b/1", 1)]}
    source = Files("train", tmp_path, items, info(train=2), points)
    for index in (0, 1, 0, 1):
        x = source[index]
    assert read == ["a/1", "b/1"] and x["name"] == str(tmp_path / "b/1") and x["label"] == 1
    assert source.labels.tolist() == [0, 1]
    monkeypatch.setattr(cloud_sources, "KEPT", 60)
    source = Files("train", tmp_path, items, info(train=2), points)
    assert [source[index]["label"] for index in (0, 1, 0)] == [0, 1, 0] and len(read) == 5


def test_fingerprints_follow_what_is_read():
    items = {"train": [("a/1", 0)]}
    first = cloud_sources.fingerprint("1024", items)
    assert first == cloud_sources.fingerprint("1024", {"train": [("a/1", 0)]})
    for said, other in (("512", items), ("1024", {"test": items["train"]}),
                        ("1024", {"train": [("a/1", 1)]})):  # fmt: skip
        assert cloud_sources.fingerprint(said, other) != first
    clouds, labels = {"a": np.zeros((1, 4, 3))}, {"a": np.zeros(1)}
    assert cloud_sources.digest("x", clouds, labels) != cloud_sources.digest("y", clouds, labels)


def test_folders_and_numbers_of_points(tmp_path):
    assert cloud_sources.folder(str(tmp_path), "do so") == tmp_path
    with pytest.raises(DataError, match="there is no folder 'x'; do so"):
        cloud_sources.folder("x", "do so")
    for count in (0, -1, 1 << 30):
        with pytest.raises(DataError, match="1 to 1,048,576 points, not"):
            cloud_sources.check_count(count)
