import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, tree
from dynadapt.context import Context
from dynadapt.heads.atss import ATSS, Detector
from dynadapt.layers import SameKey
from tests import dense_heads

pytestmark = pytest.mark.usefixtures("fast_compiling")


def plain(dim, size=(8, 8), stride=16, b=1):
    like = dense_heads.vit(dim, size, levels=1, b=b)
    return backbones.Features(like.maps, like.tokens, strides=(stride,))


def abstract(make):
    return nnx.eval_shape(make)


def size(network):
    return tree.size(nnx.state(network))


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_parameters(classes):
    head = abstract(lambda: ATSS(256, classes, (8, 16, 32, 64, 128), rngs=SameKey()))
    assert size(head) == 4_734_218 + 2_305 * classes
    assert classes < 80 or size(head) == 4_918_618


@pytest.mark.parametrize(
    ("dim", "wanted"), [(768, 9_150_170), (256, 7_642_586), (1280, 11_706_330)]
)
def test_parameters_with_the_neck_of_vfm_adapter(dim, wanted):
    """DINOv2-B, SAM-B behind its own neck, ViT-H; 9.15, 7.64 and 11.7 million are published."""
    assert size(abstract(lambda: Detector(plain(dim), 80, rngs=SameKey()))) == wanted


def test_parameters_on_swin():
    like = dense_heads.swin((128, 256, 512, 1024), (16, 16))
    like = backbones.Features(like.maps, like.tokens, strides=(4, 8, 16, 32))
    assert size(abstract(lambda: Detector(like, 80, rngs=SameKey()))) == 8_328_538


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes(dtype):
    like = plain(8, (5, 6))
    made = abstract(
        lambda: Detector(like, 3, strides=(16, 32, 64), channels=8, depth=1, rngs=SameKey())
    )
    given = jax.tree.map(lambda x: x.update(dtype=dtype), like)
    found = jax.eval_shape(lambda made, x: made(x, Context()), made, given)
    sizes = [(5, 6), (2, 3), (1, 1)]
    for maps, width in ((found.classes, 3), (found.boxes, 4), (found.centerness, 1)):
        assert [x.shape for x in maps] == [(1, *s, width) for s in sizes]
        assert {x.dtype for x in maps} == {jnp.dtype(jnp.float32)}
    assert found.strides == (16, 32, 64)


@pytest.fixture(scope="module")
def detector():
    like = plain(8, (4, 6), b=2)
    settings = dict(strides=(16, 32), channels=8, depth=2)
    return Detector(like, 3, **settings, rngs=nnx.Rngs(0)), dense_heads.filled(like)


def test_slopes_reach_everything(detector):
    made, given = detector

    @jax.jit
    @jax.grad
    def slopes(made):
        found = made(given, Context())
        return sum(jnp.square(x - 0.1).sum() for x in jax.tree.leaves(found))

    for path, slope in tree.leaves(nnx.state(slopes(made))).items():
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0, path


def test_at_first_classes_are_rare_and_boxes_are_anchors(detector):
    made, given = detector
    found = jax.jit(lambda made: made(given, Context()))(made)
    chances = np.concatenate([jax.nn.sigmoid(x).ravel() for x in found.classes])
    assert 0.005 < chances.min() and chances.max() < 0.02
    assert max(float(jnp.abs(x).max()) for x in found.boxes) < 1


def test_images_do_not_meet(detector):
    """Normalisation is of each image by itself."""
    made, given = detector
    run = jax.jit(lambda made, given: made(given, Context()))
    other = jax.tree.map(lambda x: x.at[1].set(3.0), given)
    for x, y in zip(*(jax.tree.leaves(run(made, g)) for g in (given, other)), strict=True):
        np.testing.assert_allclose(x[0], y[0], atol=1e-6)
        assert np.abs(x[1] - y[1]).max() > 1e-5
