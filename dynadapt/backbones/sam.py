"""Image encoder of Segment Anything (Kirillov et al., arXiv 2304.02643): ViTDet's backbone.

A plain ViT whose attention stays in windows but for a few global blocks, with relative positions
decomposed into rows and columns, and a convolutional neck.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.backbones import Features, check_block, check_grid, check_numbers, check_patches
from dynadapt.context import Context, fold
from dynadapt.errors import ConfigError
from dynadapt.layers import Conv, LayerNorm, Linear, windows
from dynadapt.layers.resample import linear, resample
from dynadapt.layers.transformer import Attention, Block, Mlp, PatchEmbed

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and options of a SAM image encoder.

    Attributes:
        dim: width d.
        depth: number of blocks.
        heads: attention heads.
        patch: patch side in pixels.
        image_size: side of the square images that the position embeddings are made for.
        grid: rows and columns of the position embeddings where they are no square.
        window: side of the windows in tokens.
        whole: numbers of the blocks whose attention is global.
        neck: channels of the neck's output; 0 for no neck.
        mlp_ratio: hidden width of the MLP over d.
        act: activation of the MLP, a name in `layers.ACTIVATIONS`.
        epsilon: epsilon of the blocks' norms; the neck's is 1e-6 with every publisher.
        levels: numbers of the blocks whose output joins `maps`, before the neck's.
        scan: compile each kind of block once (`context.fold`).
        remat: what blocks recompute in the backward pass, a name in `context.REMAT`.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 1024
    grid: tuple[int, ...] = ()
    window: int = 14
    whole: tuple[int, ...] = (2, 5, 8, 11)
    neck: int = 256
    mlp_ratio: float = 4.0
    act: str = "gelu"
    epsilon: float = 1e-6
    levels: tuple[int, ...] = ()
    scan: bool = False
    remat: str = "none"


VARIANTS = {
    "sam_b16": dict(dim=768, depth=12, heads=12, whole=(2, 5, 8, 11)),
    "sam_l16": dict(dim=1024, depth=24, heads=16, whole=(5, 11, 17, 23)),
    "sam_h16": dict(dim=1280, depth=32, heads=16, whole=(7, 15, 23, 31)),
}


PLAIN = ("position", r"blocks/\d+/attn/(rows|columns)")


def layers(c: Config) -> tuple[str, ...]:
    """What lies at each depth, see `backbones.layers`."""
    return ("embed|position", *(f"blocks/{i}" for i in range(c.depth)))


class RelativeAttention(Attention):
    """Self-attention with relative positions of rows and of columns, in windows or global.

    Attributes:
        window: side of the windows; 0 for global attention.
        rows, columns: one vector a relative position, `2 side - 1, d/heads`.
    """

    def __init__(self, c: Config, *, window: int, rngs: nnx.Rngs):
        super().__init__(c.dim, c.heads, epsilon=c.epsilon, rngs=rngs)
        self.window = window
        rows, columns = (window, window) if window else _grid(c)
        self.rows = nnx.Param(jnp.zeros((2 * rows - 1, c.dim // c.heads)))
        self.columns = nnx.Param(jnp.zeros((2 * columns - 1, c.dim // c.heads)))

    def transform(self, x: Array, ctx: Context) -> Array:
        if not self.window:
            return self.proj(self.mix(self.qkv(x, ctx), ctx.grid), ctx)
        (h, w), (b, _, d), side = ctx.grid, x.shape, self.window
        x = windows.pad(x.reshape(b, h, w, d), side)
        padded = x.shape[1:3]
        y = self.mix(self.qkv(windows.cut(x, side), ctx), (side, side))
        y = windows.join(self.proj(y, ctx), side, padded)
        return y[:, :h, :w].reshape(b, h * w, d)

    def mix(self, qkv: Array, grid: tuple[int, int]) -> Array:
        """Values averaged by attention over maps `b hw 3d` of this grid; heads joined, `b hw d`."""
        (h, w), (b, n, _) = grid, qkv.shape
        q, k, v = self.split(qkv)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        at = q.reshape(b, h, w, self.heads, -1)
        kind = dict(preferred_element_type=jnp.float32)
        rows = jnp.einsum("byxhd,ykd->bhyxk", at, relative(self.rows[...], h, q.dtype), **kind)
        columns = jnp.einsum(
            "byxhd,xkd->bhyxk", at, relative(self.columns[...], w, q.dtype), **kind
        )
        scores = scores.reshape(b, self.heads, h, w, h, w) * q.shape[-1] ** -0.5
        scores = scores + rows[..., :, None] + columns[..., None, :]
        weights = jax.nn.softmax(scores.reshape(b, self.heads, n, n), axis=-1).astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, -1)


def relative(table: Array, side: int, dtype: jnp.dtype) -> Array:
    """The vectors between each two of `side` positions, `side side d`, from a table `2s - 1, d`.

    A table made for another side is linearly resampled first.
    """
    wanted = 2 * side - 1
    if table.shape[0] != wanted:
        table = jnp.asarray(linear(table.shape[0], wanted), table.dtype) @ table
    offsets = np.arange(side)[:, None] - np.arange(side)[None] + side - 1
    return table.astype(dtype)[offsets]


class Neck(nnx.Module):
    """1x1 and 3x3 convolution, each followed by a norm over channels: `b h w d` to `b h w c`."""

    def __init__(self, dim: int, channels: int, *, rngs: nnx.Rngs):
        self.reduce = Linear(dim, channels, use_bias=False, rngs=rngs)
        self.norm1 = LayerNorm(channels, epsilon=1e-6, rngs=rngs)
        self.conv = Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = LayerNorm(channels, epsilon=1e-6, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        x = self.norm1(self.reduce(x, ctx), ctx)
        return self.norm2(self.conv(x, ctx), ctx)


class Backbone(nnx.Module):
    """A SAM image encoder, called on images `b h w 3` normalised as its checkpoint wants.

    Returns `Features` with maps `b h w d` at the chosen levels, then the neck's; no tokens.

    Attributes:
        takes: the field of a batch that it is called on.
    """

    takes = "image"

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        # Tuples even where lists were given: static attributes of a module must be hashable.
        lists = {n: tuple(getattr(config, n)) for n in ("levels", "whole", "grid")}
        c = dataclasses.replace(config, **lists)
        _check(c)
        self.config, self.grid = c, _grid(c)
        self.dim, self.patch, self.image_size, self.prefix = c.dim, c.patch, c.image_size, 0
        self.levels = tuple(sorted({n % c.depth for n in c.levels}))
        self.dims = (c.dim,) * len(self.levels) + (c.neck or c.dim,)
        self.strides = (c.patch,) * len(self.dims)
        self.embed = PatchEmbed(c.patch, c.dim, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((1, *self.grid, c.dim)))
        hidden = round(c.dim * c.mlp_ratio)
        self.blocks = nnx.List(
            Block(
                RelativeAttention(c, window=0 if i in c.whole else c.window, rngs=rngs),
                Mlp(c.dim, hidden, act=c.act, epsilon=c.epsilon, rngs=rngs),
            )
            for i in range(c.depth)
        )
        if c.neck:
            self.neck = Neck(c.dim, c.neck, rngs=rngs)

    @property
    def order(self) -> tuple[str, ...]:
        """What lies at each depth, see `backbones.layers`."""
        return layers(self.config)

    def __call__(self, images: Array, ctx: Context) -> Features:
        c = self.config
        b, height, width, _ = images.shape
        check_patches(height, width, c.patch)
        grid = (height // c.patch, width // c.patch)
        ctx = ctx.replace(grid=grid)
        x = self.embed(images, ctx)
        x = x + self.positions(self.position[...], grid).astype(x.dtype)
        maps, first = [], 0
        for last in sorted({*self.levels, c.depth - 1}):
            options = dict(scan=c.scan, remat=c.remat, first=first, depth=c.depth)
            x = fold(self.blocks[first : last + 1], x, ctx, **options)
            first = last + 1
            if last in self.levels:
                maps.append(x.reshape(b, *grid, c.dim))
        y = x.reshape(b, *grid, c.dim)
        maps.append(self.neck(y, ctx) if c.neck else y)
        return Features(tuple(maps), jnp.zeros((b, 0, c.dim), x.dtype), ctx.tape, self.strides)

    @staticmethod
    def positions(value: Array, grid: tuple[int, int]) -> Array:
        """Position embeddings `1 s s d`, resampled for a grid: `1 hw d`."""
        _, *old, d = value.shape
        return resample(value.reshape(1, -1, d), tuple(old), grid, "antialias")

    def fitted(
        self, path: str, value: np.ndarray, grid: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """A checkpoint's value at this backbone's size: positions and their tables are resampled.

        Tables of windowed blocks fit any image; those of global blocks follow its size. Positions
        have rows and columns, so that `grid` tells nothing new.
        """
        if path == "position" and value.ndim == 4 and value.shape != self.position.shape:
            new = self.positions(jnp.asarray(value, jnp.float32), self.grid)
            return np.asarray(new.reshape(1, *self.grid, -1), value.dtype)
        if path.endswith(("attn/rows", "attn/columns")) and value.ndim == 2:
            attn = self.blocks[int(path.split("/")[1])].attn
            wanted = getattr(attn, path.rpartition("/")[2]).shape[0]
            if value.shape[0] != wanted:
                return (linear(value.shape[0], wanted) @ value).astype(value.dtype)
        return value


def _grid(c: Config) -> tuple[int, ...]:
    return c.grid or (c.image_size // c.patch,) * 2


def _check(c: Config) -> None:
    check_grid(c.grid)
    if c.image_size % c.patch:
        raise ConfigError(f"image size {c.image_size} is not divisible by patch {c.patch}")
    check_numbers("levels", c.levels, c.depth)
    check_numbers("whole", c.whole, c.depth)
    check_block(c.dim, c.heads, c.act)
