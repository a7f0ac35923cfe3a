"""Several methods on one backbone: they work side by side, or one sentence says why not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, attach, backbones, tree
from dynadapt.attach import Chain, Shared
from dynadapt.context import Context
from dynadapt.errors import AttachError, NotMergeable

pytestmark = pytest.mark.usefixtures("fast_compiling")

SIZES = dict(dim=12, depth=2, heads=2, image_size=8)


IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)


@functools.cache
def made():
    return nnx.split(backbones.create("vit_mini", rngs=nnx.Rngs(0), **SIZES))


def bare():
    return nnx.merge(*made())


def adapt(network, name, **given):
    """Attaches a method in which nothing is zero or random."""
    if "dropout" in adapters.settings(name):
        given["dropout"] = 0.0
    before = set(tree.leaves(nnx.state(network)))
    adapters.adapt(network, name, rngs=nnx.Rngs(3), **given)
    rng = np.random.default_rng(2)

    def stirred(path, x):
        return x if path in before else x + 0.1 * rng.normal(size=x.shape).astype(x.dtype)

    nnx.update(network, tree.map_leaves(stirred, nnx.state(network)))
    return network


@jax.jit
def tokens(network):
    return network(IMAGES, Context()).tokens


def difference(one, other):
    return np.abs(tokens(one) - tokens(other)).max()


@pytest.mark.slow
@pytest.mark.parametrize(("lender", "form"), [("fact", "deep"), ("arc", "shallow")])
def test_prompts_join_a_method_that_lends(lender, form):
    """In either order, and each has its effect: what one lends is not the other's projection."""
    given = dict(form=form, prompts=3)
    one = adapt(adapt(bare(), lender, rank=2), "vpt", **given)
    other = adapt(adapt(bare(), "vpt", **given), lender, rank=2)
    np.testing.assert_allclose(tokens(one), tokens(other), rtol=1e-4, atol=1e-5)
    for alone in (adapt(bare(), "vpt", **given), adapt(bare(), lender, rank=2)):
        assert difference(one, alone) > 1e-3


def test_two_lenders_in_a_chain():
    """FacT, and prompts with one projection for all: both stand on the root."""
    prompts = dict(prompts=3, project=4)
    network, other = adapt(bare(), "fact", rank=2), adapt(bare(), "vpt", **prompts)
    with pytest.raises(AttachError, match="'the model' already has an adapter; join two"):
        adapters.adapt(network, "vpt", rngs=nnx.Rngs(3), **prompts)
    for block, given in zip(network.blocks, other.blocks, strict=True):
        attach.attach(block, "", lambda host, given=given: given.adapter)
    network.adapter = Chain(network.adapter, Shared(network, other.adapter.module))
    assert difference(network, other) > 1e-3
    assert difference(network, adapt(bare(), "fact", rank=2)) > 1e-3


def test_factors_merge_beside_another_lender():
    network, alone = adapt(bare(), "fact", rank=2), adapt(bare(), "fact", rank=2)
    network.adapter = Chain(Shared(network, nnx.Linear(2, 2, rngs=nnx.Rngs(0))), network.adapter)
    before = tokens(alone)
    adapters.merge(network, "fact")
    np.testing.assert_allclose(tokens(network), before, rtol=1e-4, atol=1e-5)


def test_a_chain_on_a_layer_does_not_merge():
    network = adapt(bare(), "lora", rank=2)
    host = network.blocks[0].attn.qkv
    host.adapter = Chain(host.adapter, host.adapter)
    with pytest.raises(NotMergeable, match="'blocks/0/attn/qkv' has several adapters in a Chain"):
        adapters.merge(network, "lora")


@pytest.mark.parametrize("name", ["adapter_x", "dapt"])
def test_a_method_that_rewires_blocks_stands_last(name):
    variant, sizes = "vit_mini", SIZES
    if name == "dapt":
        variant, sizes = "point_mae_s", dict(dim=12, depth=1, heads=2, groups=3, group_size=2)
    network = backbones.create(variant, rngs=nnx.Rngs(0), **sizes)
    adapters.adapt(network, name, rngs=nnx.Rngs(1))
    x = IMAGES.reshape(2, 64, 3) if name == "dapt" else IMAGES

    class Doubled(nnx.Module):
        def __call__(self, host, x, ctx):
            return 2 * host.bare(x, ctx)

    own = [host.adapter for _, host in attach.sites(network, r"blocks/\d+")]

    def answer(*, last):
        for block, adapter in zip(network.blocks, own, strict=True):
            block.adapter = Chain(*((Doubled(), adapter) if last else (adapter, Doubled())))
        return jax.eval_shape(lambda n, x: n(x, Context()).tokens, network, x)

    assert answer(last=True).shape[0] == 2
    with pytest.raises(AttachError, match=f"{type(own[0]).__name__} never asks .* so Doubled"):
        answer(last=False)


# Methods that stop after their first hosts where fc1, or the root, has an adapter already.
HALFWAY = [
    ("blocks/1/mlp/fc1", "repadapter", {}),
    ("blocks/1/mlp/fc1", "lora", dict(targets=("v", "fc1"))),
    ("blocks/1/mlp/fc1", "dora", dict(targets=("v", "fc1"))),
    ("blocks/1/mlp/fc1", "arc", {}),
    ("blocks/1/mlp/fc1", "fact", {}),
    ("norm", "ssf", {}),
    ("", "arc", {}),
    ("", "fact", {}),
    ("", "adapter_x", {}),
    ("", "vfm_adapter", {}),
    ("", "vpt", dict(project=4)),
]


@pytest.mark.parametrize(("taken", "name", "given"), HALFWAY)
def test_a_refused_method_leaves_the_backbone_as_it_was(taken, name, given):
    class Through(nnx.Module):
        def __call__(self, host, x, ctx=None):
            return host.bare(x, ctx)

    network = bare()
    attach.attach(network, taken, lambda host: Chain(Through()))
    graph, before = nnx.graphdef(network), tree.leaves(nnx.state(network))
    rank = dict(rank=4) if "rank" in adapters.settings(name) else {}
    with pytest.raises(AttachError, match="already has an adapter"):
        adapters.adapt(network, name, rngs=nnx.Rngs(1), **rank, **given)
    assert nnx.graphdef(network) == graph
    assert [path for path, _ in attach.adapted(network)] == [taken]
    after = tree.leaves(nnx.state(network))
    assert after.keys() == before.keys() and all(after[k] is before[k] for k in before)


def test_a_projection_as_wide_as_the_tokens_is_used():
    network = adapt(bare(), "vpt", prompts=3, project=12)
    before = tokens(network)
    kernel = network.adapter.module.kernel
    kernel[...] = jnp.zeros_like(kernel[...])
    assert np.abs(tokens(network) - before).max() > 1e-3
