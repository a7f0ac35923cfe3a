import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, backbones, mixture, tree
from dynadapt.adapters import adapter_x
from dynadapt.backbones import point_mae
from dynadapt.context import Context
from dynadapt.errors import ConfigError, UnknownName

pytestmark = pytest.mark.usefixtures("fast_compiling")

PARTS = ("down", "down_bias", "up", "up_bias")
SMALL = dict(dim=12, depth=3, heads=2, image_size=8)


def make(seed=0, scan=False, depth=3, **settings):
    sizes = SMALL | dict(depth=depth, scan=scan)
    network = backbones.create("vit_mini", rngs=nnx.Rngs(seed), **sizes)
    given = dict(rank=3, heads=2, width=4, dropout=0.0) | settings
    adapters.adapt(network, "adapter_x", rngs=nnx.Rngs(seed + 1), **given)
    shared = network.adapter.module
    rng = np.random.default_rng(seed)
    for leaf in (shared.up, shared.up_bias):
        leaf[...] = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    return network


def images(b=2, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, 8, 8, 3)), jnp.float32)


@jax.jit
def run(network, x):
    tape = {}
    return network(x, Context(tape=tape)), tape


@pytest.mark.parametrize("form", ["parallel", "sequential"])
@pytest.mark.slow
def test_by_hand(form):
    """Every block: attention, MLP and mixture, then one prompt that later blocks see."""
    network, ctx = make(form=form, scale=0.7), Context(grid=(2, 2))
    found, tape = run(network, images())

    @jax.jit
    def by_hand(network):
        shared = network.adapter.module
        x = network.with_tokens(network.embed(images(), ctx), (2, 2))
        for block in network.blocks:
            x = x + type(block.attn).__call__(block.attn, x, ctx)
            f = type(block.mlp).__call__(block.mlp, x, ctx)
            seen = f if form == "sequential" else block.mlp.norm(x)
            z = seen.reshape(*seen.shape[:2], 2, 6)
            gate = mixture.top1(mixture.route(shared.router(z), shared.embeddings[...], 0.07))
            parts = {name: getattr(shared, name)[...] for name in PARTS}
            one = functools.partial(mixture.experts_one, **parts)
            extra = 0.7 * jax.vmap(jax.vmap(jax.vmap(one)))(z, gate).reshape(seen.shape)
            prompt = block.adapter.gamma[...][None] * extra.mean(1) + block.adapter.beta[...][None]
            x = x + f + extra
            x = jnp.concatenate([x[:, :-4], prompt[:, None], x[:, -4:]], axis=1)
        return network.norm(x)

    x = by_hand(network)
    np.testing.assert_allclose(found.tokens[:, 0], x[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.maps[0].reshape(2, 4, 12), x[:, -4:], rtol=1e-4, atol=1e-5)
    assert tape["prompt"].shape == (3, 2, 12)


@pytest.mark.slow
def test_on_points_the_positions_skip_the_prompts():
    """DAPT-X: positions join at every block, prompts have none and are given back."""
    sizes = dict(dim=12, depth=3, heads=2, groups=5, group_size=4, levels=(0,))
    network = backbones.create("point_mae_s", rngs=nnx.Rngs(0), **sizes)
    adapters.adapt(network, "adapter_x", rngs=nnx.Rngs(1), rank=3, heads=2, width=4, dropout=0.0)
    shared = network.adapter.module
    shared.up[...] = jax.random.normal(jax.random.key(2), shared.up.shape)
    points = jnp.asarray(np.random.default_rng(3).normal(size=(2, 30, 3)), jnp.float32)
    found, _ = run(network, points)

    @jax.jit
    def by_hand(network):
        shared = network.adapter.module
        ctx = Context(grid=(5, 1), prefix=1, shared={type(shared): shared})
        centers, groups = jax.vmap(lambda p: point_mae.group(p, 5, 4))(points)
        x = network.embed(groups, ctx)
        position = network.position(centers, ctx)
        x = jnp.concatenate([jnp.tile(network.class_token[...], (2, 1, 1)), x], 1)
        wanted = []
        for number, block in enumerate(network.blocks):
            x = x.at[:, :1].add(network.class_position[...]).at[:, -5:].add(position)
            x = block(x, ctx.replace(number=number))
            wanted.append(x[:, -5:])
        return network.norm(x), wanted

    x, wanted = by_hand(network)
    assert found.tokens.shape == (2, 1 + 3, 12)
    np.testing.assert_allclose(found.tokens, x[:, :4], rtol=1e-4, atol=1e-5)
    for level, value in zip(found.maps, (wanted[0], x[:, -5:]), strict=True):
        np.testing.assert_allclose(level, value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_is_recorded():
    _, tape = run(make(balance=0.3), images())
    np.testing.assert_allclose(tape["router/load"].sum(2), np.ones((3, 2)), rtol=1e-5)
    np.testing.assert_allclose(tape["router/probability"].sum(2), np.ones((3, 2)), rtol=1e-5)
    balance = 4 * (tape["router/load"].mean(1) * tape["router/probability"].mean(1)).sum(1)
    np.testing.assert_allclose(tape["loss/balance"], 0.3 * balance.mean(), rtol=1e-5)


def test_a_scan_is_the_same_with_and_without_prompts():
    for prompt in (True, False):
        plain, scanned = (make(prompt=prompt, scan=scan) for scan in (False, True))
        wanted, found = run(plain, images())[0], run(scanned, images())[0]
        np.testing.assert_allclose(found.maps[0], wanted.maps[0], rtol=1e-5, atol=1e-5)


def test_of_the_last_blocks_all_but_the_first_are_scanned():
    plain, scanned = (make(depth=4, layers=3, scan=scan) for scan in (False, True))
    wanted, found = run(plain, images())[0], run(scanned, images())[0]
    np.testing.assert_allclose(found.maps[0], wanted.maps[0], rtol=1e-5, atol=1e-5)
    program = jax.make_jaxpr(lambda x: scanned(x, Context()).maps)(images())
    scans = [e.params["length"] for e in program.eqns if e.primitive.name == "scan"]
    assert scans == [1, 2]  # what is not adapted; the second and the third that are


def test_one_expert_without_prompts_is_a_shared_adaptformer():
    network = make(experts=1, heads=1, prompt=False, scale=0.1)
    found = run(network, images())[0]
    plain = backbones.create("vit_mini", rngs=nnx.Rngs(0), **SMALL)
    adapters.adapt(
        plain, "adaptformer", rngs=nnx.Rngs(0), rank=3, dropout=0.0, scale=0.1, norm=False
    )
    shared = network.adapter.module
    for block in plain.blocks:
        own = block.mlp.adapter
        # AdaptFormer sees un-normed tokens; here the norm is folded into what it sees.
        own.down.kernel[...], own.down.bias[...] = shared.down[0], shared.down_bias[0]
        own.up.kernel[...], own.up.bias[...] = shared.up[0], shared.up_bias[0]
        down = own.down
        own.down = _Normed(block.mlp.norm, down)
    np.testing.assert_allclose(run(plain, images())[0].maps[0], found.maps[0], rtol=1e-4, atol=1e-5)


class _Normed(nnx.Module):
    def __init__(self, norm, layer):
        self.norm, self.layer = nnx.clone(norm), layer

    def __call__(self, x, ctx=None):
        return self.layer(self.norm(x))


@pytest.mark.slow
def test_the_router_learns_once_experts_differ():
    network = make()

    @jax.jit
    @jax.grad
    def gradient(network):
        return jnp.sin(network(images(), Context()).tokens).sum()

    shared = gradient(network).adapter.module
    assert np.abs(shared.router.kernel[...]).max() > 0
    assert np.abs(shared.embeddings[...]).max() > 0
    assert np.isfinite(shared.temperature[...])


@pytest.mark.parametrize(
    ("given", "error", "problem"),
    [
        (dict(heads=5), ConfigError, "5 heads do not divide the width 12; the nearest is 4"),
        (dict(heads=-1), ConfigError, "-1 heads do not divide the width 12; the nearest is 1"),
        (dict(rank=-1), ConfigError, "rank must be at least 1, not -1"),
        (dict(rank=7), ConfigError, "rank must be at most the width 6 at .*, not 7"),
        (dict(experts=0), ConfigError, "experts must be at least 1"),
        (dict(form="serial"), UnknownName, "unknown form 'serial'"),
        (dict(dropout=1.0), ConfigError, "dropout must be in"),
    ],
)
def test_mistakes(given, error, problem):
    with pytest.raises(error, match=problem):
        make(**given)


def test_backbones_of_several_widths_are_refused():
    network = nnx.eval_shape(
        backbones.of("swin", dim=8, depths=(2,), heads=(2,), window=4, image_size=16), nnx.Rngs(0)
    )
    with pytest.raises(ConfigError, match="needs a plain transformer"):
        adapters.adapt(network, "adapter_x", rngs=nnx.Rngs(0))


def tokens_through(routing, train=False, key=0):
    """What a mixture of random values makes of tokens, and the gate by sub-token."""
    sizes = dict(heads=2, rank=3, experts=3, width=4, scale=1.0, scaled=True, rate=0.0)
    mix = adapter_x.Mixture(8, **sizes, routing=routing, rngs=nnx.Rngs(0))
    mix.up[...] = jax.random.normal(jax.random.key(1), mix.up.shape)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 8)), jnp.float32)
    ctx = Context(train=train, key=jax.random.key(key))
    return mix, x, mix(x, ctx)[0], mix.chances(x.reshape(2, 5, 2, 4), ctx)


def test_routing_by_place_has_no_router():
    mix, _, _, gate = tokens_through("fixed")
    assert "router" not in " ".join(tree.leaves(nnx.state(mix)))
    wanted = [[(n + j) % 3 for j in range(2)] for n in range(5)]
    np.testing.assert_array_equal(gate.argmax(-1), [wanted, wanted])
    np.testing.assert_array_equal(gate.sum(-1), np.ones((2, 5, 2)))


def test_random_routing_draws_in_training_and_takes_the_mean_after():
    draws = [tokens_through("random", train=True, key=k)[3] for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() and set(np.unique(draws[0])) == {0.0, 1.0}
    mix, x, found, gate = tokens_through("random")
    np.testing.assert_allclose(gate, np.full(gate.shape, 1 / 3), rtol=1e-6)
    z = np.asarray(x).reshape(2, 5, 2, 4)
    code = np.maximum(np.einsum("bnhd,edr->bnhre", z, mix.down[...]), 0)
    wanted = np.einsum("bnhre,erd->bnhd", code, mix.up[...]) / 3
    np.testing.assert_allclose(found, wanted.reshape(2, 5, 8), rtol=1e-4, atol=1e-5)
