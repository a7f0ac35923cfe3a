"""`adapter.layers`: every method on the last blocks alone, and what a step then costs."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynadapt import adapters, attach, backbones, config, model, tasks, tree
from dynadapt.context import Context
from dynadapt.data import loader, numbered, transforms
from dynadapt.errors import AttachError, ConfigError
from dynadapt.layers import SameKey
from tests import stepping
from tests.test_adapters import METHODS

pytestmark = pytest.mark.usefixtures("fast_compiling")

SMALL = {
    "vit_mini": dict(dim=16, depth=4, heads=2, image_size=8),
    "swin_t": dict(dim=8, depths=(1, 2, 3, 1), heads=(1, 2, 2, 2), image_size=64),
    "point_mae_s": dict(dim=16, depth=4, heads=2, groups=4, group_size=4),
}
# Blocks and merging of `swin_t` above the limit of three: counted over the stages from the end.
SWIN_ABOVE = r"stages/2/(?:blocks/[12]|merge)(?:/.*)?|stages/3(?:/.*)?|norms?(?:/.*)?"
ABOVE = r"blocks/[23](?:/.*)?|norm(?:/.*)?"
REFUSED = {"mtlora", "tadformer"}


def shapes(name, method, **given):
    """A small backbone of shapes, adapted, and what trains of it."""

    def make():
        backbone = backbones.create(name, rngs=SameKey(), **SMALL[name])
        adapters.adapt(backbone, method, rngs=SameKey(), **given)
        return nnx.Dict(backbone=backbone)

    made = nnx.eval_shape(make)
    order = backbones.layers(name, **SMALL[name])
    filters = adapters.trainable(adapters.trains(method, order, **given))
    trained = [p.removeprefix("backbone/") for p in tree.leaves(nnx.state(made, filters))]
    return made.backbone, trained


@pytest.mark.parametrize("method", METHODS)
def test_nothing_below_the_last_blocks_is_adapted_or_trained(method):
    given = {k: v for k, v in METHODS[method].settings.items() if k != "layers"}
    name = "point_mae_s" if METHODS[method].points else "vit_mini"
    if method in REFUSED:
        with pytest.raises(AttachError, match="leads the whole backbone"):
            shapes(name, method, layers=2, **given)
        return
    backbone, trained = shapes(name, method, layers=2, **given)
    _, whole = shapes(name, method, **given)
    hosts = [path for path, _ in attach.adapted(backbone)]
    assert all(tree.matches(f"{ABOVE}|", path) for path in hosts), hosts
    own = [p for p in trained if not p.startswith("adapter/")]
    assert all(tree.matches(ABOVE, path) for path in own), own
    # All that is trained there without a limit still is.
    assert {*own} == {p for p in whole if tree.matches(ABOVE, p)}
    assert method == "linear" or any(p.startswith("blocks/3/") for p in own)


@pytest.mark.parametrize("method", ["iconformer", "norm_tune", "ssf", "vfm_adapter"])
def test_the_blocks_of_stages_count_from_the_end(method):
    backbone, trained = shapes("swin_t", method, layers=3)
    hosts = [path for path, _ in attach.adapted(backbone) if path]
    own = [p for p in trained if not p.startswith("adapter/")]
    for path in (*hosts, *own):
        assert tree.matches(SWIN_ABOVE, path)
    for block in ("stages/2/blocks/1/", "stages/2/blocks/2/", "stages/3/blocks/0/"):
        assert any(p.startswith(block) for p in own)


def test_what_cannot_be_restricted_says_so():
    with pytest.raises(AttachError, match="'enter' matches lies below the last blocks"):
        shapes("vit_mini", "vpt", form="shallow", layers=2)
    for layers in (-1, 5):
        with pytest.raises(ConfigError, match=f"from 1 to 4, or 0 for all blocks, not {layers}"):
            shapes("vit_mini", "lora", layers=layers)
    backbone, _ = shapes("vit_mini", "lora", layers=4)
    assert not hasattr(backbone, "spared")


def test_all_blocks_by_number_leave_out_what_lies_before_them():
    _, trained = shapes("vit_mini", "full", layers=4)
    assert {p.split("/")[0] for p in trained} == {"blocks", "norm"}


def of(method, name="vit_mini", **changes):
    c = config.default(backbone=name, method=method, data_set="digits")
    c.backbone.update(SMALL.get(name, {}))
    c.adapter.update(changes)
    c.input.batch_size = 4
    return config.resolve(c)


@pytest.mark.parametrize(
    ("method", "changes", "trainable", "found"),
    [
        ("lora", dict(layers=1), (), 3),
        ("norm_tune", dict(layers=2), (), 2),
        ("norm_tune", dict(layers=2), ("backbone/blocks/1/mlp/fc1/bias",), 1),
        ("norm_tune", dict(layers=2), ("backbone/position",), 0),
        ("adapter_x", dict(layers=1), (), 3),
        ("mtlora", dict(), (), 0),
        ("vpt", dict(form="shallow"), (), 0),
        ("linear", dict(), (), 4),
    ],
)
def test_how_many_blocks_are_untouched(method, changes, trainable, found):
    c = of(method, **changes)
    c.trainable = trainable
    info = numbered(3, 8)
    spec = loader.spec(info, transforms.pipeline(c.input.train), 4)
    network = model.abstract(c, tasks.from_config(c.task, info), spec)
    assert model.untouched(network, c) == found


def cost(c):
    """FLOPs of a training step's matrix products; nothing is allocated."""
    info = numbered(10, 32)
    task = tasks.from_config(c.task, info)
    spec = loader.spec(info, transforms.pipeline(c.input.train), c.input.batch_size)
    return stepping.flops(c, task, model.split(model.abstract(c, task, spec), c), spec)


@pytest.mark.parametrize("method", ["iconformer", "bitfit"])
def test_a_step_goes_backward_through_the_last_blocks_alone(method):
    whole = cost(of(method, "vit_b16"))
    for scan in (False, True):
        c = of(method, "vit_b16", layers=3)
        c.backbone.scan = scan
        # Forward through 12 blocks, back through 3: 15 of 24.
        assert 0.55 * whole < cost(c) < 0.67 * whole


@pytest.mark.parametrize("method", ["bitfit", "lora"])
def test_a_scan_cut_at_the_limit_answers_the_same(method):
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    found = []
    for scan in (False, True):
        sizes = SMALL["vit_mini"] | dict(scan=scan)
        backbone = backbones.create("vit_mini", rngs=nnx.Rngs(0), **sizes)
        adapters.adapt(backbone, method, rngs=nnx.Rngs(1), layers=2)
        graph, state = nnx.split(backbone)

        @jax.jit
        def run(state, images, graph=graph):
            return nnx.merge(graph, state)(images, Context(frozen=2)).maps[-1]

        found.append(run(state, images))
    assert jnp.allclose(*found, atol=1e-5)
