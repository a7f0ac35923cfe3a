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
from dynadapt.heads.pyramid import SimplePyramid
from dynadapt.layers import SameKey

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


def by_hand(made, x):
    """Every level of one map `h w d`, pixel by pixel in float64."""
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2))))
    maps = []
    for n, scale in enumerate(made.scales):
        w = tree.leaves(nnx.state(made.levels[n]))
        w = {k: np.asarray(v, np.float64) for k, v in w.items()}

        def norm(x, at, w=w):
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
            return x * w[f"{at}/scale"] + w[f"{at}/bias"]

        def up(x, at, w=w):
            kernel, out = w[f"{at}/kernel"], np.zeros((2 * x.shape[0], 2 * x.shape[1], 1))
            out = np.tile(out, kernel.shape[-1])
            for i, j in np.ndindex(*out.shape[:2]):
                out[i, j] = x[i // 2, j // 2] @ kernel[:, i % 2, j % 2] + w[f"{at}/bias"]
            return out

        y = np.asarray(x, np.float64)
        if scale == 4:
            y = up(gelu(norm(up(y, "up1"), "norm")), "up2")
        if scale == 2:
            y = up(y, "up1")
        if scale == 0.5:
            h, wide = y.shape[0] // 2, y.shape[1] // 2
            y = np.stack([y[i : 2 * h : 2, j : 2 * wide : 2] for i in (0, 1) for j in (0, 1)])
            y = y.max(0)
        y = norm(y @ w["conv1/kernel"], "norm1")
        padded = np.pad(y, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros_like(y)
        for i, j in np.ndindex(*y.shape[:2]):
            out[i, j] = np.einsum("xyc,xyco->o", padded[i : i + 3, j : j + 3], w["conv2/kernel"])
        maps.append(norm(out, "norm2"))
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
