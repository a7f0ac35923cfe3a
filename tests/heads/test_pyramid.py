from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.backbones import Features
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.heads.pyramid import Levels, SimplePyramid
from dynadapt.layers import SameKey
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")


def make(dim=8, channels=6, seed=0, **changes):
    made = SimplePyramid(dim, channels, rngs=nnx.Rngs(0), **changes)
    rng = np.random.default_rng(seed)
    nnx.update(
        made,
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), nnx.state(made)),
    )
    return made


def features(h, w, dim=8, b=2, seed=1):
    rng = np.random.default_rng(seed)
    last = jnp.asarray(rng.normal(size=(b, h, w, dim)), jnp.float32)
    return Features((jnp.full_like(last, jnp.nan), last), jnp.zeros((b, 0, dim)))


def norm(x, w, at):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
    return x * w[f"{at}/scale"] + w[f"{at}/bias"]


def up(x, w, at):
    kernel = w[f"{at}/kernel"]
    out = np.zeros((2 * x.shape[0], 2 * x.shape[1], kernel.shape[-1]))
    for i, j in np.ndindex(*out.shape[:2]):
        out[i, j] = x[i // 2, j // 2] @ kernel[:, i % 2, j % 2] + w[f"{at}/bias"]
    return out


def weights(level):
    return {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(level)).items()}


def rescaled_by_hand(w, scale, x):
    """One map `h w d` at a scale, pixel by pixel in float64."""
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2))))
    y = np.asarray(x, np.float64)
    if scale == 4:
        y = up(gelu(norm(up(y, w, "up1"), w, "norm")), w, "up2")
    if scale == 2:
        y = up(y, w, "up1")
    if scale == 0.5:
        h, wide = y.shape[0] // 2, y.shape[1] // 2
        y = np.stack([y[i : 2 * h : 2, j : 2 * wide : 2] for i in (0, 1) for j in (0, 1)])
        y = y.max(0)
    return y


def by_hand(made, x):
    """Every level of one map `h w d`."""
    maps = []
    for n, scale in enumerate(made.scales):
        w = weights(made.levels[n])
        y = norm(rescaled_by_hand(w, scale, x) @ w["conv1/kernel"], w, "norm1")
        padded = np.pad(y, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros_like(y)
        for i, j in np.ndindex(*y.shape[:2]):
            out[i, j] = np.einsum("xyc,xyco->o", padded[i : i + 3, j : j + 3], w["conv2/kernel"])
        maps.append(norm(out, w, "norm2"))
    return maps


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_levels_equal_numpy(size):
    made, found = make(), features(*size)
    maps = jax.jit(lambda made, last: made(Features((last,), last[:, 0]), Context()))(
        made, found.maps[-1]
    )
    h, w = size
    assert [m.shape[1:3] for m in maps] == [(4 * h, 4 * w), (2 * h, 2 * w), size, (h // 2, w // 2)]
    for n, image in enumerate(found.maps[-1]):
        for own, wanted in zip(maps, by_hand(made, image), strict=True):
            np.testing.assert_allclose(own[n], wanted, rtol=2e-4, atol=2e-4)


def test_parameters_of_vitdet_base():
    made = nnx.eval_shape(lambda: SimplePyramid(768, rngs=SameKey()))
    ups = 2 * (768 * 4 * 384 + 384) + 2 * 384 + (384 * 4 * 192 + 192)
    outs = sum(d * 256 + 9 * 256 * 256 + 4 * 256 for d in (192, 384, 768, 768))
    assert tree.size(nnx.state(made)) == ups + outs
    assert made.dims == (256,) * 4 and made.scales == (4, 2, 1, 0.5)


def test_gradients_are_finite_and_reach_everything():
    made, found = make(), features(4, 6)

    def loss(made):
        return sum(jnp.square(m * m).sum() for m in made(found, Context()))

    for path, slope in tree.leaves(nnx.state(jax.jit(jax.grad(loss))(made))).items():
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0, path


def test_chosen_scales_go_fine_to_coarse():
    made = make(scales=(1, 4))
    assert [m.shape for m in made(features(2, 3), Context())] == [(2, 8, 12, 6), (2, 2, 3, 6)]
    assert made.dims == (6, 6)


@pytest.mark.slow
def test_half_precision_stays_half():
    found = features(2, 2)
    half = Features(tuple(m.astype(jnp.bfloat16) for m in found.maps), found.tokens)
    for own, wanted in zip(make()(half, Context()), make()(found, Context()), strict=True):
        assert own.dtype == jnp.bfloat16
        own, wanted = np.asarray(own, np.float32), np.asarray(wanted)
        assert np.linalg.norm(own - wanted) < 5e-2 * np.linalg.norm(wanted)


def test_what_cannot_be_served_is_a_config_error():
    with pytest.raises(ConfigError, match="no pyramid level of scale 8"):
        make(scales=(8, 1))
    with pytest.raises(ConfigError, match="width 6 is not divisible by 4"):
        make(dim=6)
    with pytest.raises(ConfigError, match="1x4 is too small"):
        make()(features(1, 4), Context())


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_levels_without_laterals_equal_numpy(size):
    found = features(*size)
    made = randomised(lambda rngs: Levels(found, rngs=rngs))
    assert made.dims == (2, 4, 8, 8)
    maps = jax.jit(lambda found: made(found, Context()))(found)
    for n, image in enumerate(found.maps[-1]):
        for own, level, scale in zip(maps, made.rescaled, (4, 2, 1, 0.5), strict=True):
            wanted = rescaled_by_hand(weights(level), scale, image)
            np.testing.assert_allclose(own[n], wanted, rtol=2e-4, atol=2e-4)


def test_parameters_without_laterals():
    like = jax.eval_shape(lambda: features(14, 14, dim=768))
    made = nnx.eval_shape(lambda: Levels(like, rngs=SameKey()))
    assert tree.size(nnx.state(made)) == 2_655_936
    assert made.dims == (192, 384, 768, 768)


def test_maps_of_several_strides_are_the_levels():
    maps = tuple(jnp.zeros((1, n, n, 6 + n)) for n in (4, 2, 1))
    found = Features(maps, jnp.zeros((1, 0, 7)))
    made = Levels(found, rngs=nnx.Rngs(0))
    assert made.dims == (10, 8, 7) and not tree.leaves(nnx.state(made))
    for own, wanted in zip(made(found, Context()), maps, strict=True):
        assert own is wanted


def test_levels_that_cannot_be_made():
    with pytest.raises(ConfigError, match="a map of 4x1 is too small to halve"):
        Levels(features(4, 1), rngs=nnx.Rngs(0))
    made = Levels(features(4, 2), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="a map of 4x1 is too small to halve"):
        made(features(4, 1), Context())
