import jax.numpy as jnp
import numpy as np
from sklearn import metrics

from dynadapt.targets import ious

C = 5


def test_counts_equal_scikit_learn():
    rng = np.random.default_rng(0)
    found, parts = rng.integers(C, size=(2, 4, 60))
    parts[:, ::7] = -1
    counted = ious.counts(jnp.asarray(found), jnp.asarray(parts), C)
    for b in range(4):
        known = parts[b] >= 0
        confusion = metrics.confusion_matrix(parts[b][known], found[b][known], labels=range(C))
        both = np.diag(confusion)
        np.testing.assert_array_equal(counted["intersection"][b], both)
        np.testing.assert_array_equal(
            counted["union"][b], confusion.sum(0) + confusion.sum(1) - both
        )


def test_means_of_clouds_by_hand():
    owners = np.array([0, 0, 1, 1, 1])
    both = np.array([[3, 0, 0, 0, 0], [0, 0, 2, 0, 0], [0, 0, 0, 0, 0]])
    union = np.array([[6, 0, 9, 0, 0], [5, 0, 4, 2, 0], [4, 4, 0, 0, 0]])
    # Parts of the own category alone; one that is neither there nor answered is 1.
    wanted = [(0.5 + 1) / 2, (0.5 + 0 + 1) / 3, 0]
    found = ious.of_clouds(both, union, np.array([0, 1, 0]), owners)
    np.testing.assert_allclose(found, wanted)
    assert found.dtype == np.float64
