import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.targets import atss
from dynadapt.targets.boxes import anchors, centres, decode, iou
from tests.anchored import truthful

pytestmark = pytest.mark.usefixtures("fast_compiling")

SIZES, STRIDES = [(8, 10), (4, 5), (2, 3)], (4, 8, 16)
LEVELS = anchors(SIZES, STRIDES, 4)
EVERY = np.concatenate(LEVELS)
MOST = 5


def drawn(seed):
    """Boxes `g 4`, classes and which are there; no two centres share a distance."""
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(-2, 28, (MOST, 2)), rng.uniform(2, 20, (MOST, 2))
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    return boxes, rng.integers(3, size=MOST), np.arange(MOST) < rng.integers(1, MOST + 1)


def by_hand(valid, boxes, there):
    """The owner of every anchor, one object after another in float64."""
    best, owner = np.full(len(EVERY), -1.0), np.full(len(EVERY), -1)
    ends = np.cumsum([len(level) for level in LEVELS])
    for g in np.flatnonzero(there):
        box = boxes[g].astype(np.float64)
        seen = []
        for start, stop in zip([0, *ends], ends, strict=False):
            places = np.flatnonzero(valid[start:stop]) + start
            gaps = ((centres(EVERY[places]) - centres(box)) ** 2).sum(1)
            seen += places[np.argsort(gaps, kind="stable")[:9]].tolist()
        shared = np.asarray(iou(jnp.asarray(EVERY[seen]), jnp.asarray(boxes[g])[None]), float)
        least = shared.mean() + (shared.std(ddof=1) if len(seen) > 1 else 0)
        for place, overlap in zip(seen, shared, strict=True):
            x, y = centres(EVERY[place])
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= least and inside and overlap > best[place]:
                best[place], owner[place] = overlap, g
    return owner


@pytest.fixture(scope="module")
def assign():
    return jax.jit(lambda *given: atss.assign(LEVELS, *given))


@pytest.mark.parametrize("extent", [(32, 40), (17, 21)])
def test_assignment_equals_a_loop_over_objects(assign, extent):
    valid = atss.valid(SIZES, STRIDES, jnp.asarray(extent))
    positives = 0
    for seed in range(12):
        boxes, _, there = drawn(seed)
        found = assign(valid, boxes, there)
        wanted = by_hand(np.asarray(valid), boxes, there)
        assert found.tolist() == wanted.tolist(), seed
        assert not there.all() or set(wanted.tolist()) - {-1}
        positives += (wanted >= 0).sum()
    assert positives > 30


def test_cells_that_hold_any_of_the_picture_are_valid():
    found = atss.valid([(3, 4), (2, 2)], (4, 8), jnp.asarray([5, 8]))
    wanted = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert found[:12].reshape(3, 4).astype(int).tolist() == wanted
    assert found[12:].tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "boxes",
    [
        np.zeros((MOST, 4)),
        np.full((MOST, 4), 8.0),  # without area, on a centre
        np.tile([200.0, 200, 220, 220], (MOST, 1)),  # outside of the canvas
    ],
)
def test_what_has_no_area_or_is_outside_is_learned_by_no_anchor(assign, boxes):
    found = assign(np.ones(len(EVERY), bool), boxes.astype(np.float32), np.ones(MOST, bool))
    assert (np.asarray(found) == -1).all()


def test_equal_objects_go_to_the_first(assign):
    boxes = np.tile(np.float32([3, 3, 19, 18]), (MOST, 1))
    found = np.asarray(assign(np.ones(len(EVERY), bool), boxes, np.arange(MOST) >= 1))
    assert set(found.tolist()) == {-1, 1}


@functools.partial(jax.jit, static_argnames=("least", "threshold", "most"))
def answer(outputs, valid, extent, **given):
    return atss.detections(outputs, LEVELS, valid, extent, **given)


def test_centerness():
    box = jnp.asarray([[0.0, 0, 8, 8]] * 3)
    anchor = jnp.asarray([[3.0, 3, 5, 5], [1, 3, 3, 5], [1, 1, 3, 3]])
    np.testing.assert_allclose(atss.centerness(anchor, box), [1, (1 / 3) ** 0.5, 1 / 3], rtol=1e-6)


def test_boxes_that_are_right_lose_nothing_and_are_found(assign):
    valid = np.ones(len(EVERY), bool)
    boxes, classes, there = drawn(3)
    boxes = boxes.clip(0, [40, 32, 40, 32])
    owner = np.asarray(assign(valid, boxes, there))
    outputs = truthful(EVERY, owner, boxes, classes, 3)
    np.testing.assert_allclose(decode(EVERY, outputs[1])[owner >= 0], boxes[owner[owner >= 0]],
                               atol=1e-4)  # fmt: skip
    found = atss.losses(outputs, EVERY, valid, owner, boxes, classes)
    assert float(found["box"].max()) < 1e-4 and float(found["class"].max()) < 1e-6
    assert float(found["positive"]) == (owner >= 0).sum()
    central = atss.centerness(EVERY[owner >= 0], boxes[owner[owner >= 0]])
    assert float(found["central"]) == pytest.approx(float(central.sum()), rel=1e-5)
    split = np.cumsum([len(level) for level in LEVELS])[:-1]
    parts = list(zip(*(np.split(x, split) for x in outputs), strict=True))
    given = dict(least=0.05, threshold=0.6, most=8)
    answers = jax.device_get(answer(parts, valid, jnp.asarray([32, 40]), **given))
    learned = sorted({int(n) for n in owner if n >= 0})
    some = answers["classes"] >= 0
    assert some.sum() == len(learned) and not answers["scores"][~some].any()
    order = [int(np.abs(boxes[learned] - box).sum(1).argmin()) for box in answers["boxes"][some]]
    assert sorted(order) == list(range(len(learned)))
    np.testing.assert_allclose(answers["boxes"][some], boxes[learned][order], atol=1e-3)
    assert answers["classes"][some].tolist() == classes[learned][order].tolist()


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def slope(outputs, valid, owner, boxes, classes):
    found = atss.losses(outputs, EVERY, valid, owner, boxes, classes)
    return sum(found[k].sum() for k in ("class", "box", "centre")), found


@pytest.mark.parametrize("value", [0.0, 80.0, -80.0, 1e6])
def test_losses_and_slopes_of_any_outputs_are_finite(assign, value):
    boxes, classes, there = drawn(5)
    valid = np.arange(len(EVERY)) % 2 == 0
    owner = assign(valid, boxes, there)
    outputs = tuple(jnp.full(s, value) for s in ((len(EVERY), 3), (len(EVERY), 4), len(EVERY)))

    slopes, found = slope(outputs, valid, owner, boxes, classes)
    for x in jax.tree.leaves((slopes, found)):
        assert np.isfinite(x).all()
    learns = np.asarray(owner) >= 0
    assert not np.asarray(found["class"])[~valid].any() and learns.any()
    for name in ("box", "centre"):
        assert not np.asarray(found[name])[~learns].any()
    assert not np.asarray(slopes[1])[~learns].any() and not np.asarray(slopes[2])[~learns].any()


def test_answers_lie_in_the_picture_and_not_beside_it():
    extent = jnp.asarray([16, 24])
    outputs = [
        (jnp.full((len(x), 2), 3.0), jnp.zeros((len(x), 4)), jnp.zeros(len(x))) for x in LEVELS
    ]
    valid = atss.valid(SIZES, STRIDES, extent)
    given = dict(least=0.05, threshold=0.6, most=60)
    found = jax.device_get(answer(outputs, valid, extent, **given))
    some, boxes = found["classes"] >= 0, found["boxes"]
    assert 10 < some.sum() and boxes[:, [0, 2]].max() == 24 and boxes[:, [1, 3]].max() == 16
    assert boxes.min() == 0 and not boxes[~some].any()
    np.testing.assert_allclose(found["scores"][some], 0.5 / (1 + np.exp(-3.0)), rtol=1e-5)
