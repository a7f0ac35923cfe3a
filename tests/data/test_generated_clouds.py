import numpy as np
import pytest

from dynadapt.data import clouds, generated_clouds
from dynadapt.errors import DataError


def test_shapes_are_functions_of_seed_split_and_position():
    one, other = (generated_clouds.source("train", size=4, count=64, seed=n) for n in (0, 1))
    again = generated_clouds.source("train[2:]", size=4, count=64)
    np.testing.assert_array_equal(one[3]["points"], again[1]["points"])
    test = generated_clouds.source("test", size=4, count=64)
    drawn = [one[0], one[1], other[0], test[0]]
    flat = [tuple(x["points"].ravel()) for x in drawn]
    assert len(set(flat)) == len(flat) and len(test) == 512


def test_shapes_are_finite_and_of_the_unit_sphere():
    source = generated_clouds.source("train", size=60, count=80)
    assert source.info.fields["points"].size == (80, 3)
    for n in range(60):
        points = source[n]["points"]
        assert points.shape == (80, 3) and points.dtype == np.float32
        assert np.isfinite(points).all() and np.ptp(points, 0).max() > 0.2
        assert np.linalg.norm(points, axis=1).max() < 1.1


def test_no_shape_is_one_of_the_benchmark():
    """Neither draws nor plans are shared with the clouds that methods are compared on."""
    kinds = {id(make) for make, _ in clouds.FAMILIES.values()}
    used = {id(value) for value in vars(generated_clouds).values()}
    assert not kinds & used and "clouds" not in vars(generated_clouds)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(size=0), "data.size must be from 1 to 16,777,216, not 0"),
        (dict(count=8), "data.count must be from 16 to 65,536, not 8"),
        (dict(seed=-1), "data.seed must be from 0 to 4,294,967,295, not -1"),
    ],
)
def test_numbers_out_of_range(given, message):
    with pytest.raises(DataError, match=message):
        generated_clouds.source("train", **given)
