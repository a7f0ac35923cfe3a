"""Both forms of ModelNet40 give normalised clouds; few-shot sets are fixed draws of it."""

import pickle

import numpy as np
import pytest

from dynadapt.data import cloud_files, loader, modelnet40
from dynadapt.errors import DataError, MissingSplit, UnknownName
from tests.data import cloud_layouts as layouts


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Texts of 64 points; 12 training and 20 test clouds of each of three classes."""
    folder = tmp_path_factory.mktemp("modelnet40")
    layouts.modelnet40(folder, each=12, tested=20)
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return layouts.modelnet40_hdf5(tmp_path_factory.mktemp("modelnet40_hdf5"))


def normal(points):
    lengths = np.linalg.norm(points, axis=1)
    return lengths.max() == pytest.approx(1, abs=1e-6) and np.abs(points.mean(0)).max() < 1e-6


def test_texts_by_their_lists(root):
    source = modelnet40.source("train", str(root), count=48)
    assert len(source) == 36 and source.info.counts == {"train": 36}
    assert np.unique(source.labels).tolist() == [0, 1, 23]  # "night_stand" keeps its underscore
    assert source.info.classes == modelnet40.CLASSES and len(source.info.classes) == 40
    x = source[13]
    assert x["label"] == 1 and x["name"].endswith("bathtub/bathtub_0002.txt")
    assert x["points"].dtype == np.float32 and x["points"].shape == (48, 3) and normal(x["points"])
    given = layouts.points(14, 64)[:48].astype(np.float64) + 3
    assert np.allclose(x["points"], cloud_files.in_sphere(given), atol=1e-5)


def test_a_file_is_read_once(tmp_path):
    root = layouts.modelnet40(tmp_path)
    source = modelnet40.source("test", str(root), count=64)
    first = source[0]["points"]
    (root / "airplane" / "airplane_0101.txt").unlink()
    assert source[0]["points"] is first


def test_arrays_by_their_numbers(arrays):
    source = modelnet40.source("train", str(arrays.parent), form="h5", count=512)
    assert source.labels.tolist() == [3, 39, 0, 7] and len(source.info.classes) == 40
    assert all(normal(source[i]["points"]) for i in range(4))
    given = layouts.many(1, seed=0)[0, :512].astype(np.float64)
    assert np.allclose(source[2]["points"], cloud_files.in_sphere(given), atol=1e-6)
    whole = modelnet40.source("test", str(arrays), form="h5")
    assert whole.info.fields["points"].size == (2048, 3)
    [batch] = loader.eval_batches(whole, "", batch_size=1)
    assert batch["points"].shape == (1, 2048, 3) and batch["label"].tolist() == [5]


def few(labels, ways=5, shots=10, fold=0):
    return modelnet40.drawn(labels, modelnet40.CLASSES, ways, shots, fold)


@pytest.fixture(scope="module")
def labels():
    """Of 30 training and 25 test clouds of each class."""
    return {"train": np.tile(np.arange(40), 30), "test": np.repeat(np.arange(40), 25)}


@pytest.mark.parametrize(("ways", "shots"), [(5, 10), (5, 20), (10, 10), (10, 20)])
def test_few_shot_sets_are_fixed_draws(labels, ways, shots):
    sets = [few(labels, ways, shots, fold) for fold in range(10)]
    for classes, kept in sets:
        assert len(set(classes)) == ways and list(classes) == sorted(classes)
        for split, most in (("train", shots), ("test", 20)):
            positions, numbers = kept[split]
            assert len(np.unique(positions)) == len(positions) == ways * most
            assert np.bincount(numbers).tolist() == [most] * ways
            own = [modelnet40.CLASSES[i] for i in labels[split][positions]]
            assert own == [classes[i] for i in numbers]
    assert len({classes for classes, _ in sets}) > 8
    again = few({"test": labels["test"]}, ways, shots, 3)[1]  # whatever else is read
    assert np.array_equal(again["test"][0], sets[3][1]["test"][0])


def test_few_shot_sets_that_cannot_be(labels):
    for wrong in (dict(ways=1), dict(ways=41), dict(shots=0), dict(fold=-1)):
        with pytest.raises(DataError, match="have 2 to 40 ways, 1 shot or more and a fold"):
            few(labels, **wrong)
    with pytest.raises(DataError, match="train has 30 clouds of '.*', fewer than 31"):
        few(labels, shots=31)
    classes, kept = few(labels, ways=0)
    assert classes == modelnet40.CLASSES and len(kept["test"][0]) == 1000


def test_a_few_shot_set_has_its_own_classes(tmp_path):
    root = tmp_path / "modelnet40_ply_hdf5_2048"
    for split, each in (("train0", 2), ("test0", 20)):
        clouds = np.broadcast_to(layouts.many(1), (40 * each, 2048, 3))
        layouts.hdf5(root / f"ply_data_{split}.h5", clouds, np.repeat(np.arange(40), each))
    settings = dict(path=str(root), form="h5", count=8, ways=5, shots=2, fold=1)
    train, test = (modelnet40.source(split, **settings) for split in ("train", "test"))
    assert train.info.classes == test.info.classes and len(train.info.classes) == 5
    assert len(train) == 10 and len(test) == 100 and np.bincount(test.labels).tolist() == [20] * 5
    other = modelnet40.source("train", **settings | {"fold": 2})
    assert other.info.fingerprint != train.info.fingerprint


def test_text_forms_few_shot_set_has_files_of_its_classes(root, monkeypatch):
    monkeypatch.setattr(modelnet40.np.random, "default_rng", Chosen)
    source = modelnet40.source("train", str(root), count=16, ways=2, shots=3)
    assert source.info.classes == ("bathtub", "night_stand") and len(source) == 6
    assert [source[i]["name"].split("/")[-2] for i in (2, 3)] == ["bathtub", "night_stand"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]


class Chosen:
    """Draws the classes 1 and 23 of 40, and the first of anything else."""

    def __init__(self, seed):
        pass

    def permutation(self, given):
        return np.array([1, 23, 0]) if isinstance(given, int) and given == 40 else given


def test_pickles_are_refused(tmp_path):
    (tmp_path / "5way_10shot").mkdir()
    (tmp_path / "5way_10shot" / "0.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="5way_10shot holds folds as pickles.* data.ways, shots"):
        modelnet40.source("train", str(tmp_path), ways=5)
    root = layouts.modelnet40(tmp_path / "dat")
    for name in ("train", "test"):
        (root / f"modelnet40_{name}_8192pts_fps.dat").write_bytes(pickle.dumps([[], []]))
    assert len(modelnet40.source("train", str(root), count=64)) == 6  # beside the texts: no harm
    (root / "airplane" / "airplane_0001.txt").unlink()
    with pytest.raises(DataError, match="1 are not there, such as airplane/.*.dat files are pick"):
        modelnet40.source("train", str(root), count=64)


def test_wrong_settings_and_files(arrays, tmp_path):
    root = layouts.modelnet40(tmp_path)
    for form, path, message in (
        ("txt", root, "airplane_0001.txt has 64 points, not 8,192"),
        ("h5", arrays, "2,048 points, fewer than 4,096"),
    ):
        with pytest.raises(DataError, match=message):
            modelnet40.source("train", str(path), form, 4096 if form == "h5" else 0)[0]
    with pytest.raises(UnknownName, match="form of ModelNet40 'hdf5'"):
        modelnet40.source("train", str(root), "hdf5")
    with pytest.raises(MissingSplit, match="no split 'val'; choose one of test, train"):
        modelnet40.source("val", str(root))
    with pytest.raises(DataError, match="no folder 'nowhere'; unpack modelnet40_normal"):
        modelnet40.source("train", "nowhere")
    with pytest.raises(DataError, match="no list .*modelnet40_train.txt"):
        modelnet40.source("train", str(arrays))
    with pytest.raises(DataError, match="holds no ply_data_train0.h5"):
        modelnet40.source("train", str(root), "h5")
    with pytest.raises(DataError, match="1 to 1,048,576 points, not -1"):
        modelnet40.source("train", str(root), count=-1)
    (root / "modelnet40_test.txt").write_text("airplane_0101\nairplan_0102\n")
    with pytest.raises(DataError, match="line 2 of .*modelnet40_test.txt is 'airplan_0102'"):
        modelnet40.source("test", str(root))
    (root / "modelnet40_test.txt").write_text("airplane_../../x\n")
    with pytest.raises(DataError, match="of none of the classes"):
        modelnet40.source("test", str(root))
    (root / "modelnet40_shape_names.txt").write_text("airplane\nbathtub\n")
    with pytest.raises(DataError, match="names 2 classes, not 40 different ones"):
        modelnet40.source("train", str(root))


def test_a_file_that_a_list_names_is_missed(tmp_path):
    root = layouts.modelnet40_hdf5(tmp_path)
    (root / "ply_data_train2.h5").unlink()
    with pytest.raises(DataError, match="no file .*ply_data_train2.h5, which .*train_files.txt"):
        modelnet40.source("train", str(root), "h5")


def test_points_that_are_not_finite(tmp_path):
    root = layouts.modelnet40(tmp_path)
    file = root / "airplane" / "airplane_0002.txt"
    file.write_text(file.read_text().replace("\n", "\nnan,1,1,0,0,0\n", 1))
    with pytest.raises(DataError, match="airplane_0002.txt has 1 of 64 points that are not finite"):
        modelnet40.source("train", str(root), count=64)[1]
