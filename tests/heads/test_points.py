import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.backbones import Features
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.heads import points
from dynadapt.layers import SameKey
from tests.networks import randomised


def features(prompts=2, d=8, dtype=jnp.float32):
    rng = np.random.default_rng(2)
    tokens, groups = (jnp.asarray(rng.normal(size=(3, n, d)), dtype) for n in (1 + prompts, 5))
    return Features((groups,), tokens)


def made(found, rngs=None, **changes):
    given = dict(classes=4, prompts=True, rate=0.5) | changes
    return points.classifier(found, given.pop("classes"), **given, rngs=rngs or SameKey())


def test_what_is_joined():
    found = features()
    tokens, groups = np.asarray(found.tokens), np.asarray(found.maps[0])
    wanted = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1), groups.max(1)], 1)
    np.testing.assert_allclose(made(found).pooled(found), wanted, rtol=1e-6)
    two = np.concatenate([tokens[:, 0], groups.max(1)], 1)
    np.testing.assert_array_equal(made(found, prompts=False).pooled(found), two)
    np.testing.assert_array_equal(made(features(0)).pooled(found), two)  # none to read


def test_logits_by_hand():
    found = features()
    head = randomised(lambda rngs: made(found, rngs))
    w = {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(head)).items()}
    x = np.asarray(head.pooled(found), np.float64)
    for n in (1, 2):
        x = x @ w[f"fc{n}/kernel"] + w[f"fc{n}/bias"]
        x = (x - w[f"norm{n}/mean"]) / np.sqrt(w[f"norm{n}/var"] + 1e-5)
        x = np.maximum(x * w[f"norm{n}/scale"] + w[f"norm{n}/bias"], 0)
    x = x @ w["fc3/kernel"] + w["fc3/bias"]
    np.testing.assert_allclose(head(found, Context())[0], x, rtol=1e-4, atol=1e-4)
    half = head(features(dtype=jnp.bfloat16), Context())[0]
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("prompts", "classes", "wanted"),
    [(12, 15, 365_839), (0, 15, 267_535), (0, 40, 273_960), (12, 40, 372_264)],
)
def test_published_counts(prompts, classes, wanted):
    like = nnx.eval_shape(lambda: features(prompts, d=384))
    head = nnx.eval_shape(lambda: made(like, classes=classes))
    assert tree.size(nnx.state(head, nnx.Param)) == wanted


def test_features_that_it_cannot_read():
    with pytest.raises(ConfigError, match="needs a backbone with a class token"):
        made(features(-1))
    picture = Features((jnp.zeros((1, 4, 4, 8)),), jnp.zeros((1, 1, 8)))
    with pytest.raises(ConfigError, match="need a backbone of groups of points"):
        made(picture)
