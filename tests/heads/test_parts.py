import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.backbones import Features
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.heads import parts
from dynadapt.layers import SameKey
from dynadapt.layers.interpolate import shares
from tests.networks import randomised


def features(dims=(8, 6), n=12, g=5):
    rng = np.random.default_rng(2)
    maps = tuple(jnp.asarray(rng.normal(size=(2, g, d)), jnp.float32) for d in dims)
    places = tuple(jnp.asarray(rng.normal(size=(2, k, 3)), jnp.float32) for k in (n, g))
    return Features(maps, jnp.zeros((2, 1, dims[-1])), places=places)


def made(found, rngs=None):
    return parts.propagation(found, 4, channels=16, rate=0.5, rngs=rngs or SameKey())


def test_logits_by_hand():
    """The first layer on what is interpolated, the place and the whole, joined."""
    found = features()
    head = randomised(lambda rngs: made(found, rngs))
    w = {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(head)).items()}
    logits = head(found, Context())[0]
    for b in range(2):
        levels = []
        for i, level in enumerate(found.maps):
            x = np.asarray(level[b], np.float64)
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            levels.append(x * w[f"norms/{i}/scale"] + w[f"norms/{i}/bias"])
        groups = np.concatenate(levels, 1)
        points, centers = (np.asarray(x[b], np.float64) for x in found.places)
        at = np.asarray(shares(points, centers)) @ groups
        whole = np.concatenate([groups.max(0), groups.mean(0)])[None].repeat(12, 0)
        joined = np.concatenate([at, points, whole], 1)
        kernel = np.concatenate([w[f"{n}/kernel"] for n in ("near", "place", "whole")])
        x = joined @ kernel + w["place/bias"]
        for n in (1, 2):
            x = (x - w[f"norm{n}/mean"]) / np.sqrt(w[f"norm{n}/var"] + 1e-5)
            x = np.maximum(x * w[f"norm{n}/scale"] + w[f"norm{n}/bias"], 0)
            x = x @ w[f"fc{n + 1}/kernel"] + w[f"fc{n + 1}/bias"]
        np.testing.assert_allclose(logits[b], x, rtol=1e-3, atol=1e-3)


def test_counts():
    like = nnx.eval_shape(lambda: features((384,) * 3))
    head = nnx.eval_shape(
        lambda: parts.propagation(like, 50, channels=256, rate=0.5, rngs=SameKey())
    )
    d, w, c = 3 * 384, 256, 50
    wanted = 2 * d + (3 * d + 4) * w + (w + 1) * w + (w + 1) * c + 4 * w
    assert tree.size(nnx.state(head, nnx.Param)) == wanted == 967_730


def test_groups_in_any_order():
    found = features()
    head = randomised(lambda rngs: made(found, rngs))
    order = np.array([3, 0, 4, 1, 2])
    points, centers = found.places
    other = Features(
        tuple(x[:, order] for x in found.maps), found.tokens, places=(points, centers[:, order])
    )
    np.testing.assert_allclose(head(found, Context())[0], head(other, Context())[0], atol=1e-4)


def test_pictures_are_refused():
    with pytest.raises(ConfigError, match="parts of point clouds need a backbone of points"):
        made(Features((jnp.zeros((1, 4, 4, 8)),), jnp.zeros((1, 1, 8))))
