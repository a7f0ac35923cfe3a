"""What holds for every dense head, and how one is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import heads, tree
from dynadapt.context import Context
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import SameKey
from tests import dense_heads
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

NAMES = heads.dense_names()
# Rows and columns of the answer, on maps of 3x4 and on Swin's from 9x7 to 2x1.
SIZES = {
    "aspp": ((3, 4), (9, 7)),
    "deconv": ((24, 32), (64, 32)),
    "fused": ((6, 8), (18, 14)),
    "glpdepth": ((48, 64), (36, 28)),
    "hrnet": ((3, 4), (9, 7)),
    "segformer": ((12, 16), (9, 7)),
    "uper": ((12, 16), (9, 7)),
}
AUXILIARY = {"uper": ((3, 4), (3, 2))}


def made(name, like, outputs=3, channels=8, **settings):
    return randomised(
        lambda rngs: heads.dense_head(name, like, outputs, channels=channels, rngs=rngs, **settings)
    )


def outputs(head, like, train):
    """Shapes of what a head of shapes answers."""
    graph, state = nnx.split(head)

    def run(state, features):
        return nnx.merge(graph, state)(features, Context(train=train))

    return jax.eval_shape(run, state, like)


def test_names():
    assert NAMES == ["aspp", "deconv", "fused", "glpdepth", "hrnet", "segformer", "uper"]
    for name in NAMES:
        assert {"channels"} <= heads.dense_settings(name).keys() <= {"channels", "dropout"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, dtype):
    for kind, like in enumerate((dense_heads.vit(), dense_heads.swin())):
        head = nnx.eval_shape(
            lambda n=like: heads.dense_head(name, n, 3, channels=8, rngs=SameKey())
        )
        given = jax.tree.map(lambda x: x.update(dtype=dtype), like)
        for train in (False, True):
            found = outputs(head, given, train)
            sizes = [SIZES[name][kind]] + [s[kind] for s in [AUXILIARY.get(name)] if s and train]
            assert [x.shape for x in found] == [(1, *s, 3) for s in sizes]
            assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_training(name):
    """Slopes reach everything, the batch's statistics count and move the stored ones."""
    like = dense_heads.swin((4, 8, 12, 16), b=2)
    settings = {"dropout": 0.5} if "dropout" in heads.dense_settings(name) else {}
    graph, stats, params = nnx.split(made(name, like, **settings), nnx.BatchStat, ...)
    given = dense_heads.filled(like)

    @jax.jit
    def run(params, given, key):
        def loss(params):
            head = nnx.merge(graph, stats, params, copy=True)
            outputs = head(given, Context(train=True, key=key))
            return sum(jnp.square(x).mean() for x in outputs), (outputs[0], nnx.state(head))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (one, after)), slopes = run(params, given, jax.random.key(1))
    for path, slope in tree.leaves(slopes).items():
        # A bias that a norm follows has none.
        if not path.endswith("conv/bias"):
            assert np.isfinite(slope).all() and np.abs(slope).max() > 0, path
    before, after = (tree.leaves(x) for x in (stats, after))
    for path, value in before.items():
        assert np.abs(after[path] - value).max() > 1e-4, path
    other = run(params, given, jax.random.key(2))[0][1][0]
    assert (np.abs(one - other).max() > 1e-3) == bool(settings)
    # Elsewhere neither the key nor the batch counts.
    head = nnx.merge(graph, stats, params)
    evaluate = jax.jit(lambda given, key: (head(given, Context(key=key))[0], nnx.state(head)))
    whole, left = evaluate(given, jax.random.key(1))
    assert np.abs(whole - one).max() > 1e-3
    turned = jax.tree.map(lambda x: x.at[1].set(7.0), given)
    np.testing.assert_allclose(evaluate(turned, jax.random.key(2))[0][0], whole[0], atol=1e-5)
    for path, value in before.items():
        np.testing.assert_array_equal(tree.leaves(left)[path], value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n == "fused" else pytest.param(n, marks=pytest.mark.exhaustive) for n in NAMES]
)
def test_half_precision_is_close(name):
    like = dense_heads.vit(b=2)
    head, given = made(name, like), dense_heads.filled(like)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), given)
    for train in (False, True):
        run = jax.jit(
            lambda x, t=train: nnx.merge(*nnx.split(head), copy=True)(x, Context(train=t))
        )
        for own, wanted in zip(run(half), run(given), strict=True):
            gap = np.linalg.norm(own - wanted) / np.linalg.norm(wanted - wanted.mean())
            assert gap < 5e-2


def test_what_does_not_exist_names_the_nearest():
    like = dense_heads.vit()
    with pytest.raises(UnknownName, match="unknown head 'segfromer'; did you mean 'segformer'"):
        heads.dense_head("segfromer", like, 3, rngs=nnx.Rngs(0))
    for name in ("linear", "dense", "pyramid"):
        with pytest.raises(UnknownName, match=f"unknown head '{name}'"):
            heads.dense_module(name)
    with pytest.raises(UnknownName, match="setting of head 'uper' 'chanels'; .* 'channels'"):
        heads.dense_head("uper", like, 3, rngs=nnx.Rngs(0), chanels=4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            dict(channels=0),
            r"channels of the head 'uper' must be a whole number, in \[1, 16384\], not 0",
        ),
        (dict(channels=8.5), r"must be a whole number, in \[1, 16384\], not 8.5"),
        (dict(dropout=1.0), r"dropout of the head 'uper' must be in \[0, 1\), not 1.0"),
        (dict(dropout="x"), r"must be in \[0, 1\), not 'x'"),
    ],
)
def test_values_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        heads.dense_head("uper", dense_heads.vit(), 3, rngs=nnx.Rngs(0), **given)


@pytest.mark.parametrize("name", ["glpdepth", "segformer", "uper"])
def test_maps_too_small_for_levels(name):
    with pytest.raises(ConfigError, match="a map of 1x4 is too small to halve"):
        heads.dense_head(name, dense_heads.vit(size=(1, 4)), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="width 6 is not divisible by 4"):
        heads.dense_head(name, dense_heads.vit(6), 3, rngs=nnx.Rngs(0))
