import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, tree
from dynadapt.attach import attach
from dynadapt.backbones import point_mae
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.layers import Linear
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

SMALL = dict(dim=16, heads=2, depth=3, groups=6, group_size=4)
FORMS = [dict(scan=True), dict(remat=True), dict(scan=True, remat=True)]
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def make(seed=0, **changes):
    """A small encoder with random values everywhere, statistics too."""
    given = SMALL | changes
    return randomised(lambda r: backbones.create("point_mae_s", rngs=r, **given), seed)


def clouds(b=2, n=40, seed=1):
    return np.random.default_rng(seed).normal(size=(b, n, 3)).astype(np.float32)


@jax.jit
def features(network, points):
    found = network(points, Context())
    return found.maps, found.tokens


def test_farthest_points_by_definition():
    cloud = clouds(1, 50, seed=3)[0]
    chosen = [0]
    while len(chosen) < 12:
        away = np.square(cloud[:, None] - cloud[chosen][None]).sum(-1).min(1)
        chosen.append(int(away.argmax()))
    own = jax.jit(point_mae.farthest_points, static_argnums=1)(cloud, 12)
    np.testing.assert_array_equal(own, chosen)


def test_points_near_the_origin_are_sampled_like_others():
    cloud = np.array([[1, 0, 0], [0.9, 0, 0], [0, 0, 0], [1.1, 0, 0]], np.float32)
    np.testing.assert_array_equal(point_mae.farthest_points(cloud, 2), [0, 2])


def test_nearest_points_by_sorting():
    cloud, centers = clouds(1, 30, seed=4)[0], clouds(1, 5, seed=5)[0]
    wanted = np.square(cloud[None] - centers[:, None]).sum(-1).argsort(1)[:, :7]
    np.testing.assert_array_equal(
        jax.jit(point_mae.nearest, static_argnums=2)(cloud, centers, 7), wanted
    )


def test_groups_are_relative_to_their_centre():
    cloud = clouds(1, 30, seed=6)[0]
    centers, around = map(np.asarray, point_mae.group(cloud, 5, 4))
    np.testing.assert_array_equal(centers[0], cloud[0])
    np.testing.assert_array_equal(around[:, 0], np.zeros((5, 3)))
    for center, points in zip(centers, around, strict=True):
        away = np.abs((points + center)[:, None] - cloud[None]).sum(-1).min(1)
        np.testing.assert_allclose(away, 0, atol=1e-6)


def test_group_tokens_by_hand():
    network = make(2)
    groups = clouds(3, 20, seed=7).reshape(3, 5, 4, 3)
    w = {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(network.embed)).items()}

    def linear(x, at):
        return x @ w[f"{at}/kernel"] + w[f"{at}/bias"]

    def normed(x, at):
        x = (x - w[f"{at}/mean"]) / np.sqrt(w[f"{at}/var"] + 1e-5)
        return np.maximum(x * w[f"{at}/scale"] + w[f"{at}/bias"], 0)

    for own, some in zip(network.embed(groups, Context()), groups, strict=True):
        for token, points in zip(own, some, strict=True):
            each = linear(normed(linear(points, "conv1"), "norm1"), "conv2")
            joint = np.stack([np.concatenate([each.max(0), point]) for point in each])
            each = linear(normed(linear(joint, "conv3"), "norm2"), "conv4")
            np.testing.assert_allclose(token, each.max(0), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_position_joins_before_every_block():
    network, points = make(), clouds()
    centers, groups = jax.vmap(lambda p: point_mae.group(p, 6, 4))(points)
    position = network.position(centers, Context())
    position = np.concatenate([np.tile(network.class_position[...], (2, 1, 1)), position], 1)
    x = np.concatenate(
        [np.tile(network.class_token[...], (2, 1, 1)), network.embed(groups, Context())], 1
    )
    for block in network.blocks:
        x = block(x + position, Context())
    x = network.norm(x)
    maps, tokens = features(network, points)
    close(tokens, x[:, :1])
    close(maps[-1], x[:, 1:])


class Tap(nnx.Module):
    """Scales what its host sees and records it."""

    def __init__(self, dim):
        self.linear = Linear(dim, dim, rngs=nnx.Rngs(3))

    def __call__(self, host, x, ctx):
        ctx.record("seen", x.sum())
        return host.bare(x, ctx) + self.linear(x, ctx) * ctx.grid[0] * ctx.prefix


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(None, marks=pytest.mark.exhaustive),
        pytest.param(r"blocks/\d+", marks=pytest.mark.exhaustive),
        r"blocks/\d+/mlp",
    ],
)
@pytest.mark.slow
def test_loop_remat_and_scan_are_equal(where):
    points = clouds()

    @jax.jit
    def run(network):
        def loss(network):
            found = network(points, Context())
            total = sum(jnp.square(m).mean() for m in (*found.maps, found.tokens))
            return total, (found.maps, found.tokens, found.aux)

        found, slopes = jax.value_and_grad(loss, has_aux=True)(network)
        return found, tree.leaves(nnx.state(slopes))

    def adapted(**form):
        network = make(levels=(0,), **form)
        if where:
            attach(network, where, lambda host: Tap(16))
        return run(network)

    wanted = adapted()
    assert np.abs(wanted[1]["position/fc2/kernel"]).max() > 0
    if where:
        assert wanted[0][1][2]["seen"].shape == (1,) or "seen.2" in wanted[0][1][2]
    for form in FORMS:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
            adapted(**form),
            wanted,
        )


def test_published_parameter_count():
    embed = (3 * 128 + 128) + 2 * 128 + (128 * 256 + 256)
    embed += (512 * 512 + 512) + 2 * 512 + (512 * 384 + 384)
    position = (3 * 128 + 128) + (128 * 384 + 384)
    attn = 2 * 384 + 384 * 3 * 384 + (384 * 384 + 384)  # q, k and v have no bias
    mlp = 2 * 384 + (384 * 1536 + 1536) + (1536 * 384 + 384)
    wanted = embed + position + 12 * (attn + mlp) + 2 * 384 + 2 * 384
    assert wanted == 21_825_792
    # With the published classifier of 15 classes, on class token and maximum: 22.1 M.
    head = (768 * 256 + 256) + 2 * 256 + (256 * 256 + 256) + 2 * 256 + (256 * 15 + 15)
    assert wanted + head == 22_093_327
    for name in ("point_mae_s", "point_mae_s_g128"):
        network = backbones.abstract(name)
        assert tree.size(nnx.state(network, nnx.Param)) == wanted
        assert tree.size(nnx.state(network, nnx.BatchStat)) == 2 * (128 + 512)


def test_statistics_are_no_parameters():
    network, points = make(), clouds()
    held = set(tree.leaves(nnx.state(network, nnx.BatchStat)))
    assert held == {f"embed/norm{n}/{v}" for n in (1, 2) for v in ("mean", "var")}
    slopes = jax.jit(jax.grad(lambda n: jnp.square(n(points, Context()).tokens).sum()))(network)
    slopes = tree.leaves(nnx.state(slopes))
    for path in held:
        np.testing.assert_array_equal(slopes[path], np.zeros_like(slopes[path]))
    assert np.abs(slopes["embed/norm1/scale"]).max() > 0
    assert all(np.isfinite(v).all() for v in slopes.values())


def test_shapes_levels_and_variants():
    network = make(levels=[0, -2])
    maps, tokens = features(network, clouds(3))
    assert [m.shape for m in maps] == [(3, 6, 16)] * 3 and tokens.shape == (3, 1, 16)
    assert network.levels == (0, 1, 2) and network.dims == (16,) * 3 and network.prefix == 1
    whole = features(make(), clouds(3))
    close(maps[-1], whole[0][-1])
    bare = make(class_token=False)
    assert features(bare, clouds())[1].shape == (2, 0, 16)
    assert not any(path.startswith("class") for path in tree.leaves(nnx.state(bare)))
    sizes = {n: backbones.config(n).groups for n in point_mae.VARIANTS}
    assert sizes == {"point_mae_s": 64, "point_mae_s_g128": 128, "point_mini": 32}
    small = backbones.abstract("point_mini")
    assert tree.size(nnx.state(small, nnx.Param)) == 1_042_560


def test_each_cloud_is_seen_alone_and_its_later_points_in_any_order():
    network, points = make(), clouds(3)
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(39)])
    for own, other in zip(
        jax.tree.leaves(features(network, points[::-1][:, order])),
        jax.tree.leaves(features(network, points)),
        strict=True,
    ):
        np.testing.assert_allclose(own, other[::-1], rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close():
    network = make()
    points = jnp.asarray(clouds(), jnp.bfloat16)
    half, full = features(network, points), features(network, points.astype(jnp.float32))
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b)
        assert np.linalg.norm(a - b) < 4e-2 * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        (dict(heads=3), (1, 9, 3), "width 16 is not divisible by 3 heads"),
        (dict(levels=(3,)), (1, 9, 3), "there is no block 3 among 3"),
        (dict(act="gleu"), (1, 9, 3), "unknown activation 'gleu'"),
        (dict(groups=0), (1, 9, 3), "0 groups of 4 points"),
        (dict(embed=0), (1, 9, 3), "embed must be at least 1, not 0"),
        ({}, (1, 5, 3), "5 points are too few for 6 groups of 4"),
        ({}, (1, 9, 6), "must be of shape b n 3"),
    ],
)
def test_what_cannot_be_served_is_a_config_error(changes, shape, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)(jnp.zeros(shape), Context())
