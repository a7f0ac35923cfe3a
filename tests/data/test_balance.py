"""Uneven classes: drawn equally often, or weighed in the loss."""

import numpy as np
import pytest

from dynadapt.data import Arrays, labelled, loader
from dynadapt.errors import ConfigError

COUNTS = (60, 30, 10)


def source():
    labels = np.repeat(np.arange(3), COUNTS)
    images = np.zeros((100, 4, 4, 3), np.uint8)
    info = labelled("uneven", "abc", {"train": 100}, size=(4, 4))
    return Arrays("train", {"train": images}, {"train": labels}, info)


def batches(balance, steps, seed=3, process=(0, 1)):
    given = dict(batch_size=20 // process[1], seed=seed, process=process)
    stream = loader.train_batches(source(), "", **given, balance=balance)
    return [next(stream) for _ in range(steps)]


def test_a_sampler_draws_every_class_equally_often():
    found = np.concatenate([b["label"] for b in batches("sampler", 200)])
    assert np.abs(np.bincount(found) / len(found) - 1 / 3).max() < 0.03
    plain = np.concatenate([b["label"] for b in batches("", 5)])
    assert np.bincount(plain).tolist() == list(COUNTS)


def test_what_is_drawn_depends_on_the_seed_alone():
    one = [b["index"] for b in batches("sampler", 12)]
    np.testing.assert_array_equal(one, [b["index"] for b in batches("sampler", 12)])
    assert (np.array(one) != [b["index"] for b in batches("sampler", 12, seed=4)]).any()
    parts = [batches("sampler", 12, process=(p, 2)) for p in (0, 1)]
    for number, whole in enumerate(one):
        both = np.stack([part[number]["index"] for part in parts], 1).ravel()
        np.testing.assert_array_equal(both, whole)


def test_weights_make_classes_equal_in_a_loss():
    weights = np.zeros(3)
    for batch in batches("weights", 5):
        np.add.at(weights, batch["label"], batch["mask"])
    np.testing.assert_allclose(weights, 100 / 3, rtol=1e-6)
    assert {float(w) for b in batches("", 2) for w in b["mask"]} == {1.0}


def test_labels_must_be_known_beforehand():
    class Unknown(Arrays):
        labels = None

    given = source()
    given.__class__ = Unknown
    with pytest.raises(ConfigError, match=r"data\.balance needs one label an image"):
        loader.train_batches(given, "", batch_size=4, seed=0, balance="sampler")
