"""Clouds are functions of their position; variants change what they say."""

import hashlib

import numpy as np
import pytest

from dynadapt.data import clouds, loader, transforms
from dynadapt.errors import DataError, UnknownName


@pytest.fixture(scope="module")
def some():
    """The first 50 test clouds of each variant."""
    sources = {v: clouds.source("test[:50]", count=512, variant=v) for v in clouds.VARIANTS}
    return {v: [source[i] for i in range(len(source))] for v, source in sources.items()}


def test_clouds_are_a_function_of_seed_split_and_position():
    def one(split="train", position=3, seed=0):
        return clouds.cloud(split, position, 64, "hard", seed)

    again = one()
    for name, value in one().items():
        assert np.array_equal(value, again[name]), name
    for other in (one("val"), one("test"), one(position=4), one(seed=1)):
        assert not np.array_equal(other["points"], again["points"])
    with pytest.raises(ValueError, match="read-only"):
        again["points"][0] = 0


def test_golden():
    cloud = clouds.cloud("test", 7, 256, "hard", 0)
    digest = hashlib.sha256(cloud["parts"].astype("<i4").tobytes()).hexdigest()
    assert (cloud["label"], digest[:16]) == (4, "0f641058da33c4de")
    assert np.abs(cloud["points"]).mean() == pytest.approx(0.2117, abs=1e-4)


def test_classes_are_even_in_every_ten(some):
    for split, count in clouds.COUNTS.items():
        labels = clouds.source(split).labels
        assert len(labels) == count and count % 10 == 0
        assert (np.sort(labels.reshape(-1, 10)) == np.arange(10)).all()
    assert (labels[:10] != labels[10:20]).any()
    assert [x["label"] for x in some["clean"]] == labels[:50].tolist()


def test_parts_are_those_of_the_class(some):
    owners = np.array(clouds.OWNERS)
    field = clouds.source("val").info.fields["parts"]
    assert field.owners == clouds.OWNERS and len(field.classes) == len(owners) == 24
    for name, owner in zip(field.classes, owners, strict=True):
        assert name.split()[0] == clouds.CLASSES[owner]
    for variant, drawn in some.items():
        for x in drawn:
            own = x["parts"][x["parts"] >= 0]
            assert (owners[own] == x["label"]).all(), variant
    for x in some["clean"]:  # and all of them are there
        assert set(x["parts"]) == set(np.flatnonzero(owners == x["label"]))


def test_variants_are_what_they_say(some):
    for x in some["clean"]:
        lengths = np.linalg.norm(x["points"], axis=1)
        assert lengths.max() == pytest.approx(1, abs=1e-6) and (x["parts"] >= 0).all()
        assert np.abs(x["points"].mean(0)).max() < 1e-6
    for variant in ("background", "hard"):
        shares = [(x["parts"] < 0).mean() for x in some[variant]]
        assert 0.19 < min(shares) < 0.23 and 0.27 < max(shares) < 0.31
    for x in some["background"]:
        thing = x["points"][x["parts"] >= 0]
        assert np.linalg.norm(thing, axis=1).max() == pytest.approx(1, abs=1e-6)
        floor = x["points"][x["parts"] < 0, 1].min()
        assert floor == pytest.approx(thing[:, 1].min(), abs=1e-6)
    sizes = [np.linalg.norm(x["points"][x["parts"] >= 0], axis=1).max() for x in some["hard"]]
    assert min(sizes) < 0.85 and max(sizes) > 1.1


def test_points_come_in_no_order_of_parts(some):
    for x in some["hard"]:
        first, last = x["parts"][:256], x["parts"][256:]
        assert abs((first < 0).mean() - (last < 0).mean()) < 0.15


def test_a_hard_thing_lacks_a_side_and_is_turned():
    """A chair's back is behind its seat, unless the cloud is turned; a cut leaves a centre off."""
    away = {"clean": [], "hard": []}
    for variant, found in away.items():
        source = clouds.source("val", count=512, variant=variant)
        for x in (
            source[i] for i in np.flatnonzero(source.labels == clouds.CLASSES.index("chair"))
        ):
            back = clouds.PARTS.index("chair back")
            if (x["parts"] == back).sum() > 20:
                found.append(x["points"][x["parts"] == back].mean(0))
    assert len(away["clean"]) == 20 and len(away["hard"]) > 12
    assert max(back[2] for back in away["clean"]) < 0
    angles = np.degrees([np.arctan2(back[2], back[0]) % (2 * np.pi) for back in away["hard"]])
    assert len(np.unique(angles // 90)) == 4
    hard = clouds.source("val", count=512, variant="hard")
    centres = [x["points"][x["parts"] >= 0].mean(0) for x in (hard[i] for i in range(20))]
    assert np.median(np.linalg.norm(centres, axis=1)) > 0.1


def test_batches_hold_the_clouds_as_they_are():
    source = clouds.source("train[:20]", count=128, variant="hard")
    spec = loader.spec(source.info, transforms.pipeline(""), 4)
    batch = next(loader.train_batches(source, "", batch_size=4, seed=0))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    assert batch["points"].shape == (4, 128, 3) and batch["parts"].shape == (4, 128)
    for row, index in enumerate(batch["index"]):
        assert np.array_equal(batch["points"][row], source[int(index)]["points"])
    _, about = loader.example(source, transforms.pipeline(""), 0, None)
    assert about == {"name": "train[0]", "size": None, "frame": None}
    rest = list(loader.eval_batches(source, "", batch_size=16))[-1]
    assert rest["parts"][-1].max() == -1 and not rest["points"][-1].any() and rest["mask"][-1] == 0


def test_wrong_settings_are_answered():
    with pytest.raises(UnknownName, match="did you mean 'hard'"):
        clouds.source("train", variant="herd")
    with pytest.raises(DataError, match="16 to 65,536 points, not 4"):
        clouds.source("train", count=4)
    with pytest.raises(DataError, match="seed of clouds is -1"):
        clouds.source("train", seed=-1)
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        clouds.source("tset")


def test_the_fingerprint_follows_the_settings():
    prints = [clouds.source("test", **settings).info.fingerprint for settings in (
        {}, {"variant": "hard"}, {"seed": 1}, {"count": 64},
    )]  # fmt: skip
    assert len(set(prints)) == 4 and prints[0] == clouds.source("train").info.fingerprint
