import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, softmax

from dynadapt import adapters, attach, backbones, files, tree
from dynadapt.backbones import point_mae
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.runs import product
from tests import networks

pytestmark = pytest.mark.usefixtures("fast_compiling")

SMALL = dict(dim=16, heads=2, depth=3, groups=6, group_size=4)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def bare(**changes):
    return backbones.create("point_mae_s", rngs=nnx.Rngs(0), **(SMALL | changes))


def make(seed=0, rank=3, dropout=0.0, **changes):
    """A small encoder with DAPT, adapters and the base stirred so that nothing is zero."""
    network = bare(**changes)
    adapters.adapt(network, "dapt", rngs=nnx.Rngs(seed), rank=rank, dropout=dropout)
    rng = np.random.default_rng(seed)

    def change(path, x):
        return x if path.endswith("var") else x + 0.2 * rng.normal(size=x.shape).astype(np.float32)

    nnx.update(network, tree.map_leaves(change, nnx.state(network)))
    return network


def clouds(b=2, n=40, seed=1):
    return np.random.default_rng(seed).normal(size=(b, n, 3)).astype(np.float32)


@jax.jit
def features(network, points):
    ctx = Context()
    found = network(points, ctx)
    return found.maps, found.tokens, ctx.tape


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def norm(host, x):
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.asarray(host.scale[...]) + np.asarray(host.bias[...])


def linear(host, x):
    bias = 0.0 if host.bias is None else np.asarray(host.bias[...], np.float64)
    return x @ np.asarray(host.kernel[...], np.float64) + bias


def tfts(affine, y):
    return y * np.asarray(affine.scale[...]) + np.asarray(affine.shift[...])


@pytest.mark.slow
def test_by_hand():
    """Every operation, its scale and shift, the adapter and the prompt, in numpy."""
    network, points = make(seed=3), clouds()
    maps, tokens, tape = features(network, points)
    grouped = jax.jit(jax.vmap(lambda p: point_mae.group(p, 6, 4)))
    parts = jax.jit(lambda n, c, g: (n.position(c, Context()), n.embed.bare(g, Context())))
    position, embedded = map(np.asarray, parts(network, *grouped(points)))
    x = tfts(network.embed.adapter, embedded)
    x = np.concatenate([np.tile(network.class_token[...], (2, 1, 1)), x], 1)
    first = np.tile(network.class_position[...], (2, 1, 1))
    for number, block in enumerate(network.blocks):
        # Prompts have no position.
        x = x + np.concatenate([first, np.zeros((2, number, 16)), position], 1)
        attn, mlp, own = block.attn, block.mlp, block.adapter
        qkv = linear(attn.qkv, tfts(attn.norm.adapter, norm(attn.norm, x)))
        qkv = tfts(attn.qkv.adapter, qkv).reshape(2, -1, 3, 2, 8)
        q, k, v = np.moveaxis(qkv, 2, 0)
        scores = np.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(8)
        mixed = np.einsum("bhnm,bmhk->bnhk", softmax(scores, axis=-1), v)
        x = x + tfts(attn.proj.adapter, linear(attn.proj, mixed.reshape(2, -1, 16)))
        u = tfts(mlp.norm.adapter, norm(mlp.norm, x))
        h = gelu(tfts(mlp.fc1.adapter, linear(mlp.fc1, u)))
        n = norm(own.norm, u)
        scale = np.maximum(linear(own.scale, n / 16), 0)  # over its fan-in
        assert (scale == 0).any() and (scale > 0).any()
        a = scale * linear(own.up, gelu(linear(own.down, n)))
        x = x + tfts(mlp.fc2.adapter, linear(mlp.fc2, h)) + a
        prompt = tfts(own.prompt, gelu(a).mean(1))
        close(tape["prompt"][number], prompt)
        x = np.concatenate([x[:, : 1 + number], prompt[:, None], x[:, 1 + number :]], 1)
    x = tfts(network.norm.adapter, norm(network.norm, x))
    assert tokens.shape == (2, 1 + 3, 16)
    close(tokens, x[:, :4])
    close(maps[0], x[:, 4:])


@pytest.mark.slow
def test_it_starts_around_the_bare_model():
    """Nothing of the adapter but beta, in the prompts; scales and shifts around the identity."""
    network = bare(dim=384, depth=1)
    adapters.adapt(network, "dapt", rngs=nnx.Rngs(0))
    own = network.blocks[0].adapter
    for layer in (own.scale, own.down, own.up):
        np.testing.assert_array_equal(layer.bias[...], np.zeros(layer.bias.shape))
    np.testing.assert_array_equal(own.up.kernel[...], np.zeros((64, 384)))
    largest = np.abs(own.down.kernel[...]).max()
    assert 0.95 < largest * np.sqrt(384) <= 1
    # Of the deviation that the published start has.
    assert np.std(own.scale.kernel[...]) / 384 == pytest.approx((3 * 384) ** -0.5, rel=0.1)
    for affine in (own.prompt, network.embed.adapter, network.norm.adapter):
        assert abs(affine.scale[...].mean() - 1) < 0.005 and abs(affine.shift[...].mean()) < 0.005
        for leaf in (affine.scale, affine.shift):
            assert 0.017 < leaf[...].std() < 0.023
    prompt = features(network, clouds())[2]["prompt"]
    np.testing.assert_array_equal(prompt, np.tile(own.prompt.shift[...], (1, 2, 1)))


@pytest.mark.slow
def test_a_dropped_example_drops_mlp_and_adapter_together():
    block = make().blocks[0]
    x = jnp.asarray(np.random.default_rng(4).normal(size=(64, 7, 16)), jnp.float32)
    ctx = Context(grid=(6, 1), prefix=1, train=True, key=jax.random.key(5), drop_path=0.5)
    attended = x + block.attn(x, ctx)
    found = jnp.delete(block(x, ctx), slice(1, 4), axis=1) - attended  # less three prompts
    quiet = ctx.replace(drop_path=None)
    whole = block.mlp(attended, quiet) + block.adapter.branch(
        block.mlp.norm(attended, quiet), quiet
    )
    dropped = np.abs(found).max((1, 2)) < 1e-4
    assert 10 < dropped.sum() < 54
    close(found[~dropped], 2 * whole[~dropped])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [dict(levels=(0,)), dict(class_token=False)])
@pytest.mark.parametrize("form", [dict(scan=True), dict(remat=True)])
def test_loop_remat_and_scan_are_equal(changes, form):
    wanted, found = (features(make(**changes, **f), clouds()) for f in ({}, form))
    jax.tree.map(close, found, wanted)
    assert [m.shape for m in wanted[0]] == [(2, 6, 16)] * len(wanted[0])
    assert wanted[1].shape == (2, 3 + changes.get("class_token", True), 16)


def test_what_trains():
    network = make()
    pick = adapters.trainable(adapters.trains("dapt"))
    _, train, frozen = nnx.split({"backbone": network}, pick, ...)
    own = {p.removeprefix("backbone/") for p in tree.leaves(train) if "adapter" not in p.split("/")}
    assert own == {"class_token", "class_position"}
    assert not [p for p in tree.leaves(frozen) if "adapter" in p]


def test_the_last_prompt_reaches_the_tokens_alone():
    network, points = make(), clouds()
    before = features(network, points)
    shift = network.blocks[2].adapter.prompt.shift
    shift[...] = shift[...].at[0].add(1.0)
    after = features(network, points)
    np.testing.assert_array_equal(after[0][0], before[0][0])
    changed = np.abs(after[1] - before[1]).max((0, 2)) > 1e-3
    assert changed.tolist() == [False, False, False, True]


def test_what_is_saved_gives_the_same_answer(tmp_path):
    network, points = make(seed=3), clouds()
    pick = adapters.trainable(adapters.trains("dapt"))
    _, train, frozen = nnx.split({"backbone": network}, pick, ...)
    product.save(tmp_path, tree.leaves(train), {})
    leaves = files.read_tensors(tmp_path / product.TENSORS)
    other = make(seed=7)
    assert np.abs(features(other, points)[0][0] - features(network, points)[0][0]).max() > 1e-2
    given = {**tree.leaves(frozen), **leaves}
    state = nnx.state(other)
    nnx.update(other, tree.map_leaves(lambda p, x: jnp.asarray(given[f"backbone/{p}"]), state))
    jax.tree.map(np.testing.assert_array_equal, features(other, points), features(network, points))


def published_head(tokens, classes):
    """Parameters of the classifier on so many pooled tokens: two batch norms, three layers."""
    widths = (tokens * 384, 256, 256, classes)
    layers = sum(a * b + b for a, b in zip(widths[:-1], widths[1:], strict=True))
    return layers + 2 * 2 * 256


@pytest.mark.parametrize(
    ("method", "given", "tokens", "classes", "total"),
    [
        ("dapt", {}, 3, 15, 1_087_771),  # ScanObjectNN
        ("dapt", dict(rank=72), 2, 40, 1_069_716),  # ModelNet40
        ("adapter_x", dict(rank=24, width=32), 3, 15, 414_448),  # DAPT-X on ScanObjectNN
        ("adapter_x", dict(heads=1, rank=40), 2, 15, 414_416),
    ],
)
def test_published_totals(method, given, tokens, classes, total):
    count = networks.trained("point_mae_s", method, given)
    assert count + published_head(tokens, classes) == total


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(rank=-1), "rank must be at least 1, not -1"),
        (dict(rank=17), "rank must be at most the width 16 at 'blocks/0', not 17"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), not 1.0"),
        (dict(rnak=4), "method 'dapt' 'rnak'; did you mean 'rank'"),
    ],
)
def test_mistakes(given, message):
    network = bare()
    with pytest.raises(ConfigError, match=message):
        adapters.adapt(network, "dapt", rngs=nnx.Rngs(0), **given)
    assert not attach.adapted(network)


def test_images_are_refused():
    network = backbones.create("vit_mini", rngs=nnx.Rngs(0), dim=16, depth=1, heads=2)
    with pytest.raises(ConfigError, match="point clouds, such as point_mae_s$"):
        adapters.adapt(network, "dapt", rngs=nnx.Rngs(0))
    assert not attach.adapted(network)
