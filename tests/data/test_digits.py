import inspect
import sys

import numpy as np
import pytest

from dynadapt import data
from dynadapt.data import digits
from dynadapt.errors import DataError, UnknownName

FINGERPRINT = "1118d95a2fcef9d7473ee4d93e962e26ed33a9e9561d612f3259004a7601501f"


def test_the_split_is_fixed_stratified_and_disjoint():
    train, test = digits.source("train"), digits.source("test")
    assert (len(train), len(test)) == (1000, 797)
    assert dict(train.info.counts) == {"train": 1000, "test": 797}
    labels = np.array([train[i]["label"] for i in range(1000)])
    assert tuple(np.bincount(labels)) == digits.TRAIN
    rest = np.bincount([test[i]["label"] for i in range(797)])
    assert np.abs(rest / 797 - np.array(digits.TRAIN) / 1000).max() < 0.002
    assert train.info.fingerprint == FINGERPRINT  # which images are in which split, and in order


def test_train_and_test_together_are_the_whole_set():
    from sklearn.datasets import load_digits

    ours = digits.source("train+test")
    raw = sorted(
        (tuple(image.astype(int).ravel()), int(label))
        for image, label in zip(*(load_digits()[k] for k in ("images", "target")), strict=True)
    )
    back = sorted(
        (tuple(np.round(x["image"][..., 0].ravel() * (16 / 255)).astype(int)), x["label"])
        for x in (ours[i] for i in range(len(ours)))
    )
    assert raw == back


def test_an_example():
    example = digits.source("train")[7]
    assert example["image"].dtype == np.uint8
    assert example["image"].shape == (8, 8, 3)
    assert type(example["label"]) is int
    assert example["name"] == "train[7]"
    everything = np.stack([x["image"] for x in map(digits.source("test").__getitem__, range(99))])
    assert (everything.min(), everything.max()) == (0, 255)
    assert np.array_equal(everything[..., 0], everything[..., 2])


def test_slices_select_by_position():
    whole = digits.source("train")
    part = digits.source("train[800:]")
    assert len(part) == 200
    assert part[0]["name"] == whole[800]["name"]
    assert digits.source("train[:800]")[-1]["name"] == "train[799]"
    assert [digits.source("train[-2:]+test[:2]")[i]["name"] for i in range(4)] == [
        "train[998]",
        "train[999]",
        "test[0]",
        "test[1]",
    ]
    assert len({x["label"] for x in map(part.__getitem__, range(40))}) == 10
    with pytest.raises(IndexError):
        part[200]
    assert part.info.fingerprint == whole.info.fingerprint


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("tset", "did you mean 'test'"),
        ("train[:1001]", "runs past the 1000 examples"),
        ("train[-1001:]", "runs past"),
        ("train[5:5]", "is empty"),
        ("train[50%:]", "cannot read the split"),
        ("train[3]", "cannot read the split"),
        ("", "cannot read the split"),
        ("train+", "cannot read the split"),
    ],
)
def test_wrong_splits_are_refused(split, message):
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        digits.source(split)


def test_a_missing_scikit_learn_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits.source("train")


def test_every_data_set_is_found_by_name_and_has_annotated_settings():
    assert {"digits", "folder", "idx", "tfds"} <= set(data.names())
    for name in data.names():
        parameters = inspect.signature(data.module(name).source).parameters
        assert next(iter(parameters)) == "split", name
        for parameter in list(parameters.values())[1:]:
            assert parameter.default is not parameter.empty, (name, parameter)
            assert parameter.annotation is not parameter.empty, (name, parameter)
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        data.module("digit")
    with pytest.raises(UnknownName):
        data.module("loader")
