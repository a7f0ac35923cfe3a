"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), pre-norm, with the options of its
descendants: DeiT, MAE's encoder (arXiv 2111.06377), DINOv2 (arXiv 2304.07193) with layer scale,
gated MLP and registers (arXiv 2309.16588).

    block: x + attn(x), then x + mlp(x)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.backbones import Features, check_block, check_grid, check_numbers, check_patches
from dynadapt.context import Context, fold
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import LayerNorm
from dynadapt.layers.resample import RULES, resample
from dynadapt.layers.transformer import Attention, Block, Entrance, Mlp, PatchEmbed

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and options of a ViT.

    Attributes:
        dim: width d.
        depth: number of blocks.
        heads: attention heads.
        patch: patch side in pixels.
        image_size: side of the square images that the position embeddings are made for.
        grid: rows and columns of the position embeddings where they are no square.
        mlp_ratio: hidden width of the MLP over d.
        class_token: whether a class token leads the sequence.
        registers: number of register tokens after the class token.
        positioned: how many leading tokens have a position too; None: just the class token.
        sincos: amplitude of the waves that position embeddings start from; 0 starts them random.
        resample: how positions meet another image size, a rule in `resample.RULES`.
        layer_scale: initial value of a learned scale on each branch, or 0 for none.
        act: activation of the MLP, a name in `layers.ACTIVATIONS`.
        gated: whether the MLP is gated (SwiGLU with act "silu").
        epsilon: epsilon of all norms.
        final_norm: whether a norm follows the last block; models that average the patch tokens
            for their classifier may have their norm after that average, in the head.
        levels: numbers of the blocks whose output joins `maps`; the last block always does.
        scan: compile the block once (`context.fold`).
        remat: what blocks recompute in the backward pass, a name in `context.REMAT`.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    grid: tuple[int, ...] = ()
    mlp_ratio: float = 4.0
    class_token: bool = True
    registers: int = 0
    positioned: int | None = None
    sincos: float = 0.0
    resample: str = "antialias"
    layer_scale: float = 0.0
    act: str = "gelu"
    gated: bool = False
    epsilon: float = 1e-6
    final_norm: bool = True
    levels: tuple[int, ...] = ()
    scan: bool = False
    remat: str = "none"


_SIZES = {
    "ti": dict(dim=192, depth=12, heads=3),
    "s": dict(dim=384, depth=12, heads=6),
    "b": dict(dim=768, depth=12, heads=12),
    "l": dict(dim=1024, depth=24, heads=16),
    "h": dict(dim=1280, depth=32, heads=16),
    "g": dict(dim=1408, depth=40, heads=16, mlp_ratio=48 / 11),
}
_DINOV2 = dict(patch=14, image_size=518, layer_scale=1.0, resample="offset")
_REGISTERS = dict(registers=4, resample="antialias")
_SWIGLU = dict(dim=1536, depth=40, heads=24, act="silu", gated=True, mlp_ratio=8 / 3)
VARIANTS = {
    "vit_mini": dict(dim=128, depth=6, heads=4, patch=4, image_size=32, sincos=0.5),
    **{
        f"vit_{name}{patch}": dict(size, patch=patch)
        for name, size in _SIZES.items()
        for patch in (8, 14, 16, 32)
    },
    **{
        f"deit_{name}16_distilled": dict(_SIZES[name], registers=1, positioned=2)
        for name in ("ti", "s", "b")
    },
    "mae_b16": dict(_SIZES["b"], patch=16, resample="cubic"),
    "mae_l16": dict(_SIZES["l"], patch=16, resample="cubic"),
    "mae_h14": dict(_SIZES["h"], patch=14, resample="cubic"),
    **{
        f"dinov2_{name}14{suffix}": dict(size) | _DINOV2 | options
        for name, size in (*((n, _SIZES[n]) for n in "sbl"), ("g", _SWIGLU))
        for suffix, options in (("", {}), ("_reg", _REGISTERS))
    },
}

PLAIN = ("class_token", "registers", "position")

_small = nnx.initializers.truncated_normal(0.02)


def layers(c: Config) -> tuple[str, ...]:
    """What lies at each depth, see `backbones.layers`."""
    return ("embed|class_token|registers|position|enter", *(f"blocks/{i}" for i in range(c.depth)))


def block(c: Config, rngs: nnx.Rngs) -> Block:
    """One block of the network."""
    both = dict(epsilon=c.epsilon, layer_scale=c.layer_scale, rngs=rngs)
    attn = Attention(c.dim, c.heads, **both)
    hidden = round(c.dim * c.mlp_ratio)
    return Block(attn, Mlp(c.dim, hidden, act=c.act, gated=c.gated, **both))


class Backbone(nnx.Module):
    """A ViT, called on images `b h w 3` normalised as its checkpoint wants, or on tokens `b n d` of
    `ctx.grid` that `below` answers: they enter block `ctx.frozen`.

    Returns `Features` with maps `b h w d` at the chosen levels and tokens `b p d`.

    Attributes:
        takes: the field of a batch that it is called on.
        grows: whether blocks may add tokens.
    """

    takes = "image"
    grows = True

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        # A tuple even where a list was given: static attributes of a module must be hashable.
        c = dataclasses.replace(config, levels=tuple(config.levels), grid=tuple(config.grid))
        _check(c)
        self.config = c
        self.dim, self.patch, self.image_size = c.dim, c.patch, c.image_size
        self.prefix = int(c.class_token) + c.registers
        self.levels = tuple(sorted({*(n % c.depth for n in c.levels), c.depth - 1}))
        self.dims = (c.dim,) * len(self.levels)
        self.strides = (c.patch,) * len(self.levels)
        self.embed = PatchEmbed(c.patch, c.dim, rngs=rngs)
        if c.class_token:
            self.class_token = nnx.Param(jnp.zeros((1, 1, c.dim)))
        if c.registers:
            self.registers = nnx.Param(_small(rngs.params(), (1, c.registers, c.dim)))
        self.grid = c.grid or (c.image_size // c.patch,) * 2
        count = math.prod(self.grid)
        self.positioned = int(c.class_token) if c.positioned is None else c.positioned
        position = _small(rngs.params(), (1, self.positioned + count, c.dim))
        if c.sincos:
            position = position.at[:, -count:].set(c.sincos * sincos(self.grid, c.dim))
        self.position = nnx.Param(position)
        self.enter = Entrance(c.dim)
        self.blocks = nnx.List([block(c, rngs) for _ in range(c.depth)])
        if c.final_norm:
            self.norm = LayerNorm(c.dim, epsilon=c.epsilon, rngs=rngs)

    @property
    def order(self) -> tuple[str, ...]:
        """What lies at each depth, see `backbones.layers`."""
        return layers(self.config)

    def __call__(self, images: Array, ctx: Context) -> Features:
        c = self.config
        if images.ndim == 4:
            (x, ctx), first = self.entered(images, ctx), 0
        else:
            x, first = images, ctx.frozen
            ctx = ctx.replace(prefix=x.shape[1] - math.prod(ctx.grid))
        grid, maps = ctx.grid, []
        for level in self.levels:
            blocks = self.blocks[first : level + 1]
            x = fold(
                blocks, x, ctx, scan=c.scan, remat=c.remat, first=first, depth=len(self.blocks)
            )
            first = level + 1
            y = self.norm(x, ctx) if c.final_norm and first == len(self.blocks) else x
            maps.append(y[:, -grid[0] * grid[1] :].reshape(y.shape[0], *grid, c.dim))
        return Features(tuple(maps), y[:, : self.prefix], ctx.tape, self.strides)

    def below(self, images: Array, ctx: Context) -> tuple[Array, Context]:
        """Tokens `b n d` before block `ctx.frozen`, and what that is told."""
        c = self.config
        x, ctx = self.entered(images, ctx)
        return fold(self.blocks[: ctx.frozen], x, ctx, scan=c.scan, depth=c.depth), ctx

    def entered(self, images: Array, ctx: Context) -> tuple[Array, Context]:
        """Tokens `b n d` before the first block, and what that is told."""
        height, width = images.shape[1:3]
        check_patches(height, width, self.patch)
        grid = (height // self.patch, width // self.patch)
        x = self.with_tokens(self.embed(images, ctx), grid)
        ctx = ctx.replace(grid=grid, prefix=self.prefix)
        x = self.enter(x, ctx)
        return x, ctx.replace(prefix=x.shape[1] - grid[0] * grid[1])

    def with_tokens(self, x: Array, grid: tuple[int, int]) -> Array:
        """Adds positions to patch tokens `b hw d`; class token and registers lead."""
        position, count = self.positions(grid).astype(x.dtype), self.positioned
        x = x + position[:, count:]
        if not self.prefix:
            return x
        leading = [self.class_token[...]] if self.config.class_token else []
        leading += [self.registers[...]] if self.config.registers else []
        lead = jnp.concatenate(leading, axis=1).astype(x.dtype)
        lead = jnp.concatenate([lead[:, :count] + position[:, :count], lead[:, count:]], axis=1)
        return jnp.concatenate([jnp.tile(lead, (x.shape[0], 1, 1)), x], axis=1)

    def positions(self, grid: tuple[int, int]) -> Array:
        """Position embeddings of the leading tokens that have one and of a grid, `1 p+hw d`."""
        position, count = self.position[...], self.positioned
        patches = resample(position[:, count:], self.grid, grid, self.config.resample)
        return jnp.concatenate([position[:, :count], patches], axis=1)

    def fitted(
        self, path: str, value: np.ndarray, grid: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """A checkpoint's value at this backbone's size: position embeddings are resampled.

        Args:
            path: of the leaf.
            value: the checkpoint's.
            grid: rows and columns of its positions; where nothing tells them, as many positions
                as this backbone's are of its own grid, and others of a square.
        """
        if path != "position" or value.ndim != 3:
            return value
        lead, patches = np.split(value, [self.positioned], axis=1)
        count = patches.shape[1]
        own = self.grid if count == math.prod(self.grid) else (math.isqrt(count),) * 2
        old = tuple(grid or own)
        if old == self.grid or not count or math.prod(old) != count:
            return value
        patches = jnp.asarray(patches, jnp.float32)
        patches = resample(patches, old, self.grid, self.config.resample)
        return np.concatenate([lead, np.asarray(patches, value.dtype)], axis=1)


def sincos(grid: tuple[int, ...], dim: int) -> Array:
    """Sines and cosines of a grid's rows and columns, `1 hw d`.

    The dim / 4 frequencies fall geometrically from a period of 4 cells to one of 64.
    """
    rates = (np.pi / 2) * np.geomspace(1.0, 1.0 / 16.0, dim // 4)
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
    waves = [np.sin(x * rates), np.cos(x * rates), np.sin(y * rates), np.cos(y * rates)]
    return jnp.asarray(np.concatenate(waves, axis=1)[None], jnp.float32)


def _check(c: Config) -> None:
    check_grid(c.grid)
    if c.image_size % c.patch:
        raise ConfigError(f"image size {c.image_size} is not divisible by patch {c.patch}")
    check_numbers("levels", c.levels, c.depth)
    check_block(c.dim, c.heads, c.act)
    if c.resample not in RULES:
        raise UnknownName("resampling", c.resample, RULES)
    prefix = int(c.class_token) + c.registers
    if c.positioned is not None and not 0 <= c.positioned <= prefix:
        raise ConfigError(
            f"{c.positioned} leading tokens cannot have positions; there are {prefix}"
        )
