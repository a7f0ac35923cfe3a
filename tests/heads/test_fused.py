import jax
import numpy as np
import pytest

from dynadapt.context import Context
from dynadapt.heads import fused
from tests import dense_heads
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")


def test_parameters():
    like = dense_heads.vit(128, (16, 16))
    found = dense_heads.counts("fused", like, 6)
    assert found == {"project": 3 * (128 * 64 + 128), "conv": 9 * 64 * 64 + 128, "out": 6 * 65}
    assert sum(found.values()) == 62_342


@pytest.mark.parametrize("like", [dense_heads.vit(b=2), dense_heads.swin((4, 6), b=2)])
def test_equals_numpy(like):
    head = randomised(lambda rngs: fused.made_for(like, 3, channels=5, rngs=rngs))
    given, w = dense_heads.filled(like), dense_heads.weights(head)
    h, wide = like.maps[0].shape[1:3]
    x = 0.0
    for n, m in enumerate(given.maps):
        part = dense_heads.conv_norm(np.asarray(m, np.float64), w, f"project/{n}")
        x = x + dense_heads.resized(part, (h, wide))
    x = dense_heads.conv_norm(dense_heads.resized(x, (2 * h, 2 * wide)), w, "conv")
    (found,) = jax.jit(lambda x: head(x, Context()))(given)
    np.testing.assert_allclose(found, dense_heads.conv(x, w, "out/linear"), rtol=1e-4, atol=1e-4)
