"""What makes weights of inputs: a step of Adam moves them as far as weights that are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dynadapt import mixture
from dynadapt.adapters import adapter_x, dapt, iconformer, vfm_adapter
from dynadapt.layers import standard
from dynadapt.layers.places import Places

pytestmark = pytest.mark.usefixtures("fast_compiling")

RATE, IMAGES = 1e-3, 8
RANKS = (8, 32, 128)
WIDTHS = (96, 768)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def move(module, made, count=1):
    """How far the last of some steps moves what `made(module)` makes: its RMS, in rates."""
    graph, state = nnx.split(module, nnx.Param)
    tx = optax.adam(RATE)
    opt = tx.init(state)

    @jax.jit
    def step(state, opt):
        def loss(state):
            out = made(nnx.merge(graph, state))
            return (out * draw(1, *out.shape[1:], seed=9)).mean()

        updates, opt = tx.update(jax.grad(loss)(state), opt)
        return optax.apply_updates(state, updates), opt

    answers = jax.jit(lambda state: made(nnx.merge(graph, state)))
    for _ in range(count):
        before = state
        state, opt = step(state, opt)
    return float(jnp.sqrt(jnp.square(answers(state) - answers(before)).mean())) / RATE


def icon(rank, scaled):
    """The kernels of maps like those behind a ReLU, of large values as streams have."""
    how = dict(scaled=scaled, filter_norm=False, identity_bias=True)
    maps = 10 * jnp.maximum(draw(IMAGES, 4, 4, rank), 0)
    return iconformer.ICoN(rank, 3, **how, rngs=nnx.Rngs(0)), lambda net: net(maps)


def hypernetwork(rank, scaled, z=48, d=96):
    """The kernels of one side of a VFM-Adapter, times the root of a convolution's fan-in."""
    how = dict(kernels="input", scale_logits=True, scaled=scaled, bias=True)
    common = vfm_adapter.Common((d,), rank, z, 3, 8, **how, rngs=nnx.Rngs(0))
    tokens = draw(IMAGES, 16, d) + draw(1, 1, d, seed=3)  # images have much in common
    root = (9 * rank) ** 0.5
    return common, lambda net: root * net.attn(net.embedding(tokens)[0])


@pytest.mark.slow
@pytest.mark.parametrize("make", [icon, hypernetwork])
def test_a_step_of_kernels_does_not_depend_on_the_rank(make):
    moves = [move(*make(rank, True)) for rank in RANKS]
    assert max(moves) < 2 * min(moves) and 0.5 < min(moves) and max(moves) < 4


@pytest.mark.parametrize("make", [icon, hypernetwork])
def test_nor_does_a_later_step(make):
    moves = [move(*make(rank, True), count=20) for rank in (8, 128)]
    assert max(moves) < 2 * min(moves) and max(moves) < 4


@pytest.mark.slow
def test_nor_does_it_depend_on_the_widths_of_a_hypernetwork():
    moves = [move(*hypernetwork(16, True, z, d), count=20) for z in (12, 96) for d in WIDTHS]
    assert max(moves) < 2 * min(moves)


def test_plain_generators_move_with_their_fan_in():
    """What is asked for above is not so without `scaled`."""
    kernels = [move(*icon(rank, False)) for rank in (8, 128)]
    assert kernels[1] > 8 * kernels[0]
    assert move(*hypernetwork(8, False)) > 8 * move(*hypernetwork(8, True))


@pytest.mark.parametrize("rank", RANKS)
def test_kernels_start_at_the_identity(rank):
    network, made = icon(rank, True)
    wanted = np.zeros((3, 3, rank))
    wanted[1, 1] = 1
    np.testing.assert_array_equal(made(network), np.broadcast_to(wanted, (IMAGES, 3, 3, rank)))
    # The hypernetwork's layers start at random, which is little beside the identity.
    network, made = hypernetwork(rank, True)
    wanted = np.zeros((3, 3, rank, rank))
    wanted[1, 1] = np.eye(rank)
    found = np.asarray(made(network)) - (9 * rank) ** 0.5 * wanted
    assert 0.02 < found.std() < 0.1


def test_kernels_do_not_grow_with_the_stream():
    network, _ = icon(8, True)
    network.dense.kernel[...] = draw(8, 72)
    maps = jnp.maximum(draw(IMAGES, 4, 4, 8), 0)
    np.testing.assert_allclose(network(1000 * maps), network(maps), rtol=1e-3, atol=1e-4)


def routes(dim, scaled):
    """The probabilities of the experts for sub-tokens."""
    sizes = dict(heads=1, rank=4, experts=4, width=8, routing="learned", scale=1.0, rate=0.0)
    network = adapter_x.Mixture(dim, **sizes, scaled=scaled, rngs=nnx.Rngs(0))
    tokens = draw(IMAGES, dim)
    return network, lambda net: mixture.route(net.router(tokens), net.embeddings[...], 0.07)


def scales(dim, scaled):
    """The scale of each token of DAPT."""

    class Host(nnx.Module):
        pass

    host = Host()
    host.dim = dim
    sizes = dict(rank=4, rate=0.0, places=Places(0, 1))
    network = dapt.Dynamic(host, **sizes, scaled=scaled, rngs=nnx.Rngs(0))
    tokens = draw(IMAGES, dim)
    return network, lambda net: net.scale(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("make", [routes, scales])
def test_routes_and_scales_move_the_same_at_any_width(make):
    moves = {scaled: [move(*make(d, scaled)) for d in WIDTHS] for scaled in (True, False)}
    assert max(moves[True]) < 2 * min(moves[True])
    assert min(moves[False]) > 8 * max(moves[True])


def test_standard_values():
    x = draw(5, 40, seed=2) * 7 + 3
    found = np.asarray(standard(x))
    np.testing.assert_allclose(found.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(-1), 1, rtol=1e-4)
    assert not np.any(standard(jnp.full((2, 6), 3.0)))
