import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt.backbones import Features
from dynadapt.context import Context
from dynadapt.heads.linear import POOLINGS, LinearHead


def features(dtype=jnp.float32):
    rng = np.random.default_rng(2)
    maps = tuple(jnp.asarray(rng.normal(size=(3, s, s, 8)), dtype) for s in (4, 2))
    return Features(maps, jnp.asarray(rng.normal(size=(3, 5, 8)), dtype))


def head(pool):
    made = LinearHead(8, 6, pool=pool, rngs=nnx.Rngs(0))
    made.linear.kernel[...] = np.random.default_rng(1).normal(size=(8, 6))
    made.linear.bias[...] = np.arange(6.0)
    return made


@pytest.mark.parametrize("pool", POOLINGS)
def test_logits(pool):
    found, made = features(), head(pool)
    last = np.asarray(found.maps[-1]).reshape(3, 4, 8)
    vector = {"cls": found.tokens[:, 0], "mean": last.mean(1), "max": last.max(1)}[pool]
    wanted = np.asarray(vector) @ np.asarray(made.linear.kernel[...]) + np.arange(6)
    np.testing.assert_allclose(made(found, Context()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", POOLINGS)
def test_logits_are_float32_whatever_the_features(pool):
    half, full = head(pool)(features(jnp.bfloat16), Context()), head(pool)(features(), Context())
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=5e-2)


def test_all_logits_start_at_zero():
    made = LinearHead(8, 6, pool="mean", rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(made(features(), Context()), np.zeros((3, 6)))
