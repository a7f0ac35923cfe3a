"""PASCAL VOC's metrics where the value is known; the cases have the rest."""

import numpy as np
import pytest

from dynadapt import evaluate
from dynadapt.data.objects import Object
from dynadapt.targets import voc

CLASSES = ("cat", "dog")


def one(category, box, **more):
    return Object(category, box, area=0.0, **more)


def squares(count, category=0):
    return [one(category, (20.0 * n, 0.0, 20.0 * n + 10, 10.0)) for n in range(count)]


def answers(things, scores, most=6):
    free = most - len(things)
    return {
        "boxes": np.array([t.box for t in things] + [(0, 0, 0, 0)] * free, np.float32),
        "scores": np.array([*scores, *[0] * free], np.float32),
        "classes": np.array([t.category for t in things] + [-1] * free),
    }


def stacked(images):
    rows = [voc.matched(given, things, len(CLASSES)) for given, things in images]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}


def summary(*images):
    return voc.summary(stacked(images), CLASSES)


def test_perfect_answers_give_100_and_none_0():
    things = [*squares(2), one(1, (0.0, 50.0, 9.0, 60.0))]
    every = dict.fromkeys(("voc_ap50", "voc_ap50_11"), 100.0)
    found = summary((answers(things, [0.9] * 3), things))
    assert found == {**every, "classes": dict.fromkeys(CLASSES, every)}
    nothing = dict.fromkeys(every, 0.0)
    found = summary((answers([], []), things))
    assert found == {**nothing, "classes": dict.fromkeys(CLASSES, nothing)}


def test_values_by_hand():
    """Found, wrong, found, and one of four missed twice: precisions 1, 1/2, 2/3."""
    things, wrong = squares(4), one(0, (0.0, 70.0, 10.0, 80.0))
    given = answers([things[0], wrong, things[1]], [0.9, 0.8, 0.7])
    found = summary((given, things))["classes"]["cat"]
    assert found["voc_ap50"] == pytest.approx(100 * (1 / 4 + 2 / 3 / 4), abs=1e-4)
    # Recalls 0, 0.1 and 0.2 have a precision of 1; 0.3, 0.4 and 0.5 one of 2/3.
    assert found["voc_ap50_11"] == pytest.approx(100 * (3 + 3 * 2 / 3) / 11, abs=1e-4)


def test_an_object_is_found_once_by_its_best_answer():
    (thing,) = squares(1)
    rows = stacked([(answers([thing] * 3, [0.5, 0.9, 0.7]), [thing])])
    assert rows["right"][0].tolist() == [voc.RIGHT, *[voc.WRONG] * 5]
    assert rows["scores"][0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0, 0, 0])


def test_half_is_enough_and_less_is_not():
    (thing,) = squares(1)
    for width, right in ((5.0, voc.RIGHT), (4.9, voc.WRONG)):
        part = one(0, (0.0, 0.0, width, 10.0))
        assert stacked([(answers([part], [0.9]), [thing])])["right"][0, 0] == right


def test_an_answer_stands_for_the_object_that_it_overlaps_most():
    """It does not go to the second best where that one is taken."""
    near = one(0, (0.0, 0.0, 10.0, 10.0)), one(0, (2.0, 0.0, 12.0, 10.0))
    given = answers([near[0], one(0, (0.5, 0.0, 10.5, 10.0))], [0.9, 0.8])
    assert stacked([(given, near)])["right"][0, :2].tolist() == [voc.RIGHT, voc.WRONG]


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_difficult_objects_are_neither_found_nor_missed(kind):
    (thing,) = squares(1)
    hard = one(0, (50.0, 50.0, 60.0, 60.0), **{kind: True})
    for found in ([thing], [hard, thing], [hard, hard, thing]):
        rows = stacked([(answers(found, [0.9, 0.8, 0.7][: len(found)]), [thing, hard])])
        assert rows["truths"][0].tolist() == [1, 0]
        assert voc.summary(rows, CLASSES)["voc_ap50"] == 100


def test_classes_do_not_meet():
    (thing,) = squares(1)
    found = summary((answers([one(1, thing.box)], [0.9]), [thing]))
    assert found["voc_ap50"] == 0 and found["classes"]["dog"] == {}


def test_images_and_processes():
    """Wrong answers of an image without objects count; the order of rows is that of the index."""
    (thing,) = squares(1)
    images = [
        (answers([thing], [0.5]), []),
        (answers([thing], [0.4]), [thing]),
        (answers([one(1, thing.box)], [0.3]), [one(1, thing.box)]),
    ]
    rows = stacked(images)
    found = voc.summary(rows, CLASSES)
    assert found["classes"] == {
        "cat": {"voc_ap50": 50.0, "voc_ap50_11": 50.0},
        "dog": {"voc_ap50": 100.0, "voc_ap50_11": 100.0},
    }
    assert found["voc_ap50"] == 75
    index = np.array([2, 0, 1, -1])
    mixed = {k: np.concatenate([v, v[:1]])[index] for k, v in rows.items()}
    ordered = evaluate.in_order(mixed, index, (index >= 0).astype(np.float32))
    assert voc.summary(ordered, CLASSES) == found
    assert voc.summary({k: v[:0] for k, v in rows.items()}, CLASSES)["voc_ap50"] == 0


def test_equal_scores_keep_their_order():
    (thing,) = squares(1)
    wrong = one(0, (0.0, 70.0, 10.0, 80.0))
    for first, value in (([thing, wrong], 100), ([wrong, thing], 50)):
        assert summary((answers(first, [0.5, 0.5]), [thing]))["voc_ap50"] == value


def test_three_hundred_objects():
    things = squares(300)
    given = answers(things[:150], np.linspace(1, 0.5, 150), most=200)
    rows = stacked([(given, things)])
    assert rows["truths"][0].tolist() == [300, 0] and (rows["right"] == voc.RIGHT).sum() == 150
    assert voc.summary(rows, CLASSES)["voc_ap50"] == pytest.approx(50)
