import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.attach import Shared, attach
from dynadapt.context import Context, drop_path, dropout, fold

pytestmark = pytest.mark.usefixtures("fast_compiling")

DIM, DEPTH = 6, 3


class Block(nnx.Module):
    """Uses all that a context has: dropout, drop-path, what is shared, and the tape."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x, ctx):
        y = dropout(jnp.tanh(self.linear(x)), 0.2, ctx, "test")
        if nnx.Linear in ctx.shared:
            y = y + ctx.shared[nnx.Linear](x)
        ctx.record("loss/size", 1e-2 * jnp.square(y).mean())
        ctx.record("loss/size", 1.0)
        ctx.record("mean", y.mean((0, 1)))
        ctx.record("mean", y.max())
        return x + drop_path(y, ctx, "branch")


class Network(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(DEPTH)])

    def __call__(self, x, ctx, **how):
        return fold(self.blocks, x, ctx, **how)


FORMS = {
    "loop": {},
    "remat": dict(remat="full"),
    "cheap": dict(remat="cheap"),
    "scan": dict(scan=True),
    "scan+remat": dict(scan=True, remat="full"),
}


@functools.cache
def outcome(form, parts=1):
    """Value, tape, gradients, and the stored paths, of one form of the network."""
    network = Network(nnx.Rngs(3))
    attach(network, "", lambda host: Shared(host, nnx.Linear(DIM, DIM, rngs=nnx.Rngs(8))))
    graph, state = nnx.split(network)
    x, weight = np.random.default_rng(5).normal(size=(2, 16, 3, DIM)).astype(np.float32)

    def run(state, x, key):
        network = nnx.merge(graph, state)
        shared = {nnx.Linear: network.adapter.module}
        ctx = Context(train=True, key=key, drop_path=0.4, shared=shared)
        y, cuts = x, np.array_split(np.arange(DEPTH), parts)
        for cut in cuts:
            blocks = network.blocks[cut[0] : cut[-1] + 1]
            y = fold(blocks, y, ctx, first=int(cut[0]), depth=DEPTH, **FORMS[form])
        total = (y * weight).sum() + ctx.tape["loss/size"] + ctx.tape["mean.2"].sum()
        return total, (y, ctx.tape)

    step = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
    return step(state, x, jax.random.key(7)), list(tree.leaves(state))


@pytest.mark.parametrize("form", ["remat", "cheap", "scan", "scan+remat"])
def test_all_forms_are_equal_with_random_choices_tapes_and_shared(form):
    (value, gradients), paths = outcome(form)
    (wanted, wanted_gradients), wanted_paths = outcome("loop")
    assert paths == wanted_paths
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, value, wanted)
    jax.tree.map(close, gradients, wanted_gradients)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_what_is_shared_is_one_copy():
    paths = outcome("scan")[1]
    assert [p for p in paths if "adapter" in p] == ["adapter/module/bias", "adapter/module/kernel"]


def test_tapes_are_stacked_and_losses_summed():
    ((_, (_, tape)), _), _ = outcome("scan")
    assert {k: v.shape for k, v in tape.items()} == {
        "loss/size": (),
        "mean": (DEPTH, DIM),
        "mean.2": (DEPTH,),
    }
    assert DEPTH < tape["loss/size"] < DEPTH + 1  # a constant 1 from each block, and a little


def test_a_part_of_a_network_gets_the_keys_and_rates_of_its_place():
    ((_, (whole, _)), _), _ = outcome("loop")
    ((_, (cut, _)), _), _ = outcome("scan", parts=2)
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)


def test_blocks_draw_apart():
    """With equal keys in all blocks, equal blocks would drop the same examples."""
    seen = []

    def block(x, ctx):
        seen.append(jax.random.key_data(ctx.key).tolist())
        return x

    fold([block] * 5, jnp.ones((1, 1, 1)), Context(train=True, key=jax.random.key(0)))
    assert len({tuple(k) for k in seen}) == 5


@pytest.mark.parametrize("scan", [False, True])
def test_drop_rates_grow_linearly(scan):
    class Rate(nnx.Module):
        def __call__(self, x, ctx):
            ctx.record("rate", ctx.drop_path)
            return x

    def rates(blocks, **place):
        ctx = Context(train=True, key=jax.random.key(0), drop_path=0.3)
        fold([Rate() for _ in range(blocks)], jnp.ones(1), ctx, scan=scan, **place)
        return ctx.tape["rate"]

    np.testing.assert_allclose(rates(4), [0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(rates(2, first=2, depth=4), [0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(rates(1), [0.0])


def test_unused_records_cost_nothing():
    network = Network(nnx.Rngs(3))
    x = jnp.ones((2, 3, DIM))

    def run(x, keep):
        ctx = Context()
        y = fold(network.blocks, x, ctx)
        return (y, ctx.tape) if keep else y

    flops = [
        jax.jit(run, static_argnums=1).lower(x, keep).compile().cost_analysis()["flops"]
        for keep in (False, True)
    ]
    assert flops[0] < flops[1]


def test_records_get_numbers_and_losses_add_up():
    ctx = Context()
    for value in (1.0, 2.0, 4.0):
        ctx.record("kernel", value)
        ctx.record("loss/balance", value)
    assert ctx.tape == {"kernel": 1.0, "kernel.2": 2.0, "kernel.3": 4.0, "loss/balance": 7.0}


def test_blocks_may_record_different_names_in_a_loop():
    def block(number):
        def run(x, ctx):
            ctx.record("all", x.sum())
            if number:
                ctx.record("some", x.sum())
            return x + 1

        return run

    ctx = Context()
    fold([block(0), block(1), block(1)], jnp.zeros(()), ctx)
    np.testing.assert_array_equal(ctx.tape["all"], [0, 1, 2])
    np.testing.assert_array_equal(ctx.tape["some"], [1, 2])


def test_replace_keeps_the_tape():
    ctx = Context(grid=(2, 3))
    other = ctx.replace(prefix=1)
    other.record("a", 1)
    assert ctx.tape == {"a": 1} and other.grid == (2, 3) and other.prefix == 1
    assert ctx.replace(tape={}).tape == {}


def test_random_depends_on_name_and_key():
    def draw(seed, name):
        return float(jax.random.uniform(Context(key=jax.random.key(seed)).random(name)))

    assert draw(0, "a") == draw(0, "a")
    assert len({draw(0, "a"), draw(0, "b"), draw(1, "a"), draw(1, "b")}) == 4


@pytest.mark.parametrize(
    "ctx",
    [
        Context(),
        Context(train=True, drop_path=0.5),
        Context(train=False, key=jax.random.key(0), drop_path=0.5),
    ],
)
def test_nothing_is_dropped_outside_training_or_without_a_key(ctx):
    x = jnp.ones((8, 2, 3))
    assert drop_path(x, ctx, "a") is x and dropout(x, 0.5, ctx, "a") is x
    assert drop_path(x, Context(train=True, key=jax.random.key(0)), "a") is x
    assert dropout(x, 0.0, Context(train=True, key=jax.random.key(0)), "a") is x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_drop_path_drops_whole_examples_and_keeps_the_mean(dtype):
    ctx = Context(train=True, key=jax.random.key(1), drop_path=0.25)
    y = drop_path(jnp.ones((4000, 2, 3), dtype), ctx, "a")
    assert y.dtype == dtype
    y = np.asarray(y, np.float32)
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-2)
    assert abs(y.mean() - 1) < 0.03


def test_dropout_drops_entries_and_keeps_the_mean():
    ctx = Context(train=True, key=jax.random.key(2))
    y = np.asarray(dropout(jnp.ones((100, 7, 11)), 0.25, ctx, "a"))
    assert abs((y == 0).mean() - 0.25) < 0.02 and abs(y.mean() - 1) < 0.03
    assert not (y == y[:, :1]).all()


def test_dropout_of_channels_drops_each_of_an_example_everywhere_or_nowhere():
    ctx = Context(train=True, key=jax.random.key(2))
    y = np.asarray(dropout(jnp.ones((100, 3, 2, 40)), 0.25, ctx, "a", channels=True))
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(y.mean() - 1) < 0.03
    assert not (y == y[:1]).all() and not (y == y[..., :1]).all()


def test_dropout_stops_a_gradient_that_is_not_finite():
    """What was dropped must not come back as 0 * inf."""
    ctx = Context(train=True, key=jax.random.key(2))
    y = dropout(jnp.full((50,), jnp.inf), 0.5, ctx, "a")
    assert not np.isnan(y).any() and (np.asarray(y) == 0).any()
