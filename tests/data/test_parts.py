"""Parts of a split: they share the examples out, keep the mix of classes, and depend on nothing
but labels and numbers."""

import numpy as np
import pytest

from dynadapt import config, data
from dynadapt.data import Arrays, labelled, parts
from dynadapt.errors import DataError, MissingSplit

UNEVEN = (40, 20, 11, 4)  # examples of each class


def source(sizes=UNEVEN):
    """A source whose images tell their positions."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None]
    info = labelled("made", [f"class {i}" for i in range(len(sizes))], {"train": len(labels)})
    return Arrays("train", {"train": images}, {"train": labels}, info)


class Unlabelled:
    """A source that doesn't tell labels."""

    def __init__(self, count):
        self.info, self._count = source().info, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return {"image": np.full((1, 1), index)}


def held(split, whole=None):
    """Positions in the whole source of a part's examples."""
    part = parts.take(source() if whole is None else whole, parts.cut(split)[1])
    return [int(part[i]["image"][0, 0]) for i in range(len(part))]


@pytest.mark.parametrize("whole", [source(), Unlabelled(75)], ids=["labelled", "unlabelled"])
def test_folds_share_the_examples_out(whole):
    folds = [held(f"train|fold({i}, 4)", whole) for i in range(4)]
    assert sorted(sum(folds, [])) == list(range(75))
    assert sorted(map(len, folds)) == [18, 19, 19, 19]
    for i, fold in enumerate(folds):
        assert fold == sorted(fold)
        assert sorted(fold + held(f"train|rest({i}, 4)", whole)) == list(range(75))
    assert folds != [sorted(range(i, 75, 4)) for i in range(4)]


def test_folds_have_the_mix_of_classes():
    whole = source()
    for i in range(4):
        part = parts.take(whole, [f"fold({i}, 4)"])
        counts = np.bincount(part.labels, minlength=4)
        assert (abs(counts - np.array(UNEVEN) / 4) < 1).all()
        assert [part[k]["label"] for k in range(len(part))] == part.labels.tolist()


def test_shots_are_as_many_of_each_class():
    whole = source()
    part = parts.take(whole, ["shots(3, 0)"])
    assert np.bincount(part.labels).tolist() == [3] * 4
    assert held("train|shots(3, 0)") == held("train|shots(3,0)") != held("train|shots(3, 1)")
    # More shots of one seed hold the fewer.
    assert set(held("train|shots(2, 5)")) < set(held("train|shots(3, 5)"))


def test_parts_of_parts():
    rest, inner = held("train|rest(0, 5)"), held("train|rest(0, 5)|fold(0, 5)")
    assert set(inner) < set(rest) and len(inner) == 12
    assert set(inner) | set(held("train|rest(0, 5)|rest(0, 5)")) == set(rest)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("fold(0)", r"cannot read the part 'fold\(0\)'"),
        ("half", "write fold"),
        ("", "cannot read the part ''"),
        ("fold(5, 5)", "is none: there are 2 to 75 folds, counted from 0"),
        ("rest(0, 1)", "is none"),
        ("fold(0, 76)", "of 75 examples is none"),
        ("shots(5, 0)", "'class 3' has 4 examples, fewer than 5 shots"),
        ("shots(0, 0)", "no examples"),
    ],
)
def test_mistakes(part, text):
    with pytest.raises(DataError, match=text):
        parts.take(source(), [part])


def test_no_shots_without_labels():
    with pytest.raises(DataError, match="examples of a class each"):
        parts.take(Unlabelled(9), ["shots(1, 0)"])


def test_any_data_set_has_parts():
    section = config.default(data_set="digits").data
    whole = data.from_config(section, "train[:200]")
    part = data.from_config(section, "train[:200]|rest(1, 5)")
    assert len(part) == 160 and part.info == whole.info and part.in_memory
    assert np.array_equal(part.labels, whole.labels[parts.positions(whole, "rest", 1, 5)])
    with pytest.raises(MissingSplit, match="'tran'"):
        data.from_config(section, "tran|fold(0, 5)")
