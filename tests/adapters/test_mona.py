"""Mona's convolutions see the map of patches alone."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, attach, backbones
from dynadapt.adapters.mona import Mona
from dynadapt.context import Context
from dynadapt.errors import ConfigError

pytestmark = pytest.mark.usefixtures("fast_compiling")


@pytest.mark.slow
def test_leading_tokens_pass_the_convolutions_by():
    adapter = Mona(types.SimpleNamespace(dim=6), rank=4, rate=0.0, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3 + 12, 6)), jnp.float32)
    ctx = Context(grid=(3, 4), prefix=3)
    found = np.asarray(adapter.branch(x, ctx))
    patches = adapter.branch(x[:, 3:], ctx.replace(prefix=0))
    np.testing.assert_allclose(found[:, 3:], patches, rtol=1e-5, atol=1e-6)
    h = adapter.down(
        adapter.norm(x) * adapter.gamma[...][None, None] + x * adapter.gamma_x[...][None, None]
    )
    h = h + adapter.mix(h)
    pointwise = np.asarray(adapter.up(jax.nn.gelu(h, approximate=False)))
    np.testing.assert_allclose(found[:, :3], pointwise[:, :3], rtol=1e-5, atol=1e-6)
    assert np.abs(found[:, 3:] - pointwise[:, 3:]).max() > 1e-3


@pytest.mark.slow
def test_a_block_makes_mona_of_each_sum():
    sizes = dict(dim=16, depth=1, heads=2, patch=4, image_size=8)
    network = backbones.create("vit_mini", rngs=nnx.Rngs(1), **sizes)
    adapters.adapt(network, "mona", rngs=nnx.Rngs(2), rank=4)
    block, ctx = network.blocks[0], Context(grid=(2, 2), prefix=1)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 16)), jnp.float32)
    wanted = x
    for host in (block.attn, block.mlp):
        total = wanted + host.bare(wanted, ctx)
        wanted = total + host.adapter.branch(total, ctx)
    np.testing.assert_allclose(block(x, ctx), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mona", "convpass"])
def test_groups_of_points_are_no_map(name):
    sizes = dict(dim=8, depth=1, heads=1, groups=4, group_size=4)
    network = backbones.create("point_mae_s", rngs=nnx.Rngs(0), **sizes)
    with pytest.raises(ConfigError, match=f"{name} needs a backbone whose tokens are the patches"):
        adapters.adapt(network, name, rngs=nnx.Rngs(0))
    assert not attach.adapted(network)
