"""Moments over batches, against those of all images at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.figures import moments


def gathered(kernels, masks, size):
    """Moments of `l n …`, looked at in batches of `size`."""
    found = moments.Gathered()
    for start in range(0, kernels.shape[1], size):
        part, mask = kernels[:, start : start + size], masks[start : start + size]
        tape = {"kernel": jnp.asarray(part), "prompt": jnp.zeros((2, size, 3))}
        found.add(moments.of_batch(tape, jnp.asarray(mask)), float(mask.sum()))
    return found


def test_moments_of_batches_with_padding():
    """Small deviations of large values: sums of squares in float32 would lose them."""
    rng = np.random.default_rng(0)
    kernels = (30 + 0.01 * rng.normal(size=(2, 12, 3, 3, 4))).astype(np.float32)
    masks = np.ones(12, np.float32)
    masks[[3, 10, 11]] = 0
    kernels[:, masks == 0] = 1e3  # padding is not looked at
    found = gathered(kernels, masks, 4)
    kept = kernels[:, masks > 0].astype(np.float64)
    mean, variance = found.moments["kernel"]
    assert found.count == 9 and list(found.moments) == ["kernel"]
    np.testing.assert_allclose(mean, kept.mean(1), rtol=1e-6)
    np.testing.assert_allclose(variance, kept.var(1), rtol=0.05, atol=1e-9)
    for block, row in enumerate(moments.rows(found.moments)):
        k = kept[block]
        assert row["size"] == pytest.approx(np.sqrt(np.square(k).mean()), rel=1e-6)
        assert row["varies"] == pytest.approx(k.var(0).mean() / np.square(k).mean(), rel=0.01)


def test_constant_kernels_do_not_vary():
    kernels = np.repeat(np.random.default_rng(1).normal(size=(2, 1, 3, 3, 4)), 6, axis=1)
    found = gathered(kernels.astype(np.float32), np.ones(6, np.float32), 3)
    assert [row["varies"] < 1e-12 for row in moments.rows(found.moments)] == [True, True]


def test_a_batch_of_padding_alone_adds_nothing():
    kernels = (
        np.ones((1, 4, 1, 1, 1), np.float32) * np.array([1, 3, 9, 9])[None, :, None, None, None]
    )
    found = gathered(kernels.astype(np.float32), np.array([1, 1, 0, 0], np.float32), 2)
    mean, variance = found.moments["kernel"]
    assert (found.count, float(mean.squeeze()), float(variance.squeeze())) == (2, 2, 1)
