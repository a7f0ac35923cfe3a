import jax
import numpy as np

from dynadapt.layers.interpolate import shares


def test_shares_by_hand():
    rng = np.random.default_rng(0)
    points, centers = (rng.normal(size=(n, 3)).astype(np.float32) for n in (20, 6))
    away = np.square(points[:, None] - centers[None]).sum(-1)
    wanted = np.zeros_like(away)
    for row, distances in zip(wanted, away, strict=True):
        near = distances.argsort()[:3]
        row[near] = (1 / distances[near]) / (1 / distances[near]).sum()
    np.testing.assert_allclose(shares(points, centers), wanted, rtol=1e-4, atol=1e-6)


def test_a_point_at_a_centre_has_that_centre_alone():
    centers = np.eye(4, 3, dtype=np.float32)
    found = np.asarray(jax.jit(shares)(centers, centers))
    np.testing.assert_allclose(found, np.eye(4), atol=1e-6)


def test_fewer_than_three_centres():
    points = np.float32([[0, 0, 0], [1, 0, 0]])
    found = np.asarray(shares(points, np.float32([[0, 0, 0], [2, 0, 0]])))
    np.testing.assert_allclose(found, [[1, 0], [0.5, 0.5]], atol=1e-6)
