import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.targets import binary


@pytest.mark.parametrize("reach", [1.0, 1.5, 3.2])
def test_dilated_is_the_largest_value_in_reach(reach):
    values = np.random.default_rng(0).random((2, 9, 7)).astype(np.float32)
    found = np.asarray(binary.dilated(jnp.asarray(values), reach))
    at = np.stack(np.indices((9, 7)), -1).reshape(-1, 2)
    inside = np.linalg.norm(at[:, None] - at[None], axis=-1) <= reach
    for n in range(2):
        wanted = np.where(inside, values[n].ravel()[None], 0).max(1)
        assert np.array_equal(found[n].ravel(), wanted)


def test_lines_meet_where_they_are_near():
    """By hand: a line a pixel off counts in reach 1, and one two pixels off does not."""
    labels = np.zeros((1, 6, 8), np.int32)
    labels[0, :, 3] = 1
    chances = np.zeros((1, 6, 8), np.float32)
    chances[0, :, 4], chances[0, :, 1] = 0.65, 0.25
    valid = np.ones(labels.shape, bool)
    valid[0, 5] = False
    rows = binary.near(*map(jnp.asarray, (chances, labels, valid)), 10, 1.0)
    given, right, found = (np.asarray(rows[k])[0] for k in ("given", "right", "found"))
    assert rows["there"].tolist() == [5]
    assert given.tolist() == [10, 10, 5, 5, 5, 5, 0, 0, 0]  # thresholds 0.1 to 0.9
    assert right.tolist() == [5, 5, 5, 5, 5, 5, 0, 0, 0]
    assert found.tolist() == [5, 5, 5, 5, 5, 5, 0, 0, 0]


def test_counts_leave_out_what_is_not_known():
    rng = np.random.default_rng(1)
    chances = rng.random((3, 5, 4)).astype(np.float32)
    labels = rng.integers(-1, 2, (3, 5, 4))
    valid = np.asarray(binary.known(jnp.asarray(labels), -1))
    assert np.array_equal(valid, labels >= 0)
    rows = binary.counts(*map(jnp.asarray, (chances, labels, valid)), (0.2, 0.6))
    for k, limit in enumerate((0.2, 0.6)):
        above = (chances > limit) & (labels >= 0)
        assert np.asarray(rows["given"])[:, k].tolist() == above.sum((1, 2)).tolist()
        both = (above & (labels == 1)).sum((1, 2))
        assert np.asarray(rows["both"])[:, k].tolist() == both.tolist()
    assert rows["there"].tolist() == (labels == 1).sum((1, 2)).tolist()
    assert rows["pixels"].tolist() == (labels >= 0).sum((1, 2)).tolist()
