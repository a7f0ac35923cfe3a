"""Prompts sit between the leading tokens and the patches, in every form of running the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, attach, backbones
from dynadapt.backbones import point_mae
from dynadapt.context import Context
from dynadapt.errors import ConfigError

pytestmark = pytest.mark.usefixtures("fast_compiling")

SIZES = dict(dim=16, depth=4, heads=2, patch=4, image_size=8, registers=2, levels=(0, 2))
FORMS = [dict(form=f, prompts=3, project=w) for f in ("shallow", "deep") for w in (0, 5)]


def backbone(given, **changes):
    network = backbones.create("vit_mini", rngs=nnx.Rngs(1), **(SIZES | changes))
    adapters.adapt(network, "vpt", rngs=nnx.Rngs(2), **given)
    return network


def images(seed=3):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 8, 12, 3)), jnp.float32)


@jax.jit
def features(network, x):
    found = network(x, Context())
    return found.maps, found.tokens


def prompts_of(network, layer):
    """The prompts that block `layer` gets, `p d`; None where it gets none of its own."""
    hosts = dict(attach.adapted(network))
    host = hosts.get(f"blocks/{layer}", hosts.get("enter") if layer == 0 else None)
    if host is None:
        return None
    prompts = host.adapter.prompts[...]
    return hosts[""].adapter.module(prompts) if "" in hosts else prompts


@pytest.mark.parametrize("given", FORMS)
def test_the_sequence_is_built_as_published(given):
    network = backbone(given)
    maps, tokens = features(network, images())
    assert [m.shape for m in maps] == [(2, 2, 3, 16)] * 3 and tokens.shape == (2, 3, 16)

    ctx = Context(grid=(2, 3), prefix=6)
    x = network.with_tokens(network.embed(images(), ctx), (2, 3))
    assert x.shape == (2, 3 + 6, 16)
    wanted = []
    for layer, block in enumerate(network.blocks):
        own = prompts_of(network, layer)
        if own is not None:
            kept = x if layer == 0 else jnp.delete(x, jnp.arange(3, 6), axis=1)
            own = jnp.broadcast_to(own, (2, *own.shape))
            x = jnp.concatenate([kept[:, :3], own, kept[:, 3:]], axis=1)
        assert x.shape == (2, 3 + 3 + 6, 16)
        x = getattr(block, "bare", block)(x, ctx)
        if layer in (0, 2):
            wanted.append(x[:, 6:].reshape(2, 2, 3, 16))
    y = network.norm(x)
    wanted.append(y[:, 6:].reshape(2, 2, 3, 16))
    for found, value in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens, y[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", FORMS[::3])
@pytest.mark.parametrize("how", [dict(scan=True), dict(remat=True), dict(scan=True, remat=True)])
def test_it_does_not_depend_on_how_blocks_run(given, how):
    found, wanted = (features(backbone(given, **h), images()) for h in (how, {}))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


class Seen(nnx.Module):
    """Records how many tokens lead in its host."""

    def __call__(self, host, x, ctx):
        ctx.record("prefix", jnp.asarray([ctx.prefix, x.shape[1]]))
        return host.bare(x, ctx)


@pytest.mark.parametrize("given", FORMS[::2])
def test_prompts_count_as_leading_tokens(given):
    network = backbone(given)
    attach.attach(network, r"blocks/\d+/attn", lambda host: Seen())
    ctx = Context()
    network(images(), ctx)
    seen = np.concatenate([v for name, v in ctx.tape.items() if name.startswith("prefix")])
    assert seen.tolist() == [[6, 12]] * 4


def test_prompts_start_within_their_bound():
    adapter = backbone(dict(prompts=50), dim=64).blocks[0].adapter
    values = np.abs(np.asarray(adapter.prompts[...]))
    bound = (6 / (3 * 16 + 64)) ** 0.5
    assert 0.95 * bound < values.max() <= bound


def test_windows_have_no_place_for_prompts():
    sizes = dict(dim=8, depths=(1, 1), heads=(1, 2), window=2, image_size=16)
    network = backbones.create("swin_t", rngs=nnx.Rngs(0), **sizes)
    with pytest.raises(ConfigError, match="VPT needs a ViT"):
        adapters.adapt(network, "vpt", rngs=nnx.Rngs(0))
    assert not attach.adapted(network)


def points(form, **how):
    sizes = dict(dim=16, depth=3, heads=2, groups=5, group_size=4, embed=4) | how
    network = backbones.create("point_mini", rngs=nnx.Rngs(1), **sizes)
    adapters.adapt(network, "vpt", rngs=nnx.Rngs(2), form=form, prompts=2)
    return network


@pytest.mark.parametrize(("form", "tokens"), [("shallow", 3), ("deep", 1)])
def test_groups_of_points_get_prompts_without_a_position(form, tokens):
    clouds = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 3)), jnp.float32)
    network = points(form)
    maps, found = features(network, clouds)
    assert maps[0].shape == (2, 5, 16) and found.shape == (2, tokens, 16)

    center, groups = jax.vmap(lambda cloud: point_mae.group(cloud, 5, 4))(clouds)
    ctx = Context(grid=(5, 1), prefix=3)
    x, at = network.with_class(network.embed(groups, ctx), network.position(center, ctx))
    at = jnp.concatenate([at[:, :1], jnp.zeros((2, 2, 16)), at[:, 1:]], axis=1)
    for layer, block in enumerate(network.blocks):
        if layer == 0 or form == "deep":
            kept = x if layer == 0 else jnp.delete(x, jnp.arange(1, 3), axis=1)
            own = jnp.broadcast_to(prompts_of(network, layer), (2, 2, 16))
            x = jnp.concatenate([kept[:, :1], own, kept[:, 1:]], axis=1)
        x = getattr(block, "bare", block)(x + at, ctx)
    y = network.norm(x)
    np.testing.assert_allclose(maps[0], y[:, 3:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, y[:, :tokens], rtol=1e-4, atol=1e-5)
    other = features(points(form, scan=True), clouds)
    np.testing.assert_allclose(other[0][0], maps[0], rtol=1e-4, atol=1e-5)
