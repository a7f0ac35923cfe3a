"""The parts that transformers share: patch embedding and residual branches.

A branch holds its own norm and layer scale, so a block reads `x = x + attn(x)`, `x = x + mlp(x)`.
An adapter on a branch therefore sees the un-normed tokens and can ask for `host.norm(x)`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context, drop_path
from dynadapt.layers import ACTIVATIONS, LayerNorm, Linear

Array = jax.Array

_linear = functools.partial(Linear, kernel_init=nnx.initializers.xavier_uniform())


class PatchEmbed(nnx.Module):
    """Linear embedding of square patches, `b H W 3` to `b hw d`, applied as one product.

    `kernel` is `patch patch 3 d`; pixels beyond the last whole patch are an error of the caller.
    """

    def __init__(self, patch: int, dim: int, *, rngs: nnx.Rngs):
        self.patch = patch
        kernel = nnx.initializers.xavier_uniform()(rngs.params(), (patch * patch * 3, dim))
        self.kernel = nnx.Param(kernel.reshape(patch, patch, 3, dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, images: Array, ctx: Context) -> Array:
        b, height, width, _ = images.shape
        p, d = self.patch, self.bias.shape[0]
        h, w = height // p, width // p
        x = images.reshape(b, h, p, w, p, 3).swapaxes(2, 3).reshape(b * h * w, p * p * 3)
        kernel = self.kernel[...].reshape(p * p * 3, d).astype(x.dtype)
        y = x @ kernel + self.bias[...].astype(x.dtype)[None]
        return y.reshape(b, h * w, d)


class LayerScale(nnx.Module):
    """A learned scale of each channel."""

    def __init__(self, dim: int, value: float):
        self.scale = nnx.Param(jnp.full(dim, value))

    def __call__(self, x: Array, ctx: Context) -> Array:
        return x * self.scale[...].astype(x.dtype)[None, None]


class Branch(nnx.Module):
    """A residual branch of `b n d`: norm, `transform`, layer scale where it has one, drop-path."""

    name: str

    def __init__(self, dim: int, *, epsilon: float, layer_scale: float = 0.0, rngs: nnx.Rngs):
        self.dim = dim
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        if layer_scale:
            self.scale = LayerScale(dim, layer_scale)
        self.scaled = bool(layer_scale)

    def __call__(self, x: Array, ctx: Context) -> Array:
        return self.finish(self.transform(self.norm(x, ctx), ctx), ctx)

    def finish(self, y: Array, ctx: Context, stream: str = "") -> Array:
        """What joins the tokens of what was transformed, `b n d`.

        Args:
            y: the transformed tokens.
            ctx: what layers are told.
            stream: tokens beside those of the network are dropped by a choice of their own.
        """
        if self.scaled:
            y = self.scale(y, ctx)
        return drop_path(y, ctx, self.name + stream)


class Pieces(NamedTuple):
    """Tokens in pieces, within which they attend to each other.

    Attributes:
        tokens: `b*m n d`, the pieces of an image one after another.
        count: m.
        ctx: what layers are told inside of a piece, with its grid.
        pairs: further arguments of `mix`, such as bias and mask of pairs of tokens.
        back: brings tokens of all pieces, of any width, to where they came from, `b hw d`.
    """

    tokens: Array
    count: int
    ctx: Context
    pairs: tuple[Any, ...]
    back: Callable[[Array], Array]


class Attention(Branch):
    """Multi-head self-attention; `qkv` is one linear layer whose output is `[q | k | v]`."""

    name = "attn"

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        epsilon: float,
        layer_scale: float = 0.0,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, epsilon=epsilon, layer_scale=layer_scale, rngs=rngs)
        self.heads = heads
        self.qkv = _linear(dim, 3 * dim, use_bias=qkv_bias, rngs=rngs)
        self.proj = _linear(dim, dim, rngs=rngs)

    def transform(self, x: Array, ctx: Context) -> Array:
        pieces = self.cut(x, ctx)
        y = self.mix(self.qkv(pieces.tokens, ctx), *pieces.pairs)
        return pieces.back(self.proj(y, ctx))

    def cut(self, x: Array, ctx: Context) -> Pieces:
        """The normed tokens `b n d` in pieces; here the whole sequence is one."""
        return Pieces(x, 1, ctx, () if ctx.seen is None else (ctx.seen,), lambda y: y)

    def split(self, qkv: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each `b n heads d/heads`, from `b n 3d`."""
        b, n, _ = qkv.shape
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, -1), 2, 0)
        return q, k, v

    def scores(self, q: Array, k: Array) -> Array:
        """Products of queries and keys, each `b n heads d/heads`: `b heads q k` in float32."""
        return jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)

    def mix(self, qkv: Array, seen: Array | None = None) -> Array:
        """Values averaged by attention, heads joined, `b n d`, from `b n 3d`.

        Args:
            qkv: queries, keys and values.
            seen: 0 for tokens `n` that none attends to; None for no such.
        """
        y = dot_product_attention(*self.split(qkv), seen)
        return y.reshape(*y.shape[:2], -1)


class Mlp(Branch):
    """Two linear layers with an activation between them.

    Gated (SwiGLU and its kin), `fc1` is twice as wide, `[a | b]`, and `fc2` sees `act(a) * b`.
    """

    name = "mlp"

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: str = "gelu",
        gated: bool = False,
        epsilon: float,
        layer_scale: float = 0.0,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, epsilon=epsilon, layer_scale=layer_scale, rngs=rngs)
        self.act, self.gated = act, gated
        self.fc1 = _linear(dim, hidden * (2 if gated else 1), rngs=rngs)
        self.fc2 = _linear(hidden, dim, rngs=rngs)

    def transform(self, x: Array, ctx: Context) -> Array:
        return self.fc2(self.activated(self.fc1(x, ctx)), ctx)

    def activated(self, x: Array) -> Array:
        """What `fc2` sees of what `fc1` answers."""
        act = ACTIVATIONS[self.act]
        if self.gated:
            a, b = jnp.split(x, 2, axis=-1)
            return act(a) * b
        return act(x)


class Block(nnx.Module):
    """Attention and MLP, each a residual branch."""

    def __init__(self, attn: Branch, mlp: Branch):
        self.dim = attn.dim
        self.attn, self.mlp = attn, mlp

    def __call__(self, x: Array, ctx: Context) -> Array:
        x = x + self.attn(x, ctx)
        return x + self.mlp(x, ctx)


def dot_product_attention(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
    """Softmax attention of `b n heads k`; where given, `seen` is 0 for keys `n` to be left out.

    On a CUDA GPU in half precision, cuDNN's fused kernel; XLA's products elsewhere, and where keys
    are left out: with a mask cuDNN has no gradients for odd lengths.
    """
    fused = (
        seen is None
        and jax.default_backend() == "gpu"
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128
    )
    mask = None if seen is None else jnp.broadcast_to(seen > 0, (1, 1, 1, k.shape[1]))
    how = "cudnn" if fused else "xla"
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=how)


class Entrance(nnx.Module):
    """Where tokens `b n d` enter the blocks; an adapter here may add leading tokens of its own."""

    def __init__(self, dim: int):
        self.dim = dim

    def __call__(self, x: Array, ctx: Context) -> Array:
        return x
