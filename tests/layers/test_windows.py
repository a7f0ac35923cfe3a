import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.layers import windows


@pytest.mark.parametrize(("h", "w", "side"), [(4, 4, 2), (6, 9, 3), (7, 7, 7)])
def test_cut_and_join(h, w, side):
    x = np.random.default_rng(0).normal(size=(2, h, w, 5)).astype(np.float32)
    cut = np.asarray(windows.cut(jnp.asarray(x), side))
    number = 0
    for image in x:
        for i in range(0, h, side):
            for j in range(0, w, side):
                one = image[i : i + side, j : j + side].reshape(side * side, 5)
                np.testing.assert_array_equal(cut[number], one)
                number += 1
    np.testing.assert_array_equal(windows.join(cut, side, (h, w)), x)


def test_pad():
    x = jnp.ones((1, 5, 6, 2))
    padded = windows.pad(x, 4)
    assert padded.shape == (1, 8, 8, 2) and float(padded.sum()) == 60.0
    np.testing.assert_array_equal(padded[:, :5, :6], x)
    assert windows.pad(padded, 4) is padded


@pytest.mark.parametrize(("grid", "side", "shift"), [((8, 8), 4, 2), ((7, 14), 7, 3)])
def test_shift_mask(grid, side, shift):
    """Tokens meet unless just one of them came around the map's border, by rows or columns."""
    h, w = grid
    rows, columns = np.mgrid[:h, :w]
    shifted = [np.roll(v, (-shift, -shift), (0, 1)) for v in (rows, columns)]
    mask = windows.shift_mask(grid, side, shift)
    assert mask.shape == (h * w // side**2, side**2, side**2)
    y, x = (np.asarray(windows.cut(jnp.asarray(v)[None, ..., None], side))[..., 0] for v in shifted)
    around = [(v < shift)[:, :, None] == (v < shift)[:, None] for v in (y, x)]
    np.testing.assert_array_equal(mask, around[0] & around[1])
