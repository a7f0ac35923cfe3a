"""Point-MAE's encoder (Pang et al., arXiv 2203.06604): a transformer over groups of points.

centres by farthest point sampling, the nearest points of each as one group
token: mini-PointNet of the group, relative to its centre
block: x + position, then + attn, then + mlp; the position of the centre joins at every block
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.backbones import Features, check_block, check_numbers
from dynadapt.context import Context, fold
from dynadapt.errors import ConfigError
from dynadapt.layers import ACTIVATIONS, LayerNorm, Linear
from dynadapt.layers.batch_norm import StoredNorm
from dynadapt.layers.transformer import Attention, Block, Entrance, Mlp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and options of the encoder.

    Attributes:
        dim: width d.
        depth: number of blocks.
        heads: attention heads.
        groups: number g of groups, and so of tokens.
        group_size: number k of points in a group; groups may overlap.
        embed: width of the first layer of the mini-PointNet; the others have 2, 4 and 4 times that.
        mlp_ratio: hidden width of the MLP over d.
        class_token: whether a class token leads the sequence; pre-trained encoders have none.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        epsilon: epsilon of all norms.
        act: activation of the MLP, a name in `layers.ACTIVATIONS`.
        dtype: of all that follows the grouping, or "" for that of the points. The points themselves
            should be float32: rounded coordinates are other groups.
        levels: numbers of the blocks whose output joins `maps`; the last block always does.
        scan: compile the block once (`context.fold`).
        remat: what blocks recompute in the backward pass, a name in `context.REMAT`.
    """

    dim: int = 384
    depth: int = 12
    heads: int = 6
    groups: int = 64
    group_size: int = 32
    embed: int = 128
    mlp_ratio: float = 4.0
    class_token: bool = True
    qkv_bias: bool = False
    epsilon: float = 1e-5
    act: str = "gelu"
    dtype: str = ""
    levels: tuple[int, ...] = ()
    scan: bool = False
    remat: str = "none"


_SMALL = dict(dim=384, depth=12, heads=6, group_size=32)
VARIANTS = {
    # Of 1024 points: pre-training on ShapeNet, fine-tuning on ModelNet40.
    "point_mae_s": dict(_SMALL, groups=64),
    # Of 2048 points: fine-tuning on ScanObjectNN.
    "point_mae_s_g128": dict(_SMALL, groups=128),
    # Of 512 points; ours, it comes with the package.
    "point_mini": dict(dim=128, depth=5, heads=4, groups=32, group_size=16, embed=32),
}

PLAIN = ("class_token", "class_position")

_small = nnx.initializers.truncated_normal(0.02)


def layers(c: Config) -> tuple[str, ...]:
    """What lies at each depth, see `backbones.layers`."""
    first = "embed|position|class_token|class_position|enter"
    return (first, *(f"blocks/{i}" for i in range(c.depth)))


def farthest_points(points: Array, groups: int) -> Array:
    """Numbers `g` of points of a cloud `n 3`, each farthest from all before it; point 0 is first.

    The plain definition, in float32, with O(n) memory. The CUDA sampler behind the published
    results (pointnet2_ops) also never picks a point with squared norm <= 1e-3, which is how it
    knows padding; points that near the origin are points like others here.
    """
    x, y, z = jax.lax.stop_gradient(jnp.asarray(points, jnp.float32)).T
    numbers = jnp.arange(len(x), dtype=jnp.int32)

    def pick(distance: Array, _: None) -> tuple[Array, Array]:
        # The first of the farthest, without `argmax`, which on CPU takes several times as long. The
        # distances were computed in the turn before: were they computed twice, once for each
        # operand, they could be rounded differently and no point be the farthest.
        far = jnp.where(distance == distance.max(), numbers, len(x)).min()
        own = jnp.square(x - x[far]) + jnp.square(y - y[far]) + jnp.square(z - z[far])
        return jax.lax.optimization_barrier(jnp.minimum(distance, own)), far

    return jax.lax.scan(pick, jnp.full(len(x), jnp.inf), length=groups)[1]


def nearest(points: Array, centers: Array, k: int) -> Array:
    """Numbers `g k` of the points of a cloud `n 3` nearest to each of the centres `g 3`.

    Nearest first; of equally near points, the one that comes first in the cloud.
    """
    points = jax.lax.stop_gradient(jnp.asarray(points, jnp.float32))
    centers = jax.lax.stop_gradient(jnp.asarray(centers, jnp.float32))
    distances = jax.vmap(_squared_distances, (None, 0))(points, centers)
    return jax.lax.top_k(-distances, k)[1]


def group(points: Array, groups: int, size: int) -> tuple[Array, Array]:
    """Centres `g 3` of a cloud `n 3`, and the points around each relative to it, `g k 3`."""
    points = jnp.asarray(points)
    centers = points[farthest_points(points, groups)]
    around = points[nearest(points, centers, size)]
    return centers, around - centers[:, None]


def _squared_distances(points: Array, center: Array) -> Array:
    """Squared distances `n` of points `n 3` from one point."""
    return jnp.square(points - center[None]).sum(-1)


class PointEmbed(nnx.Module):
    """Mini-PointNet: groups of points `b g k 3` to tokens `b g d`, whatever the order in a group.

    Two layers a point and a maximum over the group, which joins each point for two layers more.
    """

    def __init__(self, dim: int, width: int, *, epsilon: float, rngs: nnx.Rngs):
        self.conv1 = Linear(3, width, rngs=rngs)
        self.norm1 = StoredNorm(width, epsilon=epsilon)
        self.conv2 = Linear(width, 2 * width, rngs=rngs)
        self.conv3 = Linear(4 * width, 4 * width, rngs=rngs)
        self.norm2 = StoredNorm(4 * width, epsilon=epsilon)
        self.conv4 = Linear(4 * width, dim, rngs=rngs)

    def __call__(self, groups: Array, ctx: Context) -> Array:
        x = self.conv2(nnx.relu(self.norm1(self.conv1(groups, ctx), ctx)), ctx)
        whole = jnp.broadcast_to(x.max(2, keepdims=True), x.shape)
        x = jnp.concatenate([whole, x], axis=-1)  # b g k 4w
        x = self.conv4(nnx.relu(self.norm2(self.conv3(x, ctx), ctx)), ctx)
        return x.max(2)


class Position(nnx.Module):
    """Position embeddings `b g d` of centres `b g 3`."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(3, 128, rngs=rngs)
        self.fc2 = Linear(128, dim, rngs=rngs)

    def __call__(self, centers: Array, ctx: Context) -> Array:
        return self.fc2(ACTIVATIONS["gelu"](self.fc1(centers, ctx)), ctx)


def block(c: Config, rngs: nnx.Rngs) -> Block:
    """One block of the encoder."""
    attn = Attention(c.dim, c.heads, qkv_bias=c.qkv_bias, epsilon=c.epsilon, rngs=rngs)
    hidden = round(c.dim * c.mlp_ratio)
    return Block(attn, Mlp(c.dim, hidden, act=c.act, epsilon=c.epsilon, rngs=rngs))


class Backbone(nnx.Module):
    """The encoder, called on point clouds `b n 3`.

    Returns `Features` with group features `b g d` at the chosen levels as `maps`, and tokens
    `b p d`: the class token, where there is one, and the prompts that adapters on blocks may have
    added between it and the groups. Layers see the groups as a grid `(g, 1)`.

    Attributes:
        takes: the field of a batch that it is called on.
        grows: whether blocks may add tokens.
        fresh: leaves that pre-trained weights may lack; they keep their initial values.
    """

    takes = "points"
    grows = True
    fresh = ("class_token", "class_position")

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        # A tuple even where a list was given: static attributes of a module must be hashable.
        c = dataclasses.replace(config, levels=tuple(config.levels))
        _check(c)
        self.config = c
        self.dim, self.prefix = c.dim, int(c.class_token)
        self.levels = tuple(sorted({*(n % c.depth for n in c.levels), c.depth - 1}))
        self.dims = (c.dim,) * len(self.levels)
        self.embed = PointEmbed(c.dim, c.embed, epsilon=c.epsilon, rngs=rngs)
        self.position = Position(c.dim, rngs=rngs)
        if c.class_token:
            self.class_token = nnx.Param(_small(rngs.params(), (1, 1, c.dim)))
            self.class_position = nnx.Param(_small(rngs.params(), (1, 1, c.dim)))
        self.enter = Entrance(c.dim)
        self.blocks = nnx.List([block(c, rngs) for _ in range(c.depth)])
        self.norm = LayerNorm(c.dim, epsilon=c.epsilon, rngs=rngs)

    @property
    def order(self) -> tuple[str, ...]:
        """What lies at each depth, see `backbones.layers`."""
        return layers(self.config)

    def __call__(self, points: Array, ctx: Context) -> Features:
        c = self.config
        if points.ndim != 3 or points.shape[2] != 3:
            raise ConfigError(f"point clouds must be of shape b n 3, not {points.shape}")
        if points.shape[1] < max(c.groups, c.group_size):
            raise ConfigError(
                f"{points.shape[1]} points are too few for {c.groups} groups of {c.group_size}"
            )
        centers, groups = jax.vmap(lambda cloud: group(cloud, c.groups, c.group_size))(points)
        places = points, centers
        centers, groups = (v.astype(c.dtype or points.dtype) for v in (centers, groups))
        x, position = self.with_class(self.embed(groups, ctx), self.position(centers, ctx))

        # The position is closed over, so that a block stays a module of tokens alone and a scan
        # over blocks stacks parameters only.
        def positioned(block: Block, x: Array, ctx: Context) -> Array:
            return block(x + self.stretched(position, x.shape[1]), ctx)

        ctx = ctx.replace(grid=(c.groups, 1), prefix=self.prefix)
        x = self.enter(x, ctx)
        ctx = ctx.replace(prefix=x.shape[1] - c.groups)
        blocks = [jax.tree_util.Partial(positioned, b) for b in self.blocks]
        maps, first = [], 0
        for level in self.levels:
            some = blocks[first : level + 1]
            x = fold(some, x, ctx, scan=c.scan, remat=c.remat, first=first, depth=len(blocks))
            first = level + 1
            y = self.norm(x, ctx) if first == len(blocks) else x
            maps.append(y[:, -c.groups :])
        return Features(tuple(maps), y[:, : -c.groups], ctx.tape, places=places)

    def stretched(self, position: Array, n: int) -> Array:
        """Positions `b p+g d` for n tokens, `b n d`: zeros for prompts, which stand behind p."""
        b, known, d = position.shape
        prompts = jnp.zeros((b, n - known, d), position.dtype)
        first, groups = position[:, : self.prefix], position[:, self.prefix :]
        return jnp.concatenate([first, prompts, groups], axis=1)

    def with_class(self, x: Array, position: Array) -> tuple[Array, Array]:
        """The class token before tokens `b g d`, and its position before theirs."""
        if not self.prefix:
            return x, position

        def lead(first: Array, rest: Array) -> Array:
            first = jnp.tile(first.astype(rest.dtype), (rest.shape[0], 1, 1))
            return jnp.concatenate([first, rest], axis=1)

        return lead(self.class_token[...], x), lead(self.class_position[...], position)


def _check(c: Config) -> None:
    check_numbers("levels", c.levels, c.depth)
    check_block(c.dim, c.heads, c.act)
    if c.groups < 1 or c.group_size < 1:
        raise ConfigError(f"{c.groups} groups of {c.group_size} points are none; both must be 1+")
    if c.embed < 1:
        raise ConfigError(f"embed must be at least 1, not {c.embed}")
