import math

import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.heads.uper import average, bins
from tests.dense_heads import SWIN, counts, swin, vit


@pytest.mark.parametrize(
    ("dims", "wanted", "auxiliary"),
    [
        (SWIN, 31_497_366, 923_798),
        ((128, 256, 512, 1024), 33_315_990, 1_218_710),
        ((192, 384, 768, 1536), 36_953_238, 1_808_534),
    ],
)
def test_parameters(dims, wanted, auxiliary):
    found = counts("uper", swin(dims, (64, 64)), 150)
    assert found.pop("auxiliary") == auxiliary
    assert sum(found.values()) == wanted


def test_levels_of_a_plain_backbone():
    found = counts("uper", vit(768, (14, 14)), 150)
    assert found["levels"] == 2_655_936
    assert found["auxiliary"] == 9 * 768 * 256 + 2 * 256 + 257 * 150


@pytest.mark.parametrize("size", [(5, 7), (2, 3), (12, 6), (1, 8)])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_average_is_taken_over_bins(size, parts):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    spans = [
        [slice(i * n // parts, math.ceil((i + 1) * n / parts)) for i in range(parts)] for n in size
    ]
    wanted = np.array([[x[:, r, c].mean((1, 2)) for c in spans[1]] for r in spans[0]])
    found = average(jnp.asarray(x), parts)
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)


def test_neighbouring_bins_share_an_entry():
    np.testing.assert_allclose(bins(5, 2), [[1 / 3] * 3 + [0] * 2, [0] * 2 + [1 / 3] * 3])
