"""Swin Transformer (Liu et al., arXiv 2103.14030), version 1, for images of any size.

Four stages of blocks whose attention stays in windows; every second block shifts its windows. The
implementations in use differ where a map is no multiple of the window, and where it is not larger
than one window; `Config.pad` and `Config.small` say whose rule holds.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.backbones import Features, check_block
from dynadapt.context import Context, fold
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import LayerNorm, Linear, windows
from dynadapt.layers.resample import resample
from dynadapt.layers.transformer import Attention, Block, Mlp, PatchEmbed, Pieces

Array = jax.Array

PAD = ("pad_then_shift", "shift_then_pad")
SMALL = ("built", "run", "never")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and options of a Swin Transformer.

    Attributes:
        dim: width of the first stage; each later one is twice as wide.
        depths: number of blocks of each stage.
        heads: attention heads of each stage.
        window: side of the windows in tokens.
        patch: patch side in pixels.
        image_size: side of the images that the checkpoint is made for.
        mlp_ratio: hidden width of the MLP over the stage's.
        act: activation of the MLP, a name in `layers.ACTIVATIONS`.
        epsilon: epsilon of all norms.
        pad: what comes first where a map is no multiple of the window: "pad_then_shift"
            (Microsoft's detection code, Hugging Face) or "shift_then_pad" (timm).
        small: a stage whose map is not larger than a window does not shift and shrinks its
            window; judged at `image_size` ("built": Microsoft's classification code, timm), at
            the size of each call ("run": Hugging Face), or "never" (detection code).
        level_norms: whether each stage's map has a norm of its own (detection checkpoints)
            instead of one norm after the last stage.
        scan: compile each kind of block once a stage (`context.fold`).
        remat: what blocks recompute in the backward pass, a name in `context.REMAT`.
    """

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch: int = 4
    image_size: int = 224
    mlp_ratio: float = 4.0
    act: str = "gelu"
    epsilon: float = 1e-5
    pad: str = "pad_then_shift"
    small: str = "built"
    level_norms: bool = False
    scan: bool = False
    remat: str = "none"


_SIZES = {
    "t": dict(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "s": dict(dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "b": dict(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "l": dict(dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}
VARIANTS = {
    **{f"swin_{name}": dict(size) for name, size in _SIZES.items()},
    **{f"swin_{n}_384": dict(_SIZES[n], window=12, image_size=384) for n in "bl"},
}


PLAIN = (r"stages/\d+/blocks/\d+/attn/bias_table",)


def layers(c: Config) -> tuple[str, ...]:
    """What lies at each depth, see `backbones.layers`; a merging is as deep as the block before."""
    found = ["embed"]
    for stage, count in enumerate(c.depths):
        found += [f"stages/{stage}/blocks/{i}" for i in range(count)]
        found[-1] += f"|stages/{stage}/merge"
    return tuple(found)


class WindowAttention(Attention):
    """Self-attention inside windows with a learned bias for each offset between two tokens.

    Attributes:
        window: side of the windows.
        shift: tokens by which the windows are shifted; 0 for none.
        bias_table: biases `(2 window - 1)^2 heads`.
    """

    def __init__(self, c: Config, stage: int, shifted: bool, *, rngs: nnx.Rngs):
        super().__init__(c.dim * 2**stage, c.heads[stage], epsilon=c.epsilon, rngs=rngs)
        side = -(-c.image_size // (c.patch * 2**stage))
        self.pad, self.small = c.pad, c.small
        self.window, self.shift = c.window, c.window // 2 if shifted else 0
        if c.small == "built" and side <= c.window:
            self.window, self.shift = side, 0
        offsets = (2 * self.window - 1) ** 2
        init = nnx.initializers.truncated_normal(0.02)
        self.bias_table = nnx.Param(init(rngs.params(), (offsets, self.heads)))

    def cut(self, x: Array, ctx: Context) -> Pieces:
        """The tokens in windows, each a piece."""
        b, (side, shift) = x.shape[0], self.windows(ctx.grid)
        x, grid = self.split_windows(x.reshape(b, *ctx.grid, -1), side, shift)
        mask = windows.shift_mask(grid, side, shift) if shift else None

        def back(y: Array) -> Array:
            y = self.merge_windows(y, side, shift, grid, ctx.grid)
            return y.reshape(y.shape[0], -1, y.shape[-1])

        inside, pairs = ctx.replace(grid=(side, side)), (self.bias(side), mask)
        return Pieces(x, x.shape[0] // b, inside, pairs, back)

    def windows(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Side and shift of the windows on a map of this size."""
        if self.small == "run" and min(grid) <= self.window:
            return min(grid), 0
        return self.window, self.shift

    def split_windows(self, x: Array, side: int, shift: int) -> tuple[Array, tuple[int, int]]:
        """Windows `b*m side*side d` of padded, shifted maps `b h w d`, and the padded grid."""
        if shift and self.pad == "shift_then_pad":
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        x = windows.pad(x, side)
        if shift and self.pad == "pad_then_shift":
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        return windows.cut(x, side), x.shape[1:3]

    def merge_windows(
        self, x: Array, side: int, shift: int, padded: tuple[int, int], grid: tuple[int, int]
    ) -> Array:
        """Undoes `split_windows`: maps `b h w d` without padding."""
        x = windows.join(x, side, padded)
        if self.pad == "shift_then_pad":
            x = x[:, : grid[0], : grid[1]]
        if shift:
            x = jnp.roll(x, (shift, shift), (1, 2))
        return x[:, : grid[0], : grid[1]]

    def bias(self, side: int) -> Array:
        """Bias of each pair of tokens in a window of this side, `heads side*side side*side`."""
        n = side * side
        pairs = self.bias_table[...][offsets(side, self.window).reshape(-1)]
        return pairs.reshape(n, n, self.heads).transpose(2, 0, 1)

    def mix(self, qkv: Array, bias: Array, mask: np.ndarray | None) -> Array:
        """Values averaged by attention within windows `b*m n 3d`; heads joined, `b*m n d`.

        Args:
            qkv: queries, keys and values of all windows.
            bias: `heads n n`, joins the scores.
            mask: `m n n`, which pairs meet; None for all.
        """
        q, k, v = self.split(qkv)
        scores = self.scores(q, k) * q.shape[-1] ** -0.5 + bias.astype(jnp.float32)[None]
        if mask is not None:
            # Every window of an image has its own mask; -100 as in the published code.
            b, h, n, _ = scores.shape
            hidden = jnp.where(mask, 0.0, -100.0).astype(jnp.float32)[None, :, None]
            scores = (scores.reshape(-1, len(mask), h, n, n) + hidden).reshape(b, h, n, n)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return y.reshape(*y.shape[:2], -1)


@functools.cache
def offsets(side: int, window: int) -> np.ndarray:
    """Row of the bias table of `window` for each pair of tokens of a window of `side`, `n n`."""
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    dy, dx = (v[:, None] - v[None] + window - 1 for v in (y, x))
    return dy * (2 * window - 1) + dx


class Merging(nnx.Module):
    """Patch merging: each 2x2 patches become one of twice the width, `b hw d` to `b hw/4 2d`.

    Maps with odd sides get a row or column of zeros.
    """

    def __init__(self, dim: int, *, epsilon: float, rngs: nnx.Rngs):
        self.dim = dim
        self.norm = LayerNorm(4 * dim, epsilon=epsilon, rngs=rngs)
        self.reduction = Linear(4 * dim, 2 * dim, use_bias=False, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        b, _, d = x.shape
        x = windows.pad(x.reshape(b, *ctx.grid, d), 2)
        _, h, w, _ = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(b, -1, 4 * d), ctx), ctx)

    def behind(self, ctx: Context) -> Context:
        """What layers behind it are told."""
        return ctx.replace(grid=tuple(-(-side // 2) for side in ctx.grid))


class Stage(nnx.Module):
    """Blocks of one width; all but the last stage end in a merging, which the backbone calls."""

    def __init__(self, c: Config, number: int, *, rngs: nnx.Rngs):
        self.dim, self.heads = c.dim * 2**number, c.heads[number]
        hidden = round(self.dim * c.mlp_ratio)
        self.blocks = nnx.List(
            Block(
                WindowAttention(c, number, shifted=j % 2 == 1, rngs=rngs),
                Mlp(self.dim, hidden, act=c.act, epsilon=c.epsilon, rngs=rngs),
            )
            for j in range(c.depths[number])
        )
        if number + 1 < len(c.depths):
            self.merge = Merging(self.dim, epsilon=c.epsilon, rngs=rngs)


class Embed(PatchEmbed):
    """Patch embedding with a norm; images are padded to whole patches."""

    def __init__(self, c: Config, *, rngs: nnx.Rngs):
        super().__init__(c.patch, c.dim, rngs=rngs)
        self.norm = LayerNorm(c.dim, epsilon=c.epsilon, rngs=rngs)

    def __call__(self, images: Array, ctx: Context) -> Array:
        return self.norm(super().__call__(windows.pad(images, self.patch), ctx), ctx)


class Backbone(nnx.Module):
    """A Swin Transformer, called on images `b h w 3` normalised as its checkpoint wants.

    Returns `Features` with one map `b h w d` a stage, at strides 4, 8, 16, 32; no tokens.

    Attributes:
        takes: the field of a batch that it is called on.
    """

    takes = "image"

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        # Tuples even where lists were given: static attributes of a module must be hashable.
        c = dataclasses.replace(config, depths=tuple(config.depths), heads=tuple(config.heads))
        _check(c)
        count = len(c.depths)
        self.config, self.patch, self.image_size, self.prefix = c, c.patch, c.image_size, 0
        self.dims = tuple(c.dim * 2**i for i in range(count))
        self.strides = tuple(c.patch * 2**i for i in range(count))
        self.dim = self.dims[-1]
        self.embed = Embed(c, rngs=rngs)
        self.stages = nnx.List([Stage(c, i, rngs=rngs) for i in range(count)])
        if c.level_norms:
            norms = [LayerNorm(d, epsilon=c.epsilon, rngs=rngs) for d in self.dims]
            self.norms = nnx.List(norms)
        else:
            self.norm = LayerNorm(self.dim, epsilon=c.epsilon, rngs=rngs)

    @property
    def order(self) -> tuple[str, ...]:
        """What lies at each depth, see `backbones.layers`."""
        return layers(self.config)

    def __call__(self, images: Array, ctx: Context) -> Features:
        c = self.config
        x, ctx = self.entered(images, ctx)
        maps, first = [], 0
        for number, stage in enumerate(self.stages):
            options = dict(scan=c.scan, remat=c.remat, first=first, depth=sum(c.depths))
            x = fold(stage.blocks, x, ctx, **options)
            maps.append(self.level(x, number, ctx).reshape(x.shape[0], *ctx.grid, -1))
            first += len(stage.blocks)
            if number + 1 < len(self.stages):
                x, ctx = stage.merge(x, ctx), stage.merge.behind(ctx)
        return Features(
            tuple(maps), jnp.zeros((x.shape[0], 0, self.dim), x.dtype), ctx.tape, self.strides
        )

    def entered(self, images: Array, ctx: Context) -> tuple[Array, Context]:
        """Tokens `b hw d` before the first block, and what that is told."""
        grid = tuple(-(-side // self.patch) for side in images.shape[1:3])
        return self.embed(images, ctx), ctx.replace(grid=grid)

    def level(self, x: Array, number: int, ctx: Context) -> Array:
        """What a stage's tokens `b hw d` are to the outside: normed where it has a norm."""
        if self.config.level_norms:
            return self.norms[number](x, ctx)
        return self.norm(x, ctx) if number + 1 == len(self.stages) else x

    def fitted(
        self, path: str, value: np.ndarray, grid: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """A checkpoint's value at this backbone's size: bias tables are resampled.

        There are no position embeddings that `grid` would tell of.
        """
        if not path.endswith("/bias_table") or value.ndim != 2:
            return value
        stage, block = (int(n) for n in path.split("/")[1:4:2])
        window = self.stages[stage].blocks[block].attn.window
        old, new = round(value.shape[0] ** 0.5), 2 * window - 1
        if old == new or old * old != value.shape[0]:
            return value
        grid = jnp.asarray(value, jnp.float32)[None]
        return np.asarray(resample(grid, (old, old), (new, new), "cubic")[0], value.dtype)


def _check(c: Config) -> None:
    if len(c.depths) != len(c.heads):
        raise ConfigError(f"{len(c.depths)} stages need as many entries in heads, not {c.heads}")
    for i, heads in enumerate(c.heads):
        check_block(c.dim * 2**i, heads, c.act)
    for what, value, choices in (("pad", c.pad, PAD), ("small", c.small, SMALL)):
        if value not in choices:
            raise UnknownName(what, value, choices)
