import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.targets.boxes import GROWTH, anchors, area, centres, decode, giou, iou

SQUARE = [0.0, 0, 4, 4]


@pytest.mark.parametrize(
    ("other", "shared", "general"),
    [
        (SQUARE, 1.0, 1.0),
        ([2.0, 0, 6, 4], 8 / 24, 8 / 24),  # the box around both has nothing else
        ([2.0, 2, 6, 6], 4 / 28, 4 / 28 - 8 / 36),
        ([6.0, 0, 10, 4], 0.0, -8 / 40),
        ([4.0, 4, 8, 8], 0.0, -32 / 64),  # a corner is no area
        ([1.0, 1, 1, 3], 0.0, 0.0),  # without area, inside
    ],
)
def test_overlaps(other, shared, general):
    for one, two in ((SQUARE, other), (other, SQUARE)):
        one, two = jnp.asarray(one), jnp.asarray(two)
        assert float(iou(one, two)) == pytest.approx(shared, abs=1e-6)
        assert float(giou(one, two)) == pytest.approx(general, abs=1e-6)


def test_boxes_without_area_are_finite():
    point = jnp.asarray([3.0, 3, 3, 3])
    for function in (iou, giou):
        value, slope = jax.value_and_grad(function)(point, point)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_boxes_apart_have_a_slope_in_the_generalised_iou_alone():
    one, other = jnp.asarray(SQUARE), jnp.asarray([6.0, 0, 10, 4])
    assert not np.asarray(jax.grad(iou)(one, other)).any()
    assert jax.grad(giou)(one, other)[2] > 0  # a wider one comes nearer


def test_areas_and_centres():
    boxes = jnp.asarray([SQUARE, [1.0, 2, 4, 8]])
    assert area(boxes).tolist() == [16, 18]
    assert centres(boxes).tolist() == [[2, 2], [2.5, 5]]


def test_anchors_are_squares_around_multiples_of_the_stride():
    fine, coarse = anchors([(2, 3), (1, 1)], (4, 8.0), 2)
    assert fine.dtype == np.float32 and fine.shape == (6, 4)
    assert fine[0].tolist() == [-4, -4, 4, 4]
    assert fine[1].tolist() == [0, -4, 8, 4]  # a row first
    assert fine[5].tolist() == [4, 0, 12, 8]
    assert coarse.tolist() == [[-8, -8, 8, 8]]


def test_deltas_move_and_stretch_anchors():
    anchor = jnp.asarray([[0.0, 0, 10, 20]])
    found = decode(anchor, jnp.asarray([[1.0, -2, 5 * np.log(2), 0]]))
    # a tenth of the width to the right, two tenths of the height up, twice as wide
    np.testing.assert_allclose(found, [[-4, -4, 16, 16]], rtol=1e-6)
    np.testing.assert_array_equal(decode(anchor, jnp.zeros((1, 4))), anchor)


def test_growth_is_bounded():
    anchor = jnp.asarray([[0.0, 0, 16, 16]])
    for sign, side in ((1, 1000), (-1, 16 * 16 / 1000)):
        found = decode(anchor, jnp.asarray([[0.0, 0, sign * 1e9, sign * 5 * GROWTH]]))
        np.testing.assert_allclose(found[0, 2:] - found[0, :2], side, rtol=1e-4)
