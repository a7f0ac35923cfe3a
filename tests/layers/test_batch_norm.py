"""Batch normalisation, beside a reference and by hand: what is normalised, what moves, by what."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import files
from dynadapt.context import Context
from dynadapt.layers.batch_norm import BatchNorm, StoredNorm

TRAIN = Context(train=True)


def made(kind=BatchNorm, dim=5, seed=0):
    """A layer in which no value is 0 or 1."""
    layer, rng = kind(dim), np.random.default_rng(seed)
    layer.scale[...] = rng.uniform(0.5, 2, dim).astype(np.float32)
    layer.bias[...] = rng.normal(size=dim).astype(np.float32)
    layer.mean[...] = rng.normal(size=dim).astype(np.float32)
    layer.var[...] = rng.uniform(0.5, 2, dim).astype(np.float32)
    return layer


def stored(layer):
    return np.asarray(layer.mean[...]), np.asarray(layer.var[...])


def examples(*shape, seed=1):
    return (3 * np.random.default_rng(seed).normal(size=shape) + 1).astype(np.float32)


def by_hand(layer, x, mean, var):
    scale, bias = np.asarray(layer.scale[...]), np.asarray(layer.bias[...])
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5), (2, 3, 4, 5)])
def test_training_takes_the_statistics_of_the_batch(shape):
    layer, x = made(), examples(*shape)
    before, flat = stored(layer), x.reshape(-1, 5)
    found = layer(jnp.asarray(x), TRAIN)
    wanted = by_hand(layer, flat, flat.mean(0), flat.var(0)).reshape(shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    mean, var = stored(layer)
    np.testing.assert_allclose(mean, 0.9 * before[0] + 0.1 * flat.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, 0.9 * before[1] + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("kind", [BatchNorm, StoredNorm])
def test_elsewhere_the_stored_ones_are_taken(kind):
    layer, x = made(kind), examples(4, 3, 5)
    before = stored(layer)
    contexts = [Context()] if kind is BatchNorm else [Context(), TRAIN]
    for ctx in contexts:
        found = layer(jnp.asarray(x), ctx)
        np.testing.assert_allclose(found, by_hand(layer, x, *before), rtol=1e-4, atol=1e-5)
    for a, b in zip(stored(layer), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_masked_examples_are_left_out():
    x, mask = examples(6, 3, 5), np.array([1, 0, 1, 1, 0, 1], np.float32)
    whole, masked = made(), made()
    wanted = whole(jnp.asarray(x[mask > 0]), TRAIN)
    other = np.where(mask[:, None, None] > 0, x, 1e4).astype(np.float32)
    found = masked(jnp.asarray(other), TRAIN.replace(mask=jnp.asarray(mask)))
    np.testing.assert_allclose(found[mask > 0], wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(stored(masked), stored(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_batch_of_no_example_moves_nothing():
    layer = made()
    before = stored(layer)
    found = layer(jnp.asarray(examples(4, 5)), TRAIN.replace(mask=jnp.zeros(4)))
    assert np.isfinite(found).all()
    for a, b in zip(stored(layer), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_value_has_no_variance():
    layer = made()
    found = layer(jnp.asarray(examples(1, 5)), TRAIN)
    np.testing.assert_allclose(found[0], layer.bias[...], atol=1e-5)
    assert np.isfinite(stored(layer)).all()


def test_low_precision_stays_outside():
    layer, x = made(), jnp.asarray(examples(64, 5) + 100, jnp.bfloat16)
    found = layer(x, TRAIN)
    assert found.dtype == jnp.bfloat16
    assert {layer.mean[...].dtype, layer.var[...].dtype} == {jnp.dtype(jnp.float32)}
    wide = np.asarray(x, np.float32)
    wanted = by_hand(layer, wide, wide.mean(0), wide.var(0))
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=1e-2, atol=1e-2)


def test_gradients_flow_through_the_statistics_of_the_batch():
    """Shifting a channel changes nothing: its gradient sums to zero; numbers by differences."""
    graph, params, moved = nnx.split(made(), nnx.Param, ...)
    x, weight = examples(5, 2, 5), jnp.asarray(examples(5, 2, 5, seed=2))

    @jax.jit
    def loss(x):
        return (nnx.merge(graph, params, moved, copy=True)(x, TRAIN) * weight).sum()

    found = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(x)))
    np.testing.assert_allclose(found.sum((0, 1)), 0, atol=1e-4)
    assert np.abs(found).max() > 0.1
    for place in ((0, 0, 0), (3, 1, 2), (4, 0, 4)):
        step = np.zeros_like(x)
        step[place] = 1e-2
        difference = (loss(x + step) - loss(x - step)) / 2e-2
        np.testing.assert_allclose(found[place], difference, rtol=2e-2, atol=2e-3)


def test_moved_statistics_come_out_of_a_differentiated_function():
    graph, params, stats = nnx.split(made(), nnx.Param, ...)
    x = jnp.asarray(examples(6, 5))

    @jax.jit
    def step(params, stats):
        def loss(params, stats):
            layer = nnx.merge(graph, params, stats)
            total = jnp.square(layer(x, TRAIN)).mean()
            return total, nnx.state(layer, nnx.BatchStat)

        return jax.grad(loss, has_aux=True, argnums=(0, 1))(params, stats)

    (grads, through), new = step(params, stats)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    assert not any(np.any(g) for g in jax.tree.leaves(through))  # statistics are no parameters
    assert step._cache_size() == 1
    step(params, new)
    assert step._cache_size() == 1
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(new), strict=True):
        assert (np.asarray(a) != np.asarray(b)).any()


class Head:
    """Four maps, each convolved, enlarged and joined; every convolution before a batch norm."""

    def __init__(self, tensors):
        self.kernels = {k.removesuffix(".conv.weight"): jnp.asarray(v[:, :, 0, 0].T)
                        for k, v in tensors.items() if k.endswith(".conv.weight")}  # fmt: skip
        self.last = jnp.asarray(tensors["conv_seg.weight"][:, :, 0, 0].T)
        self.bias = jnp.asarray(tensors["conv_seg.bias"])[None]
        self.norms = {}
        for name in self.kernels:
            norm = self.norms[name] = BatchNorm(20)
            norm.scale[...] = tensors[f"{name}.bn.weight"]
            norm.bias[...] = tensors[f"{name}.bn.bias"]
            norm.mean[...] = tensors[f"{name}.bn.running_mean"]
            norm.var[...] = tensors[f"{name}.bn.running_var"]

    def layer(self, name, x, ctx):
        return nnx.relu(self.norms[name](x @ self.kernels[name], ctx))

    def __call__(self, maps, ctx):
        size = maps[0].shape[1:3]
        same = [self.layer(f"convs.{i}", x, ctx) for i, x in enumerate(maps)]
        same = [jax.image.resize(x, (len(x), *size, 20), "bilinear") for x in same]
        joined = self.layer("fusion_conv", jnp.concatenate(same, -1), ctx)
        return joined @ self.last + self.bias[:, None, None]


@pytest.mark.slow
def test_a_published_head(oracles):
    """Logits in training and evaluation, and what one training pass leaves behind."""
    folder = oracles / "tasks" / "segformer_head"
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}")
    expected = np.load(folder / "expected.npz")
    atol = json.loads((folder / "meta.json").read_text())["atol"]
    inputs = np.load(folder / "inputs.npz")
    maps = [jnp.asarray(inputs[f"x{i}"].transpose(0, 2, 3, 1)) for i in range(4)]
    head = Head(files.read_tensors(folder / "checkpoint.safetensors"))
    for name, ctx in (("logits_eval", Context()), ("logits_train", TRAIN)):
        found = head(maps, ctx).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, expected[name], atol=atol[name], rtol=1e-5)
    for name, value in zip(("mean", "var"), stored(head.norms["fusion_conv"]), strict=True):
        key = f"after/fusion_conv.bn.running_{name}"
        np.testing.assert_allclose(value, expected[key], atol=atol[key], rtol=1e-5)
