"""Frozen matrices in 8 or 4 bits, that are made whole where they are used.

int8   whole numbers up to 127, with a float32 scale for each output channel
nf4    one of 16 levels (Dettmers et al., arXiv 2305.14314, appendix E), two to a byte, with a
       float32 scale for each 64 values along the input: 4.5 bits a value; scales are not
       quantised once more
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

KINDS = ("int8", "nf4")
BLOCK = 64
# Quantiles of the standard normal distribution within -1 and 1, with a level for 0.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A matrix in few bits; an index such as `[...]` answers float32 values.

    Attributes:
        codes: int8 of the matrix's shape; or uint8 `n 32 out`, two codes a byte.
        scale: float32, `out`; or `n out`, of each block.
        shape: of the matrix, whose last axis is that of output channels.
    """

    codes: Array
    scale: Array
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))

    def __getitem__(self, index: Any) -> Array:
        return unpack(self)[index]


def is_packed(value: Any) -> bool:
    """Whether a value is a packed matrix."""
    return isinstance(value, Packed)


def pack(matrix: Any, kind: str) -> Packed:
    """A matrix `... out` in few bits; of shapes, shapes."""
    if isinstance(matrix, jax.ShapeDtypeStruct):
        return jax.eval_shape(functools.partial(_pack, kind=kind), matrix)
    return _pack(matrix, kind=kind)


@functools.partial(jax.jit, static_argnames="kind")
def _pack(matrix: Array, kind: str) -> Packed:
    out = matrix.shape[-1]
    rows = matrix.astype(jnp.float32).reshape(-1, out)
    if kind == "int8":
        scale = jnp.abs(rows).max(0) / 127
        codes = jnp.round(rows / _divisor(scale)[None]).astype(jnp.int8)
        return Packed(codes.reshape(matrix.shape), scale, matrix.shape)
    rows = jnp.pad(rows, ((0, -len(rows) % BLOCK), (0, 0))).reshape(-1, BLOCK, out)
    scale = jnp.abs(rows).max(1)
    unit = rows / _divisor(scale)[:, None]
    middle = [(a + b) / 2 for a, b in zip(LEVELS, LEVELS[1:], strict=False)]
    codes = sum((unit > m).astype(jnp.uint8) for m in middle)
    low, high = jnp.split(codes, 2, axis=1)
    return Packed(low | high << 4, scale, matrix.shape)


def _divisor(scale: Array) -> Array:
    """The scale; 1 for what is zero throughout."""
    return jnp.where(scale > 0, scale, 1.0)


def unpack(packed: Packed) -> Array:
    """The matrix in float32."""
    codes, scale, shape = packed.codes, packed.scale, packed.shape
    if codes.dtype == jnp.int8:
        return codes * scale.reshape((1,) * (len(shape) - 1) + (-1,))
    halves = jnp.concatenate([codes & 15, codes >> 4], axis=1)
    rows = (_level(halves) * scale[:, None]).reshape(-1, shape[-1])
    return rows[: math.prod(shape[:-1])].reshape(shape)


def _level(codes: Array) -> Array:
    """The level of each code, by a choice a bit: accelerators are slow at looking up a table."""
    values = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 > 0
        values = [jnp.where(odd, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def frugal(call: Callable[..., Any], kernel: Any) -> Callable[..., Any]:
    """A layer's call, which makes a packed kernel whole anew for the gradient, and keeps none."""
    return jax.checkpoint(call) if is_packed(kernel.get_value()) else call
