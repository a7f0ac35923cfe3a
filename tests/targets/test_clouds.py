import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.data import labelled
from dynadapt.targets import clouds
from tests import infos

pytestmark = pytest.mark.usefixtures("fast_compiling")

POINTS = np.random.default_rng(0).normal(size=(3, 40, 3)).astype(np.float32)


def test_pools_are_those_of_the_published_code():
    assert [clouds.pool(n, 10_000) for n in (1024, 2048, 4096)] == [1200, 2400, 4800]
    assert clouds.pool(2048, 2048) == 2048


def test_sizes():
    assert clouds.size(infos.clouds(points=64)) == 64
    assert clouds.size(labelled("pictures", ("a", "b"))) == 0


def test_farthest_points_of_each_cloud():
    found = np.asarray(clouds.farthest(POINTS, 10))
    for cloud, numbers in zip(POINTS, found, strict=True):
        for k in range(1, 10):
            away = np.square(cloud[:, None] - cloud[numbers[:k]][None]).sum(-1).min(1)
            assert numbers[k] == away.argmax()
    # What is taken of fewer is the beginning of what is taken of more.
    np.testing.assert_array_equal(clouds.farthest(POINTS, 6), found[:, :6])
    np.testing.assert_array_equal(clouds.farthest(POINTS, 40), [np.arange(40)] * 3)


def test_training_takes_a_part_of_the_farthest_points():
    numbers = np.asarray(clouds.thinned(jax.random.key(0), POINTS, 20))
    pool = np.asarray(clouds.farthest(POINTS, 23))
    assert numbers.shape == (3, 20)
    for row, known in zip(numbers, pool, strict=True):
        assert len(set(row.tolist())) == 20 and set(row.tolist()) <= set(known.tolist())
    assert (numbers != np.asarray(clouds.thinned(jax.random.key(1), POINTS, 20))).any()
    places = [np.isin(known, row) for row, known in zip(numbers, pool, strict=True)]
    assert (places[0] != places[1]).any()  # draws of its own


def test_scales_and_shifts_are_of_each_axis_and_cloud():
    spread = np.zeros((400, 2, 3), np.float32)
    spread[:, 1] = 1.0  # from the origin to (1, 1, 1)
    found = np.asarray(clouds.moved(jax.random.key(0), spread))
    shift, scale = found[:, 0], found[:, 1] - found[:, 0]
    assert (np.abs(shift) <= 0.2).all() and np.abs(shift).max() > 0.19
    assert scale.min() >= 2 / 3 - 1e-5 and scale.max() <= 1.5 + 1e-5
    assert scale.min() < 0.68 and scale.max() > 1.48
    for values in (shift, scale):
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.2
    one = np.asarray(clouds.moved(jax.random.key(0), spread, 1))
    np.testing.assert_array_equal(one, one[:1].repeat(400, 0))


def test_turns_are_about_the_vertical_axis():
    found = np.asarray(clouds.turned(jax.random.key(2), POINTS))
    np.testing.assert_allclose(found[..., 1], POINTS[..., 1], atol=1e-6)
    lengths = [np.hypot(x[..., 0], x[..., 2]) for x in (found, POINTS)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    turn = [np.arctan2(x[..., 2], x[..., 0]) for x in (found, POINTS)]
    angle = (turn[0] - turn[1]) % (2 * np.pi)
    assert np.ptp(angle, axis=1).max() < 1e-3 and np.ptp(angle[:, 0]) > 0.1


def test_jitter_moves_points_by_its_deviation():
    found = np.asarray(clouds.shaken(jax.random.key(0), jnp.zeros((4, 500, 3)), 0.02))
    assert abs(found.std() - 0.02) < 0.001 and np.abs(found).max() <= 0.1
    same = clouds.varied(jax.random.key(5), POINTS, turn=False, jitter=0.0)
    other = clouds.varied(jax.random.key(5), POINTS, turn=False, jitter=0.02)
    assert 0.01 < np.asarray(other - same).std() < 0.03
