"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), pre-norm, with the options of its
descendants.

    block: x + attn(x), then x + mlp(x)

where each branch holds its own norm and layer scale: `attn(x) = ls *
proj(attention(qkv(norm(x))))`. An
adapter on a branch therefore sees the un-normed tokens and can ask for `host.norm(x)`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.backbones import Features
from dynadapt.context import Context, drop_path, fold
from dynadapt.errors import ConfigError
from dynadapt.layers import ACTIVATIONS, LayerNorm, Linear

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
        mlp_ratio: hidden width of the MLP over d.
        class_token: whether a class token leads the sequence.
        registers: number of register tokens after the class token (they get no position).
        sincos: amplitude of the waves that position embeddings start from; 0 starts them random.
        layer_scale: initial value of a learned scale on each branch, or 0 for none.
        act: activation of the MLP, a name in `layers.ACTIVATIONS`.
        epsilon: epsilon of all norms.
        levels: numbers of the blocks whose output joins `maps`; the last block always does.
        scan: compile the block once (`context.fold`).
        remat: recompute blocks in the backward pass (`context.fold`).
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    mlp_ratio: float = 4.0
    class_token: bool = True
    registers: int = 0
    sincos: float = 0.0
    layer_scale: float = 0.0
    act: str = "gelu"
    epsilon: float = 1e-6
    levels: tuple[int, ...] = ()
    scan: bool = False
    remat: bool = False


_SIZES = {
    "ti": dict(dim=192, depth=12, heads=3),
    "s": dict(dim=384, depth=12, heads=6),
    "b": dict(dim=768, depth=12, heads=12),
    "l": dict(dim=1024, depth=24, heads=16),
    "h": dict(dim=1280, depth=32, heads=16),
    "g": dict(dim=1408, depth=40, heads=16, mlp_ratio=48 / 11),
}
VARIANTS = {
    "vit_mini": dict(dim=128, depth=6, heads=4, patch=4, image_size=32, sincos=0.5),
    **{
        f"vit_{name}{patch}": dict(size, patch=patch)
        for name, size in _SIZES.items()
        for patch in (14, 16)
    },
}

_small = nnx.initializers.truncated_normal(0.02)
_linear = functools.partial(Linear, kernel_init=nnx.initializers.xavier_uniform())


class LayerScale(nnx.Module):
    """A learned scale of each channel."""

    def __init__(self, dim: int, value: float):
        self.scale = nnx.Param(jnp.full(dim, value))

    def __call__(self, x: Array, ctx: Context) -> Array:
        return x * self.scale[...].astype(x.dtype)[None, None]


class Branch(nnx.Module):
    """A residual branch: norm, `transform`, layer scale where there is one, drop-path."""

    name: str

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.dim = config.dim
        self.norm = LayerNorm(config.dim, epsilon=config.epsilon, rngs=rngs)
        if config.layer_scale:
            self.scale = LayerScale(config.dim, config.layer_scale)
        self.scaled = bool(config.layer_scale)

    def __call__(self, x: Array, ctx: Context) -> Array:
        y = self.transform(self.norm(x, ctx), ctx)
        if self.scaled:
            y = self.scale(y, ctx)
        return drop_path(y, ctx, self.name)


class Attention(Branch):
    """Multi-head self-attention; `qkv` is one linear layer whose output is `[q | k | v]`."""

    name = "attn"

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.heads = config.heads
        self.qkv = _linear(config.dim, 3 * config.dim, rngs=rngs)
        self.proj = _linear(config.dim, config.dim, rngs=rngs)

    def transform(self, x: Array, ctx: Context) -> Array:
        b, n, d = x.shape
        qkv = self.qkv(x, ctx).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        return self.proj(jax.nn.dot_product_attention(q, k, v).reshape(b, n, d), ctx)


class Mlp(Branch):
    """Two linear layers with an activation between them."""

    name = "mlp"

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        hidden = round(config.dim * config.mlp_ratio)
        self.act = config.act
        self.fc1 = _linear(config.dim, hidden, rngs=rngs)
        self.fc2 = _linear(hidden, config.dim, rngs=rngs)

    def transform(self, x: Array, ctx: Context) -> Array:
        return self.fc2(ACTIVATIONS[self.act](self.fc1(x, ctx)), ctx)


class Block(nnx.Module):
    """Attention and MLP, each a residual branch."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.dim = config.dim
        self.attn = Attention(config, rngs=rngs)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        x = x + self.attn(x, ctx)
        return x + self.mlp(x, ctx)


class PatchEmbed(nnx.Module):
    """Linear embedding of square patches; `kernel` is `patch patch 3 d`, applied as one product."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        p, d = config.patch, config.dim
        self.patch = p
        kernel = nnx.initializers.xavier_uniform()(rngs.params(), (p * p * 3, d))
        self.kernel = nnx.Param(kernel.reshape(p, p, 3, d))
        self.bias = nnx.Param(jnp.zeros(d))

    def __call__(self, images: Array, ctx: Context) -> Array:
        b, height, width, _ = images.shape
        p, d = self.patch, self.bias.shape[0]
        h, w = height // p, width // p
        x = images.reshape(b, h, p, w, p, 3).swapaxes(2, 3).reshape(b * h * w, p * p * 3)
        kernel = self.kernel[...].reshape(p * p * 3, d).astype(x.dtype)
        y = x @ kernel + self.bias[...].astype(x.dtype)[None]
        return y.reshape(b, h * w, d)


class Backbone(nnx.Module):
    """A ViT, called on images `b h w 3` normalised as its checkpoint wants.

    Returns `Features` with maps `b h w d` at the chosen levels and tokens `b p d`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        # A tuple even where a list was given: static attributes of a module must be hashable.
        c = dataclasses.replace(config, levels=tuple(config.levels))
        _check(c)
        self.config = c
        self.dim, self.patch, self.image_size = c.dim, c.patch, c.image_size
        self.prefix = int(c.class_token) + c.registers
        self.levels = tuple(sorted({*(n % c.depth for n in c.levels), c.depth - 1}))
        self.dims = (c.dim,) * len(self.levels)
        self.strides = (c.patch,) * len(self.levels)
        self.embed = PatchEmbed(c, rngs=rngs)
        if c.class_token:
            self.class_token = nnx.Param(jnp.zeros((1, 1, c.dim)))
        if c.registers:
            self.registers = nnx.Param(_small(rngs.params(), (1, c.registers, c.dim)))
        side = c.image_size // c.patch
        tokens = side**2 + int(c.class_token)
        position = _small(rngs.params(), (1, tokens, c.dim))
        if c.sincos:
            position = position.at[:, -side * side :].set(c.sincos * sincos(side, c.dim))
        self.position = nnx.Param(position)
        self.blocks = nnx.List([Block(c, rngs=rngs) for _ in range(c.depth)])
        self.norm = LayerNorm(c.dim, epsilon=c.epsilon, rngs=rngs)

    def __call__(self, images: Array, ctx: Context) -> Features:
        c = self.config
        b, height, width, _ = images.shape
        if height % c.patch or width % c.patch:
            raise ConfigError(f"image size {height}x{width} is not divisible by patch {c.patch}")
        grid = (height // c.patch, width // c.patch)
        x = self.with_tokens(self.embed(images, ctx), grid)
        ctx = ctx.replace(grid=grid, prefix=ctx.prefix + self.prefix)
        maps, first = [], 0
        for level in self.levels:
            blocks = self.blocks[first : level + 1]
            x = fold(
                blocks, x, ctx, scan=c.scan, remat=c.remat, first=first, depth=len(self.blocks)
            )
            first = level + 1
            y = self.norm(x, ctx) if first == len(self.blocks) else x
            maps.append(y[:, -grid[0] * grid[1] :].reshape(b, *grid, c.dim))
        return Features(tuple(maps), y[:, : self.prefix], ctx.tape)

    def with_tokens(self, x: Array, grid: tuple[int, int]) -> Array:
        """Adds positions to patch tokens `b hw d`; class token and registers lead."""
        c = self.config
        side = c.image_size // c.patch
        position = self.position[...]
        if c.class_token:
            first = self.class_token[...] + position[:, :1]
            position = position[:, 1:]
        x = x + resample(position, (side, side), grid).astype(x.dtype)
        leading = [first] if c.class_token else []
        if c.registers:
            leading.append(self.registers[...])
        tokens = [jnp.tile(t.astype(x.dtype), (x.shape[0], 1, 1)) for t in leading]
        return jnp.concatenate([*tokens, x], axis=1)

    def fitted(self, path: str, value: np.ndarray) -> np.ndarray:
        """A checkpoint's value at this backbone's size: position embeddings are resampled."""
        if path != "position" or value.shape == self.position.shape:
            return value
        first = int(self.config.class_token)
        if value.ndim != 3 or value.shape[1] <= first:
            return value
        old = round((value.shape[1] - first) ** 0.5)
        new = self.image_size // self.patch
        if old * old != value.shape[1] - first:
            return value
        patches = resample(jnp.asarray(value[:, first:], jnp.float32), (old, old), (new, new))
        return np.concatenate([value[:, :first], np.asarray(patches)], axis=1)


def sincos(side: int, dim: int) -> Array:
    """Sines and cosines of a grid's rows and columns, `1 side*side d`.

    The dim / 4 frequencies fall geometrically from a period of 4 cells to one of 64.
    """
    rates = (np.pi / 2) * np.geomspace(1.0, 1.0 / 16.0, dim // 4)
    y, x = np.mgrid[:side, :side].reshape(2, -1, 1)
    waves = [np.sin(x * rates), np.cos(x * rates), np.sin(y * rates), np.cos(y * rates)]
    return jnp.asarray(np.concatenate(waves, axis=1)[None], jnp.float32)


def resample(position: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """Position embeddings `1 hw d` of one grid, bicubically resampled (antialiased) for another."""
    if old == new:
        return position
    d = position.shape[-1]
    grid = jax.image.resize(position.reshape(1, *old, d), (1, *new, d), "cubic", antialias=True)
    return grid.reshape(1, -1, d)


def _check(c: Config) -> None:
    if c.image_size % c.patch:
        raise ConfigError(f"image size {c.image_size} is not divisible by patch {c.patch}")
    for level in c.levels:
        if not -c.depth <= level < c.depth:
            raise ConfigError(f"there is no block {level} among {c.depth} to take a level from")
    if c.dim % c.heads:
        raise ConfigError(f"width {c.dim} is not divisible by {c.heads} heads")
    if c.act not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {c.act!r}; choose one of {', '.join(ACTIVATIONS)}")
