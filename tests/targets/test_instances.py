import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.heads.solo import Cells
from dynadapt.targets import instances

pytestmark = pytest.mark.usefixtures("fast_compiling")

GRIDS, STRIDES, CLASSES = (4, 3), (4.0, 4.0), 3
SIDE = 8  # of features; masks have twice that


def test_peaks_are_no_lower_than_what_is_left_of_and_above_them():
    scores = np.random.default_rng(0).random((2, 5, 5, 3)).astype(np.float32).round(1)
    wanted = scores.copy()
    for i, j in np.ndindex(5, 5):
        near = scores[:, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1].max((1, 2))
        wanted[:, i, j] = np.where(scores[:, i, j] == near, scores[:, i, j], 0)
    np.testing.assert_array_equal(jax.vmap(instances.peaks)(jnp.asarray(scores)), wanted)
    assert 0 < (wanted == 0).mean() < 1


def cells_of(answers):
    """Cells of an image, each answer a level, a cell, a class, its score and its mask `h w`."""
    classes = [np.full((g * g, CLASSES), -20.0, np.float32) for g in GRIDS]
    kernels = [np.zeros((len(answers), g * g), np.float32) for g in GRIDS]
    features = np.zeros((SIDE, SIDE, len(answers)), np.float32)
    for n, (level, cell, kind, score, mask) in enumerate(answers):
        classes[level][cell, kind] = np.log(score / (1 - score))
        kernels[level][n, cell] = 1
        features[..., n] = np.where(mask, 20, -20)
    classes = [x.reshape(g, g, -1) for x, g in zip(classes, GRIDS, strict=True)]
    biases = [np.zeros(g * g, np.float32) for g in GRIDS]
    given = classes, [features, features], kernels, biases
    return Cells(*(tuple(map(jnp.asarray, part)) for part in given))


@functools.partial(jax.jit, static_argnames=("candidates", "most"))
def found(cells, candidates=20, most=6):
    return instances.instances(cells, STRIDES, candidates=candidates, most=most)


def block(top, left, high=3, wide=3):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + high, left : left + wide] = True
    return mask


ANSWERS = (
    (0, 0, 1, 0.9, block(0, 0)),
    (0, 10, 0, 0.6, block(4, 4)),
    (1, 8, 2, 0.8, block(4, 0)),  # of the coarser grid
)


def test_cells_answer_their_masks_best_first():
    answer = found(cells_of(ANSWERS))
    assert answer.classes.tolist() == [1, 2, 0, -1, -1, -1]
    np.testing.assert_allclose(answer.scores, [0.9, 0.8, 0.6, 0, 0, 0], atol=2e-2)
    for mask, n in zip(np.asarray(answer.masks), (0, 2, 1), strict=False):
        wanted = ANSWERS[n][-1].repeat(2, 0).repeat(2, 1)
        assert (mask > 0.5).sum() == 36 and ((mask > 0.5) == wanted).all()
    assert int(answer.missed) == 0


def test_what_is_not_looked_at_is_counted():
    answer = found(cells_of(ANSWERS), candidates=2)
    assert answer.classes.tolist() == [1, 2] and int(answer.missed) == 1
    assert found(cells_of(ANSWERS), most=1).classes.tolist() == [1]


def test_an_object_that_several_cells_draw_is_answered_once():
    """By cells far apart, of which none is the others' neighbour."""
    twice = (*ANSWERS, (1, 0, 1, 0.7, ANSWERS[0][-1]), (1, 2, 2, 0.7, ANSWERS[0][-1]))
    answer = found(cells_of(twice))
    scores = dict(zip(answer.classes.tolist(), answer.scores.tolist(), strict=True))
    assert answer.classes[:4].tolist() == [1, 2, 2, 0]  # of another class it is kept
    wanted = ANSWERS[1][-1].repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(np.asarray(answer.masks)[3] > 0.5, wanted)
    left = [s for s, c in zip(answer.scores, answer.classes, strict=True) if c == 1]
    assert len(left) == 2 and left[1] == pytest.approx(0.7 * np.exp(-2), abs=2e-2)
    assert scores[0] == pytest.approx(0.6, abs=2e-2)


def test_low_scores_and_small_masks_are_no_answers():
    answers = ((0, 0, 1, 0.09, block(0, 0)), (0, 10, 0, 0.9, block(4, 4, 1, 1)))
    assert found(cells_of(answers)).classes.tolist() == [-1] * 6
    answers = ((0, 0, 1, 0.11, block(0, 0)), (0, 10, 0, 0.9, block(4, 4, 1, 2)))
    assert found(cells_of(answers)).classes.tolist() == [0, 1, -1, -1, -1, -1]


def test_without_answers_all_is_finite():
    answer = found(cells_of(((0, 0, 1, 0.01, block(0, 0)),)))
    assert not answer.scores.any() and np.isfinite(answer.masks).all()
