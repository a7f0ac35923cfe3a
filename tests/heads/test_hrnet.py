import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.context import Context
from dynadapt.heads import hrnet
from tests import dense_heads
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

MERGED = (192, 384, 768, 768)  # widths of Swin-T's maps behind each merging


@pytest.mark.parametrize(
    ("outputs", "wanted"), [(21, 317_541), (7, 302_407), (1, 295_921), (3, 298_083)]
)
def test_parameters(outputs, wanted):
    found = dense_heads.counts("hrnet", dense_heads.swin(MERGED, (56, 56)), outputs)
    assert found == {"project": 183_168, "mix": 294_840, "out": outputs * 1_081}
    assert found["mix"] + found["out"] == wanted


def test_equals_numpy():
    like = dense_heads.swin((4, 6, 6), (5, 4), b=2)
    head = randomised(lambda rngs: hrnet.made_for(like, 2, channels=3, rngs=rngs))
    given, w = dense_heads.filled(like), dense_heads.weights(head)
    maps = [np.asarray(m, np.float64) for m in given.maps]
    levels = [dense_heads.conv(m, w, f"project/{i}") for i, m in enumerate(maps)]
    assert [m.shape[-1] for m in levels] == [3, 6, 12]
    joined = np.concatenate([dense_heads.resized(m, (5, 4)) for m in levels], -1)
    wanted = dense_heads.conv(dense_heads.conv_norm(joined, w, "mix"), w, "out/linear")
    (found,) = jax.jit(lambda x: head(x, Context()))(given)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert found.dtype == jnp.float32
