import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.targets import solo
from dynadapt.targets.focal import focal

pytestmark = pytest.mark.usefixtures("fast_compiling")

H, W, N = 32, 48, 5
LOSSES = jax.jit(solo.losses)
HOW = dict(cells=6, scales=(1.0, 100.0), size=(H, W))


def drawn(seed, n=N):
    """Masks that are discs, boxes around them, and which of them are there."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    masks, boxes = [], []
    for _ in range(n):
        cy, cx, r = rng.uniform(6, H - 6), rng.uniform(6, W - 6), rng.uniform(2, 6)
        masks.append((y - cy) ** 2 + (x - cx) ** 2 < r**2)
        ys, xs = np.nonzero(masks[-1])
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return np.array(masks), np.array(boxes, np.float32), np.arange(n) < n - 1


def owners_by_hand(masks, boxes, there, cells, scales, size):
    """One object after the other, in plain numbers."""
    found = np.full((cells, cells), -1)
    for n, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes, strict=True)):
        w, h = right - left, bottom - top
        if not (there[n] and mask.any() and scales[0] <= (w * h) ** 0.5 <= scales[1]):
            continue
        ys, xs = np.nonzero(mask)
        spans = []
        for middle, side, length in ((ys.mean(), h, size[0]), (xs.mean(), w, size[1])):
            low, at, high = (
                int(max(v, 0) / length * cells)
                for v in (middle - 0.1 * side, middle, middle + 0.1 * side)
            )
            spans.append(slice(max(low, at - 1), min(high, at + 1, cells - 1) + 1))
        found[tuple(spans)] = n
    return found


@pytest.mark.parametrize("cells", [4, 7, 20])
def test_owners_equal_a_loop_over_objects(cells):
    run = jax.jit(lambda *given: solo.owners(solo.objects(*given), cells, (5.0, 11.0), (H, W)))
    kinds = set()
    for seed in range(8):
        given = drawn(seed)
        wanted = owners_by_hand(*given, cells, (5.0, 11.0), (H, W))
        np.testing.assert_array_equal(run(*given), wanted)
        kinds |= set(wanted.ravel().tolist())
    assert kinds == {-1, 0, 1, 2, 3}  # the last one is never there


def test_no_object_has_more_cells_than_are_counted_on():
    masks, boxes = np.ones((1, H, W), bool), np.array([[0, 0, W, H]], np.float32)
    owner = solo.owners(solo.objects(masks, boxes, np.ones(1)), 24, (1.0, 100.0), (H, W))
    assert (np.asarray(owner) == 0).sum() == solo.PER_OBJECT


def test_of_coinciding_objects_the_later_has_the_cells():
    masks, boxes, _ = drawn(3, n=1)
    twice = np.concatenate([masks, masks]), np.concatenate([boxes, boxes])
    for there, wanted in (((1, 1), 1), ((1, 0), 0)):
        owner = solo.owners(solo.objects(*twice, np.array(there)), 6, (1.0, 100.0), (H, W))
        assert set(np.asarray(owner).ravel().tolist()) == {-1, wanted}


def test_an_object_without_a_pixel_is_none():
    masks, boxes, there = drawn(4)
    masks[0] = False
    found = solo.objects(masks, boxes, there)
    assert found.there.tolist() == [False, True, True, True, False]
    assert np.isfinite(found.centres).all()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 8])
def test_masks_are_halved_between_the_pixels_in_the_middle_of_a_block(side):
    masks = np.random.default_rng(side).random((3, 4 * side, 6 * side)) < 0.5
    rows, columns, weights = solo.taps((4, 6), masks.shape[1:])
    found = jax.jit(lambda m: solo.halves(m[:, rows, columns], weights))(masks)
    blocks = masks.reshape(3, 4, side, 6, side)
    low, high = (side - 1) // 2, side // 2 + 1
    middle = blocks[:, :, low:high, :, low:high]
    np.testing.assert_array_equal(found, 2 * middle.sum((2, 4)) >= middle.shape[2] ** 2)


def test_masks_between_pixels_are_those_of_bilinear_resampling():
    """Strides of 3.5 pixels, as of patches of 14."""
    masks = np.random.default_rng(0).random((3, 28, 42)) < 0.5
    rows, columns, weights = solo.taps((8, 12), (28, 42))
    np.testing.assert_allclose(weights.sum(0), 1.0)
    wanted = jax.image.resize(masks.astype(np.float32), (3, 8, 12), "bilinear", antialias=False)
    found = np.asarray(solo.halves(jnp.asarray(masks)[:, rows, columns], weights))
    sure = np.abs(np.asarray(wanted) - 0.5) > 1e-4
    assert sure.mean() > 0.9 and (found == (wanted > 0.5))[sure].all()


@functools.partial(jax.jit, static_argnames="most")
def targets(masks, boxes, there, classes, small, most):
    return solo.targets(solo.objects(masks, boxes, there), classes, small, most=most, **HOW)


def wanted_of(seed, most):
    masks, boxes, there = drawn(seed)
    classes, small = np.arange(N) % 3, masks[:, ::2, ::2]
    return targets(masks, boxes, there, classes, small, most), small, classes


def test_cells_name_classes_and_masks():
    found, small, classes = wanted_of(5, most=36)
    owner = owners_by_hand(*drawn(5), **HOW)
    wanted = np.where(owner >= 0, classes[owner], -1)
    np.testing.assert_array_equal(found.classes, wanted)
    at = np.flatnonzero(owner.ravel() >= 0)
    assert 3 < len(at) < 36 and float(found.left_out) == 0
    assert found.some.tolist() == [n < len(at) for n in range(36)]
    assert found.cells[: len(at)].tolist() == at.tolist() and not found.cells[len(at) :].any()
    np.testing.assert_array_equal(found.masks[: len(at)], small[owner.ravel()[at]])


def test_cells_that_find_no_place_are_counted():
    whole, few = wanted_of(5, most=36)[0], wanted_of(5, most=2)[0]
    assert few.some.all() and float(few.left_out) == float(whole.some.sum()) - 2
    np.testing.assert_array_equal(few.masks, whole.masks[:2])
    np.testing.assert_array_equal(few.classes, whole.classes)


def test_dice():
    masks = np.zeros((3, 6, 8), bool)
    masks[0, :3], masks[1, 2:4, 2:5] = True, True
    right, wrong = np.where(masks, 30.0, -30.0), np.where(masks, -30.0, 30.0)
    np.testing.assert_allclose(solo.dice(right, masks)[:2], 0, atol=1e-3)
    np.testing.assert_allclose(solo.dice(wrong, masks), 1, atol=1e-6)
    half = solo.dice(np.zeros_like(right), masks)
    np.testing.assert_allclose(half[0], 1 - 24 / (48 / 4 + 24 + 2e-3), rtol=1e-5)
    slopes = jax.grad(lambda x: solo.dice(x, masks).sum())(jnp.asarray(wrong) * 100)
    assert np.isfinite(slopes).all()


def batch_of(seeds, most=12):
    each = [wanted_of(seed, most)[0] for seed in seeds]
    wanted = jax.tree.map(lambda *x: jnp.stack(x), *each)
    rng = np.random.default_rng(0)
    shapes = (len(seeds), 6, 6, 3), (len(seeds), most, H // 2, W // 2)
    classes, masks = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return (classes,), (masks,), (wanted,)


def test_losses_are_divided_by_counts_of_the_whole_batch():
    (classes,), (masks,), (wanted,) = given = batch_of((1, 2, 6))
    found = LOSSES(*given, jnp.ones(3))
    dice, some = np.asarray(solo.dice(masks, wanted.masks)), np.asarray(wanted.some)
    assert len(set(some.sum(1).tolist())) > 1  # else images' means would do
    assert float(found[0]) == pytest.approx(dice[some].mean(), rel=1e-5)
    total = np.asarray(focal(classes, wanted.classes)).sum()
    assert float(found[1]) == pytest.approx(total / (some.sum() + 1), rel=1e-5)
    # Padding counts nowhere.
    less = LOSSES(*given, jnp.array([1.0, 1.0, 0.0]))
    turned = jax.tree.map(lambda x: x.at[2].set(1) if x.dtype != bool else x, given)
    np.testing.assert_allclose(LOSSES(*turned, jnp.array([1.0, 1.0, 0.0])), less, rtol=1e-5)
    assert abs(float(less[0]) - float(found[0])) > 1e-4


def test_without_objects_the_masks_teach_nothing():
    classes, masks, (wanted,) = batch_of((1, 2, 6))
    none = wanted._replace(classes=jnp.full_like(wanted.classes, -1), some=wanted.some & False)
    slopes = jax.jit(jax.grad(lambda m: sum(solo.losses(classes, m, (none,), jnp.ones(3)))))(masks)
    assert not np.asarray(slopes[0]).any()
    found = LOSSES(classes, masks, (none,), jnp.ones(3))
    assert float(found[0]) == 0 and float(found[1]) > 0
    assert [float(x) for x in LOSSES(classes, masks, (wanted,), jnp.zeros(3))] == [0, 0]
