import numpy as np
import pytest

from dynadapt.data import generated
from dynadapt.errors import DataError


def pixels(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


@pytest.mark.slow
def test_the_pictures_are_a_function_of_the_seed():
    one, again = (generated.source("train", size=40, seed=5) for _ in range(2))
    other = generated.source("train", size=40, seed=6)
    assert len(one) == 40
    assert one[0]["image"].shape == (32, 32, 3) and one[0]["image"].dtype == np.uint8
    np.testing.assert_array_equal(pixels(one), pixels(again))
    assert (pixels(one) != pixels(other)).any((1, 2, 3)).all()


@pytest.mark.slow
def test_more_pictures_begin_with_the_same_ones():
    few, many = (generated.source("train", size=n, seed=2) for n in (8, 24))
    np.testing.assert_array_equal(pixels(few), pixels(many)[:8])


@pytest.mark.slow
def test_pictures_differ_and_show_something():
    drawn = pixels(generated.source("train", size=64, seed=0)).astype(float)
    assert len(np.unique(drawn.reshape(64, -1), axis=0)) == 64
    # A plain picture has no spread; nearly all have strokes that stand out.
    assert (drawn.std((1, 2, 3)) > 4).mean() > 0.9


@pytest.mark.slow
def test_splits():
    source = generated.source("test[:16]", size=32)
    assert len(source) == 16 and source.info.counts["train"] == 32
    assert not np.array_equal(
        source[0]["image"], generated.source("train[:1]", size=32)[0]["image"]
    )
    with pytest.raises(DataError, match="train"):
        generated.source("trian", size=32)
