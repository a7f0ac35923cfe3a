"""Convolution, batch normalisation and ReLU, what dense heads are made of."""

from typing import Any

import jax
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers import Conv, Linear
from dynadapt.layers.batch_norm import BatchNorm

Array = jax.Array


class ConvNorm(nnx.Module):
    """A convolution, batch norm and ReLU: `b h w d` to `b h w o`, of the same size.

    Args:
        dim: d.
        out: o.
        side: of the kernel; 1 is a linear layer at every position.
        use_bias: whether the convolution has one, which the norm takes away again in training.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        side: int = 1,
        *,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if side == 1:
            self.conv = Linear(dim, out, use_bias=use_bias, rngs=rngs, **options)
        else:
            self.conv = Conv(dim, out, (side, side), use_bias=use_bias, rngs=rngs, **options)
        self.norm = BatchNorm(out)

    def __call__(self, x: Array, ctx: Context) -> Array:
        return jax.nn.relu(self.norm(self.conv(x, ctx), ctx))
