import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import backbones, tree
from dynadapt.backbones import sam
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

SMALL = dict(dim=8, depth=4, heads=2, patch=4, image_size=32, window=3, whole=(1, 3), neck=6)


def make(seed=0, **changes):
    """A small encoder with random values everywhere."""
    return randomised(backbones.of("sam", **(SMALL | changes)), seed)


def images(h=32, w=32, b=1, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, h, w, 3)), jnp.float32)


@pytest.mark.slow
def test_the_four_fold_forms_agree():
    """Windowed and global blocks take turns: a scan compiles each kind once."""
    found = []
    for scan, remat in ((False, False), (True, False), (False, True), (True, True)):
        network = make(scan=scan, remat=remat)

        @jax.jit
        @jax.value_and_grad
        def loss(network, x):
            ctx = Context(train=True, key=jax.random.key(3), drop_path=0.3)
            return jnp.sin(network(x, ctx).maps[-1]).mean()

        score, gradient = loss(network, images(b=2))
        found.append((score, tree.leaves(gradient)))
    for score, gradient in found[1:]:
        np.testing.assert_allclose(score, found[0][0], rtol=1e-5)
        for path, value in gradient.items():
            np.testing.assert_allclose(value, found[0][1][path], rtol=2e-3, atol=2e-6)


@pytest.mark.slow
def test_levels_neck_and_attributes():
    network = make(levels=(0, -1))
    features = network(images(32, 24), Context())
    assert [m.shape for m in features.maps] == [(1, 8, 6, 8)] * 2 + [(1, 8, 6, 6)]
    assert (network.dims, network.strides) == ((8, 8, 6), (4, 4, 4))
    assert features.tokens.shape == (1, 0, 8)
    bare = make(neck=0)
    assert bare.dims == (8,) and bare(images(), Context()).maps[0].shape == (1, 8, 8, 8)


def test_attention_by_hand():
    """Scores of one global block: q k / sqrt(d), plus q with the row's and the column's vector."""
    attn = make().blocks[1].attn
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 6, 24)), jnp.float32)
    q, k, v = (np.asarray(t, np.float64)[0] for t in attn.split(x))
    rows, columns = (np.asarray(t[...], np.float64) for t in (attn.rows, attn.columns))
    rows, columns = sam.linear(15, 3) @ rows, sam.linear(15, 5) @ columns
    wanted = np.zeros((6, 2, 4))
    for head in range(2):
        score = np.zeros((6, 6))
        for i in range(6):
            for j in range(6):
                (y, u), (z, w) = divmod(i, 3), divmod(j, 3)
                one = q[i, head]
                score[i, j] = one @ k[j, head] / 2
                score[i, j] += one @ rows[y - z + 1] + one @ columns[u - w + 2]
        score = np.exp(score - score.max(1, keepdims=True))
        wanted[:, head] = score / score.sum(1, keepdims=True) @ v[:, head]
    found = attn.mix(x, (2, 3))
    np.testing.assert_allclose(found[0], wanted.reshape(6, 8), rtol=1e-4, atol=1e-5)


def test_values_of_another_size_are_resampled():
    network = make()
    old = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    assert network.fitted("position", old).shape == (1, 8, 8, 8)
    table = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    assert network.fitted("blocks/1/attn/rows", table).shape == (15, 4)
    windowed = np.zeros((5, 4), np.float32)
    assert network.fitted("blocks/0/attn/rows", windowed) is windowed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(image_size=33), "image size 33 is not divisible by patch 4"),
        (dict(whole=(4,)), "there is no block 4 among 4, as whole asks"),
        (dict(levels=(-5,)), "there is no block -5"),
        (dict(heads=3), "width 8 is not divisible by 3 heads"),
        (dict(act="gelo"), "unknown activation"),
    ],
)
def test_wrong_configs(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        make(**changes)


def test_images_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"30x32 are not divisible .* nearest is resize\(32, 32"):
        make()(images(30, 32), Context())
