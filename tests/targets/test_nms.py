import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.errors import UnknownName
from dynadapt.targets import nms

pytestmark = pytest.mark.usefixtures("fast_compiling")

THRESHOLD = 0.4


def overlap(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = np.prod(np.maximum(sides, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def kept_by_hand(boxes, scores, classes):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        same = [j for j in kept if classes[j] == classes[i]]
        if scores[i] > 0 and all(overlap(boxes[i], boxes[j]) <= THRESHOLD for j in same):
            kept.append(i)
    return kept


def drawn(seed, n=40):
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 20, (n, 2)), rng.uniform(8, 24, (n, 2))
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    scores = np.round(rng.uniform(0, 1, n), 1).astype(np.float32)  # with ties, and with zeros
    return boxes, scores, rng.integers(3, size=n)


def greedy(most):
    return jax.jit(jax.vmap(lambda *given: nms.greedy(*given, threshold=THRESHOLD, most=most)))


def test_greedy_equals_a_loop_over_sorted_boxes():
    batch = [drawn(seed) for seed in range(4)]
    found, scores = greedy(35)(*(jnp.asarray(np.stack(x)) for x in zip(*batch, strict=True)))
    for n, given in enumerate(batch):
        wanted = kept_by_hand(*given)
        assert 5 < len(wanted) < 35
        assert found[n][: len(wanted)].tolist() == wanted
        assert scores[n].tolist() == [*given[1][wanted], *[0.0] * (35 - len(wanted))]


def test_greedy_keeps_the_best_of_too_many():
    given = drawn(0)
    found, _ = nms.greedy(*map(jnp.asarray, given), threshold=THRESHOLD, most=3)
    assert found.tolist() == kept_by_hand(*given)[:3]


def test_greedy_drops_empty_boxes_once():
    """A box without area overlaps nothing, itself neither, and is still kept once."""
    boxes = jnp.asarray([[5.0, 5, 5, 5], [0, 0, 4, 4]])
    found, scores = nms.greedy(
        boxes, jnp.asarray([0.9, 0.5]), jnp.zeros(2, int), threshold=0.5, most=4
    )
    assert found.tolist()[:2] == [0, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0, 0])


def lowered_by_hand(masks, scores, classes, kernel, sigma):
    f = (lambda x: np.exp(-sigma * x**2)) if kernel == "gaussian" else (lambda x: 1 - x)
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    found, covered = np.zeros(len(scores)), {}
    for n, j in enumerate(order):
        better = [i for i in order[:n] if classes[i] == classes[j]]
        ious = [(masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() for i in better]
        covered[j] = max(ious, default=0.0)
        factors = [f(x) / f(covered[i]) for i, x in zip(better, ious, strict=True)]
        found[j] = scores[j] * min([1.0, *factors])
    return found


@pytest.mark.parametrize("kernel", nms.KERNELS)
def test_matrix_equals_a_loop(kernel):
    rng = np.random.default_rng(1)
    low, high = rng.integers(0, 6, (14, 2)), rng.integers(7, 12, (14, 2))
    masks = np.zeros((14, 12, 12), bool)
    for mask, (y, x), (bottom, right) in zip(masks, low, high, strict=True):
        mask[y:bottom, x:right] = True
    scores = np.round(rng.uniform(0, 1, 14), 1).astype(np.float32)
    scores[3] = 0
    classes = rng.integers(2, size=14)
    found = nms.matrix(*map(jnp.asarray, (masks, scores, classes)), kernel=kernel, sigma=0.7)
    wanted = lowered_by_hand(masks, scores, classes, kernel, 0.7)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (wanted < scores).any() and (wanted == scores).sum() > 2


@pytest.mark.parametrize("kernel", nms.KERNELS)
def test_matrix_of_equal_and_of_empty_masks_is_finite(kernel):
    masks = jnp.stack([jnp.ones((3, 3))] * 3 + [jnp.zeros((3, 3))] * 2)
    scores = jnp.asarray([0.9, 0.8, 0.7, 0.6, 0.5])
    found = np.asarray(nms.matrix(masks, scores, jnp.zeros(5, int), kernel=kernel))
    assert np.isfinite(found).all() and found[1] < 0.2 * 0.8 and found[2] < 0.2 * 0.7
    np.testing.assert_allclose(found[[0, 3, 4]], [0.9, 0.6, 0.5], rtol=1e-6)


def test_an_unknown_kernel_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'linear'"):
        nms.matrix(jnp.ones((1, 1, 1)), jnp.ones(1), jnp.zeros(1), kernel="linaer")
