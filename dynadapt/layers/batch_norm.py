"""Batch normalisation whose statistics are state: moved by training, constants for a frozen
backbone."""

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context

Array = jax.Array


class StoredNorm(nnx.Module):
    """Batch normalisation of `... d` by stored statistics, which never change (float32 inside)."""

    def __init__(self, dim: int, *, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(dim)), nnx.BatchStat(jnp.ones(dim))

    def __call__(self, x: Array, ctx: Context) -> Array:
        # Statistics are constants, whatever a caller differentiates by.
        mean, var = jax.lax.stop_gradient((self.mean[...], self.var[...]))
        return self.normalised(x, mean, var)

    def normalised(self, x: Array, mean: Array, var: Array) -> Array:
        """`x` by these statistics `d`, then scaled and shifted."""
        row = (1,) * (x.ndim - 1) + (-1,)
        scale, bias, mean, var = (
            v.astype(jnp.float32).reshape(row) for v in (self.scale[...], self.bias[...], mean, var)
        )
        y = (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + self.epsilon)) + bias
        return y.astype(x.dtype)


class BatchNorm(StoredNorm):
    """Batch normalisation of `b ... d` (Ioffe and Szegedy, arXiv 1502.03167), float32 inside.

    In training the statistics are those of the batch, over all devices and without the examples
    that `ctx.mask` leaves out; the stored ones move towards them, the variance unbiased, as
    PyTorch's do. Elsewhere the stored ones are used. It must stand outside of `context.fold`.

    Attributes:
        momentum: part of the stored statistics that a step replaces.
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-5, momentum: float = 0.1):
        super().__init__(dim, epsilon=epsilon)
        self.momentum = momentum

    def __call__(self, x: Array, ctx: Context) -> Array:
        if not ctx.train:
            return super().__call__(x, ctx)
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(jnp.float32)
        mask = jnp.ones(x.shape[0]) if ctx.mask is None else (ctx.mask > 0).astype(jnp.float32)
        mask = mask.reshape(-1, *(1,) * (x.ndim - 1))
        count = mask.sum() * (x[0, ..., 0].size)
        mean = (wide * mask).sum(axes) / jnp.maximum(count, 1.0)
        centred = wide - mean.reshape((1,) * (x.ndim - 1) + (-1,))
        var = (jnp.square(centred) * mask).sum(axes) / jnp.maximum(count, 1.0)
        unbiased = var * count / jnp.maximum(count - 1.0, 1.0)
        for stored, new in ((self.mean, mean), (self.var, unbiased)):
            moved = (1.0 - self.momentum) * stored[...] + self.momentum * new
            stored[...] = jax.lax.stop_gradient(jnp.where(count > 0, moved, stored[...]))
        return self.normalised(x, mean, var)
