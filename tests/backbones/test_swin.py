import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import backbones, tree
from dynadapt.backbones import swin
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

SMALL = dict(dim=8, depths=(2, 4), heads=(2, 4), window=4, image_size=64)


def make(seed=0, **changes):
    """A small Swin with random values everywhere."""
    return randomised(backbones.of("swin", **(SMALL | changes)), seed)


def images(h=64, w=64, b=1, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, h, w, 3)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("depths", [pytest.param((2, 4), marks=pytest.mark.exhaustive), (2, 3)])
def test_the_four_fold_forms_agree(depths):
    """Also where the last block has no partner and a scan finds no period."""
    found = []
    for scan, remat in ((False, False), (True, False), (False, True), (True, True)):
        network = make(depths=depths, scan=scan, remat=remat)

        @jax.jit
        @jax.value_and_grad
        def loss(network, x):
            ctx = Context(train=True, key=jax.random.key(3), drop_path=0.3)
            return sum(jnp.sin(m).mean() for m in network(x, ctx).maps)

        score, gradient = loss(network, images(b=2))
        found.append((score, tree.leaves(gradient)))
    for score, gradient in found[1:]:
        np.testing.assert_allclose(score, found[0][0], rtol=1e-5)
        for path, value in gradient.items():
            np.testing.assert_allclose(value, found[0][1][path], rtol=2e-3, atol=2e-6)


@pytest.mark.slow
def test_levels_and_attributes():
    network = make()
    features = network(images(50, 71), Context())
    assert [m.shape for m in features.maps] == [(1, 13, 18, 8), (1, 7, 9, 16)]
    assert features.tokens.shape == (1, 0, 16)
    assert (network.dims, network.strides, network.prefix) == ((8, 16), (4, 8), 0)
    both = make(level_norms=True)(images(), Context()).maps
    for level in both:
        assert level.shape[-1] in (8, 16)


@pytest.mark.parametrize(
    ("small", "side", "wanted"),
    [
        # Judged at the size that the checkpoint is made for: the last stage is 8x8 there.
        ("built", 4, (4, 2)),
        ("run", 4, (4, 0)),
        ("run", 3, (3, 0)),
        ("never", 4, (4, 2)),
        ("never", 3, (4, 2)),
    ],
)
def test_small_stages(small, side, wanted):
    attn = make(small=small).stages[1].blocks[1].attn
    assert attn.windows((side, side + 1)) == wanted


def test_a_stage_built_for_one_window_shrinks_it():
    attn = make(image_size=24, window=4).stages[1].blocks[1].attn
    assert (attn.window, attn.shift) == (3, 0) and attn.bias_table.shape == (25, 4)
    attn = make(image_size=24, window=4, small="never").stages[1].blocks[1].attn
    assert (attn.window, attn.shift) == (4, 2) and attn.bias_table.shape == (49, 4)


def test_bias_by_offset():
    attn = make().stages[0].blocks[0].attn
    bias, table = np.asarray(attn.bias(3)), np.asarray(attn.bias_table[...])
    at = lambda i: divmod(i, 3)  # noqa: E731
    for q, k in ((0, 0), (0, 8), (5, 1), (7, 3)):
        (y, x), (v, u) = at(q), at(k)
        np.testing.assert_array_equal(bias[:, q, k], table[(y - v + 3) * 7 + (x - u + 3)])


def test_splitting_and_merging_windows_is_no_change():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 11, 8)), jnp.float32)
    for pad in swin.PAD:
        attn = make(pad=pad).stages[0].blocks[1].attn
        cut, grid = attn.split_windows(x, 4, 2)
        assert grid == (12, 12) and cut.shape == (18, 16, 8)
        np.testing.assert_array_equal(attn.merge_windows(cut, 4, 2, grid, (9, 11)), x)


def test_a_bias_table_of_another_window_is_resampled():
    network = make()
    old = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
    fitted = network.fitted("stages/1/blocks/0/attn/bias_table", old)
    assert fitted.shape == (49, 4)
    same = np.zeros((49, 4), np.float32)
    assert network.fitted("stages/1/blocks/0/attn/bias_table", same) is same
    assert network.fitted("norm/scale", old) is old


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(heads=(2,)), "2 stages need as many entries in heads"),
        (dict(heads=(3, 4)), "width 8 is not divisible by 3 heads"),
        (dict(pad="both"), "unknown pad 'both'; choose one of pad_then_shift, shift_then_pad"),
        (dict(small="no"), "unknown small 'no'"),
        (dict(act="gelo"), "unknown activation 'gelo'"),
    ],
)
def test_wrong_configs(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        make(**changes)
