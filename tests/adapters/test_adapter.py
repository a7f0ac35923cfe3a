"""Bottlenecks on branches: where they sit, on plain transformers and on stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, attach, backbones
from dynadapt.context import Context

pytestmark = pytest.mark.usefixtures("fast_compiling")

SWIN = dict(dim=8, depths=(1, 2), heads=(1, 2), window=2, image_size=16)
VIT = dict(dim=16, depth=1, heads=2, patch=4, image_size=8)


def adapted(name, variant="vit_mini", sizes=VIT, **given):
    network = backbones.create(variant, rngs=nnx.Rngs(1), **sizes)
    if name:
        adapters.adapt(network, name, rngs=nnx.Rngs(2), **given)
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sites"),
    [("adaptformer", 3), ("adapter", 6), ("convpass", 6), ("lorand", 6), ("mona", 6)],
)
@pytest.mark.parametrize("scan", [False, True])
def test_stages_are_served(name, sites, scan):
    network = adapted(name, "swin_t", SWIN | dict(scan=scan), rank=3)
    assert len(attach.adapted(network)) == sites
    x = jnp.asarray(np.random.default_rng(4).normal(size=(2, 20, 16, 3)), jnp.float32)
    run = jax.jit(lambda network, x: network(x, Context()).maps)
    found, bare = run(network, x), run(adapted("", "swin_t", SWIN), x)
    assert [m.shape for m in found] == [m.shape for m in bare]
    gap = max(float(np.abs(a - b).max()) for a, b in zip(found, bare, strict=True))
    assert gap > 1e-3 if name in ("lorand", "mona") else gap < 1e-5


@pytest.mark.parametrize("name", ["adapter", "lorand"])
def test_drop_path_takes_the_adapter_with_its_branch(name):
    branch = adapted(name, rank=3).blocks[0].mlp
    branch.adapter.up.bias[...] += 1.0
    x = jnp.asarray(np.random.default_rng(5).normal(size=(64, 5, 16)), jnp.float32)
    ctx = Context(grid=(2, 2), prefix=1, train=True, key=jax.random.key(0), drop_path=0.5)
    found, whole = (np.asarray(branch(x, c)) for c in (ctx, Context(grid=(2, 2), prefix=1)))
    dropped = (found == 0).all((1, 2))
    assert 16 < dropped.sum() < 48
    np.testing.assert_allclose(found[~dropped], 2 * whole[~dropped], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["houlsby", "pfeiffer"])
def test_a_branch_goes_through_its_bottleneck(form):
    block = adapted("adapter", form=form, rank=3).blocks[0]
    x = jnp.asarray(np.random.default_rng(6).normal(size=(2, 5, 16)), jnp.float32)
    ctx = Context(grid=(2, 2), prefix=1)
    hosts = [block.attn, block.mlp][0 if form == "houlsby" else 1 :]
    assert isinstance(block.attn, attach.Adapted) == (form == "houlsby")
    for host in hosts:
        up = host.adapter.up
        up.kernel[...] += jnp.asarray(np.random.default_rng(7).normal(size=up.kernel.shape))
        y = np.asarray(host.bare(x, ctx))
        h = jax.nn.gelu(y @ host.adapter.down.kernel[...], approximate=False)
        np.testing.assert_allclose(host(x, ctx), y + h @ up.kernel[...], rtol=1e-4, atol=1e-5)
