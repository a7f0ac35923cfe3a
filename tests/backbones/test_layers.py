"""The order of depth that every family declares, and which of its leaves are no weights."""

import jax
import pytest
from flax import nnx

from dynadapt import adapters, backbones, config, model, optim, tree
from dynadapt.layers import SameKey

# One small variant of each family, trained as a whole.
SMALL = {
    "vit_s16": dict(depth=3, registers=2, layer_scale=1.0),
    "swin_t": dict(dim=12, depths=(2, 2, 4, 2), heads=(1, 2, 2, 2)),
    "sam_b16": dict(dim=16, heads=2, depth=3, whole=(1,), image_size=64, window=2),
    "point_mae_s": dict(dim=24, heads=2, depth=3),
}


def trained(variant, method="full", **settings):
    """Options of the optimizer, shapes of all parameters of backbone and method, and its layers."""
    c = config.default(backbone=variant, method=method, data_set="digits")
    c.backbone.update(SMALL[variant])
    c.optim.layer_decay = 0.5

    def leaves():
        network = model.bare_backbone(c, rngs=SameKey())
        adapters.adapt(network, method, rngs=SameKey(), **settings)
        return {"backbone": nnx.state(network, nnx.Param)}

    return c.optim, jax.eval_shape(leaves), model.layers(c)


def rates(variant, method="full"):
    return optim.rates(*trained(variant, method))


def test_every_family_is_here():
    assert {backbones.family(v) for v in SMALL} == {backbones.family(v) for v in backbones.names()}


@pytest.mark.parametrize("variant", SMALL)
def test_rates_rise_from_the_input_to_the_output(variant):
    """Block by block in the order in which they run; embeddings and tokens below them all."""
    found = rates(variant)
    blocks = {}
    for path, rate in found.items():
        name, inside, _ = path.partition("/attn/")
        if inside:
            blocks.setdefault(name, set()).add(rate)
    count = len(blocks)
    by_number = sorted(blocks, key=lambda name: [int(n) for n in name.split("/") if n.isdigit()])
    assert [blocks[name] for name in by_number] == [{0.5 ** (count - i)} for i in range(count)]
    stem = {r for p, r in found.items() if not p.startswith(("backbone/blocks", "backbone/stages"))}
    assert stem == {0.5 ** (count + 1), 1.0}


@pytest.mark.parametrize(
    ("variant", "path", "rate"),
    [
        ("swin_t", "stages/3/blocks/0/mlp/fc1/kernel", 0.25),
        ("swin_t", "stages/0/blocks/0/mlp/fc1/kernel", 0.5**10),
        # A merging is as deep as the last block before it.
        ("swin_t", "stages/0/merge/reduction/kernel", 0.5**9),
        ("swin_t", "stages/2/merge/norm/scale", 0.5**3),
        ("swin_t", "embed/norm/scale", 0.5**11),
        ("swin_t", "norm/scale", 1.0),
        ("point_mae_s", "class_position", 0.5**4),
        ("point_mae_s", "class_token", 0.5**4),
        ("point_mae_s", "position/fc1/kernel", 0.5**4),
        ("sam_b16", "position", 0.5**4),
        ("sam_b16", "neck/conv/kernel", 1.0),
    ],
)
def test_a_leaf_has_the_rate_of_its_depth(variant, path, rate):
    assert rates(variant)[f"backbone/{path}"] == rate


def test_an_adapter_has_the_rate_of_its_host():
    found = rates("swin_t", "iconformer")
    for path, rate in found.items():
        if "/adapter/" in path:
            assert rate == found[path.split("/mlp/")[0] + "/mlp/norm/scale"]


@pytest.mark.parametrize("variant", SMALL)
def test_decay_acts_on_kernels_alone(variant):
    o, train, layers = trained(variant)
    decayed = {p for p, x in tree.leaves(train).items() if optim.decays(o, p, x, layers)}
    wanted = {p for p in tree.leaves(train) if p.endswith("/kernel")}
    assert decayed == wanted


@pytest.mark.parametrize(
    ("method", "given", "spared"),
    [
        ("vpt", {}, "prompts"),
        ("vpt", dict(form="shallow"), "prompts"),
        ("vfm_adapter", {}, "prompts/d384"),
        ("vfm_adapter", dict(kernels="layer"), "embedding"),
    ],
)
def test_what_a_method_learns_as_tokens_is_spared(method, given, spared):
    o, train, layers = trained("vit_s16", method, **given)
    found = {p: x for p, x in tree.leaves(train).items() if p.endswith("/" + spared)}
    assert found and all(x.ndim == 2 for x in found.values())
    assert not any(optim.decays(o, p, x, layers) for p, x in found.items())
