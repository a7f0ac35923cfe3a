import jax
import numpy as np
import pytest
from flax import nnx

from dynadapt.context import Context
from dynadapt.heads import deconv
from tests import dense_heads
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")


@pytest.mark.parametrize(
    ("dims", "wanted"),
    [((128, 256, 512, 1024), 325_441), ((192, 384, 768, 1536), 594_561)],
)
def test_parameters(dims, wanted):
    assert sum(dense_heads.counts("deconv", dense_heads.swin(dims, (64, 64)), 1).values()) == wanted


def test_no_convolution_is_narrower_than_the_channels():
    found = dense_heads.counts("deconv", dense_heads.vit(128, (16, 16)), 1, channels=32)
    assert found["conv2"] == 9 * 32 * 32 + 32


def up(x, kernel):
    b, h, w, _ = x.shape
    y = np.zeros((b, 2 * h, 2 * w, kernel.shape[-1]))
    for i, j in np.ndindex(2, 2):
        y[:, i::2, j::2] = x @ kernel[:, i, j]
    return y


@pytest.mark.parametrize("like", [dense_heads.vit(b=2), dense_heads.swin((4, 6), (3, 4), b=2)])
def test_equals_numpy(like):
    head = randomised(lambda rngs: deconv.made_for(like, 2, channels=5, rngs=rngs))
    given, w = dense_heads.filled(like), dense_heads.weights(head)
    x = np.asarray(given.maps[-1], np.float64)
    for n in range(3):
        x = dense_heads.norm_relu(up(x, w[f"ups/{n}/kernel"]), w, f"norms/{n}")
    x = dense_heads.conv_norm(x, w, "conv1")
    if like.maps[0].shape != like.maps[-1].shape:
        for _ in range(2):
            x = dense_heads.resized(x, (2 * x.shape[1], 2 * x.shape[2]))
    x = np.maximum(dense_heads.conv(x, w, "conv2"), 0.0)
    (found,) = jax.jit(lambda x: head(x, Context()))(given)
    np.testing.assert_allclose(found, dense_heads.conv(x, w, "out"), rtol=1e-4, atol=1e-4)


def test_weights_start_small():
    head = deconv.made_for(dense_heads.vit(64), 1, rngs=nnx.Rngs(0))
    kernels = {k: v for k, v in dense_heads.weights(head).items() if k.endswith("kernel")}
    assert len(kernels) == 6
    for path, kernel in kernels.items():
        assert 0.5e-3 < kernel.std() < 1.5e-3, path
