"""COCO's metrics: against pycocotools itself on whole files, and where the value is known."""

import contextlib
import io
import json

import numpy as np
import pytest

from dynadapt import evaluate
from dynadapt.data.objects import Object
from dynadapt.errors import ConfigError, DataError
from dynadapt.targets import coco

SIZE = (120, 160)
CLASSES, IDS = ("cat", "dog", "owl"), (3, 17, 90)
COUNT, MOST = len(CLASSES), 40


def painted(box):
    left, top, right, bottom = (int(round(x)) for x in box)
    mask = np.zeros(SIZE, bool)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask


def drawn(rng, count, low=4, high=150):
    """Boxes on a grid of quarters, which two decimals in a file tell exactly."""
    sides = rng.integers(4 * low, 4 * high, (count, 2)) / 4
    corners = np.floor(4 * rng.random((count, 2)) * (np.array(SIZE[::-1]) - sides).clip(0)) / 4
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return boxes.clip(0, [*SIZE[::-1], *SIZE[::-1]]).astype(np.float32)


def image(seed, objects=6, classes=COUNT):
    """Objects, some of them crowds, and answers near them, many of equal scores."""
    rng = np.random.default_rng(seed)
    boxes = drawn(rng, objects)
    things = [
        Object(
            int(rng.integers(classes)),
            tuple(box.tolist()),
            area=float(painted(box).sum()),
            crowd=bool(rng.random() < 0.2),
            segmentation=coco.encoded(painted(box)),
        )
        for box in boxes
    ]
    near = boxes[rng.integers(objects, size=MOST)] if objects else drawn(rng, MOST)
    near = (near + rng.integers(-12, 13, (MOST, 4)) / 4).clip(0, [*SIZE[::-1], *SIZE[::-1]])
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    answers = {
        "boxes": near.astype(np.float32),
        "scores": (rng.integers(1, 20, MOST) / 20).astype(np.float32),
        "classes": np.where(rng.random(MOST) < 0.1, -1, rng.integers(classes, size=MOST)),
        "masks": [painted(box) for box in near],
    }
    return answers, things


def stacked(images, kind="bbox", classes=COUNT):
    rows = [coco.matched(a, things, SIZE, classes, kind) for a, things in images]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}


@pytest.fixture(scope="module")
def images():
    # One has no objects, one has an object and a class less than the others.
    return [image(seed, objects=(6, 0, 1, 9)[seed % 4]) for seed in range(8)]


def of_files(images, kind, folder):
    """pycocotools' twelve numbers, and AP and AP50 of the classes, from files of both sides."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for number, (answers, things) in enumerate(images):
        for thing in things:
            left, top, right, bottom = thing.box
            about = dict(image_id=number, category_id=IDS[thing.category], area=thing.area)
            shape = dict(bbox=[left, top, right - left, bottom - top], iscrowd=int(thing.crowd))
            shape["segmentation"] = thing.segmentation
            annotations.append({"id": len(annotations) + 1, **about, **shape})
        given = {k: v for k, v in answers.items() if kind == "segm" or k != "masks"}
        results += coco.results(given, number, IDS)
    about = [dict(id=n, height=SIZE[0], width=SIZE[1]) for n in range(len(images))]
    categories = [dict(id=i, name=name) for i, name in zip(IDS, CLASSES, strict=True)]
    truth = dict(images=about, annotations=annotations, categories=categories)
    for name, content in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO(folder / "truth.json")
        judge = COCOeval(given, given.loadRes(str(folder / "results.json")), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    by_class = judge.eval["precision"][:, :, :, 0, -1]
    table = [(by_class[:, :, n].mean(), by_class[0, :, n].mean()) for n in range(len(IDS))]
    return judge.stats, np.array(table)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_numbers_are_those_of_the_written_file(images, kind, tmp_path, capsys):
    stats, table = of_files(images, kind, tmp_path)
    found = coco.summary(stacked(images, kind), CLASSES)
    assert capsys.readouterr().out == ""
    assert min(stats) > 0 and max(stats) < 1  # every number tells something
    np.testing.assert_allclose([found[k] for k in coco.METRICS], 100 * stats, rtol=1e-12)
    ours = [(found["classes"][n]["ap"], found["classes"][n]["ap50"]) for n in CLASSES]
    np.testing.assert_allclose(ours, 100 * table, atol=1e-4)


def test_rows_have_one_shape(images):
    for answers, things in images:
        rows = coco.matched(answers, things, SIZE, COUNT)
        wanted = coco.blank(MOST, COUNT)
        assert {k: (v.shape, v.dtype) for k, v in rows.items()} == {
            k: (v.shape, v.dtype) for k, v in wanted.items()
        }
        assert (np.diff(rows["scores"]) <= 0).all()


def test_processes_together_are_one(images):
    """Whatever process and batch had an image, its rows go to its place."""
    rows = {k: np.concatenate([v] * 3) for k, v in stacked(images).items()}
    index = np.arange(24).reshape(3, 8).T  # eight processes, which take images in turn
    index = np.append(index, np.full((8, 1), -1), axis=1).ravel()  # and pad their last batch
    gathered = {k: v[index] for k, v in rows.items()}
    ordered = evaluate.in_order(gathered, index, (index >= 0).astype(np.float32))
    assert coco.summary(ordered, CLASSES) == coco.summary(rows, CLASSES)


def test_the_order_of_images_does_not_matter_where_no_scores_are_equal(images):
    rng, given = np.random.default_rng(0), []
    scores = rng.permutation(len(images) * MOST).reshape(len(images), MOST) + 1
    for (answers, things), own in zip(images, scores, strict=True):
        given.append(({**answers, "scores": own.astype(np.float32)}, things))
    one, other = (coco.summary(stacked(order), CLASSES) for order in (given, given[::-1]))
    assert one["classes"] == other["classes"]
    for name in coco.METRICS:
        assert one[name] == pytest.approx(other[name], rel=1e-12)


def found_by(things, scores=None):
    """Answers that are the objects themselves, and as many that are none."""
    count = len(things)
    return {
        "boxes": np.array([t.box for t in things] + [(0, 0, 0, 0)] * count, np.float32),
        "scores": np.array([*(scores or [0.9] * count), *[0] * count], np.float32),
        "classes": np.array([t.category for t in things] + [-1] * count),
        "masks": [t.segmentation for t in things],
    }


def one(category, box, **more):
    return Object(category, box, float((box[2] - box[0]) * (box[3] - box[1])), **more)


def squares(count, category=0, side=10.0):
    places = [(20.0 * (n % 50), 20.0 * (n // 50)) for n in range(count)]
    return [one(category, (x, y, x + side, y + side)) for x, y in places]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_answers_give_100_and_none_0(images, kind):
    """Crowds are left out on both sides."""
    things = [[t for t in things if not t.crowd] for _, things in images]
    perfect = coco.summary(stacked([(padded(t), t) for t in things], kind), CLASSES)
    everything = {k: v for k, v in perfect.items() if k not in ("classes", "ar_1")}
    assert everything == pytest.approx(dict.fromkeys(everything, 100.0))
    assert perfect["classes"] == dict.fromkeys(CLASSES, {"ap": 100.0, "ap50": 100.0})
    silent = {"boxes": np.zeros((MOST, 4)), "scores": np.zeros(MOST), "classes": -np.ones(MOST)}
    nothing = coco.summary(stacked([(silent, t) for t in things], kind), CLASSES)
    assert nothing.keys() == perfect.keys()
    assert all(nothing[k] == 0 for k in coco.METRICS)
    assert nothing["classes"] == dict.fromkeys(CLASSES, {"ap": 0.0, "ap50": 0.0})


def padded(things):
    answers = found_by(things)
    for name, fill in (("boxes", 0.0), ("scores", 0.0), ("classes", -1)):
        value = answers[name][: len(things)]
        whole = np.full((MOST, *((4,) if name == "boxes" else ())), fill, value.dtype)
        whole[: len(things)] = value.reshape(len(things), *whole.shape[1:])
        answers[name] = whole
    return answers


def test_a_value_by_hand():
    """Found, wrong, found: precision 1 up to half of the recalls, 2/3 beyond.

    The second is a square shifted by a quarter, of an intersection over union of 0.6.
    """
    things = squares(2)
    answers = {
        "boxes": np.array([(0, 0, 10, 10), (60, 60, 70, 70), (22.5, 0, 32.5, 10)], np.float32),
        "scores": np.array([0.9, 0.8, 0.7], np.float32),
        "classes": np.zeros(3, int),
    }
    found = coco.summary(stacked([(answers, things)], classes=1), ["square"])
    both, single = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert found["ap50"] == pytest.approx(100 * both)
    assert found["ap75"] == pytest.approx(100 * single)
    assert found["ap"] == pytest.approx(100 * (3 * both + 7 * single) / 10)
    assert (found["ar_1"], found["ar_10"]) == pytest.approx((50, 65))
    assert found["classes"]["square"] == {"ap": round(found["ap"], 4), "ap50": round(100 * both, 4)}
    # All are small, so nothing is told of other sizes.
    assert found["ap_small"] == found["ap"] and not {"ap_medium", "ar_large"} & found.keys()


def test_a_class_without_objects_has_no_numbers():
    """Answers of it are wrong, and count in no mean."""
    things = squares(2)
    answers = found_by(things)
    answers["classes"][2:], answers["scores"][2:] = 1, 0.99
    found = coco.summary(stacked([(answers, things)], classes=2), ["there", "absent"])
    assert found["ap"] == pytest.approx(100)
    assert found["classes"] == {"there": {"ap": 100.0, "ap50": 100.0}, "absent": {}}


def test_crowds_alone_are_nothing_to_be_found():
    crowd = one(0, (0.0, 0.0, 100.0, 100.0), crowd=True)
    found = coco.summary(stacked([(found_by([crowd]), [crowd])], classes=1), ["c"])
    whole = [name for name in coco.METRICS if not name.endswith(coco.SIZES)]
    assert found == {**dict.fromkeys(whole, 0.0), "classes": {"c": {}}}


def average(things, answers):
    return coco.summary(stacked([(answers, things)], classes=1), ["c"])["ap50"]


def test_answers_in_a_crowd_are_not_wrong():
    """Any number of them, however small a part of it they cover; outside they are wrong."""
    (single,) = squares(1)
    crowd = one(0, (50.0, 50.0, 100.0, 100.0), crowd=True)
    inside = [one(0, (55.0 + 5 * n, 55.0, 60.0 + 5 * n, 60.0)) for n in range(3)]
    answers = found_by([*inside, single], [0.9, 0.9, 0.9, 0.1])
    assert average([single, crowd], answers) == pytest.approx(100)
    assert average([single], answers) == pytest.approx(25)


def test_a_difficult_object_takes_one_answer():
    """It is not missed; a part of it is no answer to it, and neither is a second one."""
    (single,) = squares(1)
    hard = one(0, (50.0, 50.0, 100.0, 100.0), difficult=True)
    part = one(0, (55.0, 55.0, 60.0, 60.0))
    assert average([single, hard], found_by([single])) == pytest.approx(100)
    assert average([single, hard], found_by([hard, single], [0.9, 0.1])) == pytest.approx(100)
    assert average([single, hard], found_by([hard, hard, single], [0.9, 0.8, 0.1])) < 51
    assert average([single, hard], found_by([part, single], [0.9, 0.1])) < 51


def test_a_hundred_answers_of_a_class_count():
    """Of 300 objects of one class, a third is found; of three classes, all are."""
    things = squares(300)
    answers = found_by(things, list(np.linspace(1, 0.5, 300)))
    rows = stacked([(answers, things)], classes=1)
    assert (rows["classes"] == 0).sum() == 100 and rows["truths"].max() == 300
    found = coco.summary(rows, ["c"])
    assert found["ar_100"] == pytest.approx(100 / 3) and found["ar_10"] == pytest.approx(10 / 3)
    things = [one(n % 3, t.box) for n, t in enumerate(things)]
    found = coco.summary(stacked([(found_by(things), things)], classes=3), CLASSES)
    assert found["ar_100"] == pytest.approx(100)


def test_an_image_without_objects_makes_its_answers_wrong():
    things = squares(1)
    answers = found_by(things)
    both = stacked([(answers, things), (answers | {"scores": np.ones(2)}, [])], classes=1)
    assert coco.summary(both, ["c"])["ap50"] == pytest.approx(50)


def test_no_images_have_no_objects():
    rows = {k: v[None][:0] for k, v in coco.blank(5, 2).items()}
    found = coco.summary(rows, ["a", "b"])
    assert found["ap"] == 0 and found["classes"] == {"a": {}, "b": {}}


def test_masks_may_lie_in_a_map():
    """Objects without a mask of their own are where their number is."""
    instances = np.zeros(SIZE, np.int32)
    instances[:40, :50], instances[60:, 60:] = 7, 9
    boxes = {7: (0.0, 0.0, 50.0, 40.0), 9: (60.0, 60.0, 160.0, 120.0)}
    things = [Object(0, boxes[n], float((instances == n).sum()), number=n) for n in (7, 9)]
    answers = found_by(things)
    answers["masks"] = [instances == n for n in (7, 9)]
    rows = coco.matched(answers, things, SIZE, 1, "segm", instances)
    found = coco.summary({k: v[None] for k, v in rows.items()}, ["c"])
    assert found["ap"] == pytest.approx(100)
    with pytest.raises(DataError, match="an object has none"):
        coco.matched(answers, things, SIZE, 1, "segm")
    with pytest.raises(DataError, match="a mask has 120 x 160 pixels, and its image 160 x 120"):
        coco.matched(answers, things, SIZE[::-1], 1, "segm", instances)


def test_results_are_plain_values_best_first():
    answers = {
        "boxes": np.array([(1.004, 2, 3.5, 10), (0, 0, 0, 0), (5, 5, 6, 6)], np.float32),
        "scores": np.array([0.1, 0.0, 0.7], np.float32),
        "classes": np.array([0, -1, 2]),
    }
    first, second = coco.results(answers, "a.png", IDS)
    assert first == dict(image_id="a.png", category_id=90, bbox=[5.0, 5.0, 1.0, 1.0], score=0.7)
    assert second["bbox"] == [1.0, 2.0, 2.5, 8.0]
    masks = coco.results(answers | {"masks": [painted((1, 2, 5, 6))] * 3}, 5, ())
    assert [m["category_id"] for m in masks] == [2, 0] and "bbox" not in masks[0]
    assert json.loads(json.dumps(masks)) == masks


def test_a_missing_library_is_named(monkeypatch):
    coco.required()
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "dynadapt\[coco\]"'):
        coco.required()
