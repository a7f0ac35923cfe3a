import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.context import Context
from dynadapt.heads import aspp
from tests import dense_heads
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

MERGED = (192, 384, 768, 768)  # widths of Swin-T's maps behind each merging


def test_parameters():
    found = dense_heads.counts("aspp", dense_heads.swin(MERGED, (56, 56)), 21)
    k, joined = 256, 270
    assert found == {
        "narrow": 183_168,
        "near": joined * k + 2 * k,
        "far": 3 * (9 * joined * k + 2 * k),
        "pool": joined * k + 2 * k,
        "mix": 5 * k * k + 2 * k,
        "conv": 9 * k * k + 2 * k,
        "out": 21 * (k + 1),
    }
    assert sum(found.values()) == 183_168 + 29 * joined * k + 14 * k * (k + 1) + 21 * (k + 1)
    assert sum(found.values()) == 3_114_133


def test_equals_numpy():
    like = dense_heads.swin((4, 6), (40, 14), b=2)  # taps of every rate cross it
    head = randomised(lambda rngs: aspp.made_for(like, 2, channels=3, rngs=rngs))
    given, w = dense_heads.filled(like), dense_heads.weights(head)
    maps = [np.asarray(m, np.float64) for m in given.maps]
    levels = [dense_heads.conv(m, w, f"narrow/{i}") for i, m in enumerate(maps)]
    assert [m.shape[-1] for m in levels] == [18, 36]
    x = np.concatenate([dense_heads.resized(m, (40, 14)) for m in levels], -1)
    parts = [dense_heads.conv_norm(x, w, "near")]
    parts += [dense_heads.conv_norm(x, w, f"far/{i}", r) for i, r in enumerate((12, 24, 36))]
    whole = dense_heads.conv_norm(x.mean((1, 2), keepdims=True), w, "pool")
    parts.append(np.broadcast_to(whole, parts[0].shape))
    y = dense_heads.conv_norm(np.concatenate(parts, -1), w, "mix")
    wanted = dense_heads.conv(dense_heads.conv_norm(y, w, "conv"), w, "out/linear")
    (found,) = jax.jit(lambda x: head(x, Context()))(given)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert found.dtype == jnp.float32
