"""MTLoRA (Agiza et al., arXiv 2403.20320): tasks that share a pass and part at each stage's end.

    y   = W x + b + s B A x                     every linear layer of the blocks: what tasks share
    y_t = W x + b + s B_t A_t x_t               besides, proj, fc1, fc2 of a stage's last block

x_t is what the layer before answered task t, and x at proj. The streams of the tasks have residual
sums of their own, go through the same patch merging as x, and end there: x alone enters the next
stage. Norms, tables of relative positions, the patch embedding and the reductions of patch merging
train besides. Count of the adapters on Swin with T tasks: 16 r sum of d over blocks
+ 12 T r_t sum of d over stages.

Ours: a ViT has its blocks in four stages without merging, its streams keep the leading tokens, and
their end goes through the final norm. Without names of tasks there is one, and no name.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.adapters import (
    BLOCK,
    check_among,
    check_least,
    check_rank,
    check_rate,
    rank_of_width,
)
from dynadapt.adapters.lora import SITES, LowRank
from dynadapt.attach import Adapted, attach, sites
from dynadapt.context import Context, dropout, fold
from dynadapt.errors import AttachError, ConfigError
from dynadapt.layers import kaiming
from dynadapt.layers.features import Features
from dynadapt.layers.transformer import Branch, Mlp, Pieces

Array = jax.Array
# What the setting `train` chooses among.
TRAINS = {
    "norms": (rf"{BLOCK}/(attn|mlp)/norm/.*", r"stages/\d+/merge/norm/.*", "embed/norm/.*"),
    "tables": (rf"{BLOCK}/attn/bias_table",),
    "embed": ("embed/(kernel|bias)",),
    "merge": (r"stages/\d+/merge/reduction/kernel",),
}
NOT_MERGEABLE = "each task has weights of its own"

LINEARS = ("qkv", "proj", "fc1", "fc2")
STAGES = 4  # of a backbone that has none


class SharedLinear(nnx.Module):
    """Host: a linear layer; the low-rank increment that all tasks share."""

    def __init__(self, host, *, rank: int, scale: float, rate: float, site: str, rngs: nnx.Rngs):
        self.low = LowRank(host.in_features, host.out_features, rank, rngs=rngs)
        self.scale, self.rate = scale, rate
        # The sites of one block share a key: each needs a mask of its own.
        self.site = f"tasks/{site}"

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        return host.bare(x, ctx) + self.scale * self.low(self.thin(x, ctx))

    def thin(self, x: Array, ctx: Context) -> Array:
        """What A sees of the layer's input while training."""
        return dropout(x, self.rate, ctx, self.site)

    def part(
        self, host: nnx.Module, x: Array, thinned: Array, streams: Array, ctx: Context, pieces: int
    ) -> tuple[Array, Array]:
        """What the layer answers tokens and streams; frozen weights see the tokens alone.

        Args:
            host: the layer.
            x: tokens `b*m n d`, in m pieces an image.
            thinned: what A sees of them.
            streams: `b*m t n d`.
            ctx: what layers are told inside of a piece.
            pieces: m.
        """
        base = host.bare(x, ctx)
        each = base[:, None] + self.scale * self.increments(streams, ctx, pieces)
        return base + self.scale * self.low(thinned), each

    def increments(self, streams: Array, ctx: Context, pieces: int) -> Array:
        """What tasks add, before s, `b*m t n o`."""
        raise NotImplementedError


class TaskLinear(SharedLinear):
    """Host: a linear layer of a stage's last block; each task has factors of its own too.

    `a` is `t d_in r`, `b` is `t r d_out`, zero at the start.
    """

    def __init__(self, host, *, tasks: int, task_rank: int, rngs: nnx.Rngs, **shared: Any):
        super().__init__(host, rngs=rngs, **shared)
        shape = (host.in_features, task_rank)
        self.a = nnx.Param(jnp.stack([kaiming(rngs.params(), shape) for _ in range(tasks)]))
        self.b = nnx.Param(jnp.zeros((tasks, task_rank, host.out_features)))

    def increments(self, streams: Array, ctx: Context, pieces: int) -> Array:
        a, b = (v[...].astype(streams.dtype) for v in (self.a, self.b))
        return jnp.einsum("btnr,tro->btno", jnp.einsum("btnd,tdr->btnr", streams, a), b)


class PartingBlock(nnx.Module):
    """Host: the last block of a stage; from tokens `b n d` to those and streams `b t n d`."""

    def __init__(self, tasks: int):
        self.tasks = tasks

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> tuple[Array, Array]:
        attn = host.attn
        check_alone(attn)
        pieces = attn.cut(attn.norm(x, ctx), ctx)
        mixed = attn.mix(attn.qkv(pieces.tokens, ctx), *pieces.pairs)
        proj = attn.proj.adapter
        thinned = proj.thin(mixed, ctx)
        given = spread(thinned, self.tasks)
        y, each = proj.part(attn.proj, mixed, thinned, given, pieces.ctx, pieces.count)
        z = x + attn.finish(pieces.back(y), ctx)
        streams = spread(x, self.tasks) + finished(attn, back(pieces, each), ctx)
        return part_mlp(host.mlp, z, streams, ctx)


def part_mlp(mlp: Mlp, z: Array, streams: Array, ctx: Context) -> tuple[Array, Array]:
    """Tokens `b n d` and streams `b t n d` behind an MLP whose layers part."""
    check_alone(mlp)
    y, each = mlp.norm(z, ctx), mlp.norm(streams, ctx)
    for layer, act in ((mlp.fc1, mlp.activated), (mlp.fc2, lambda y: y)):
        thinned = layer.adapter.thin(y, ctx)
        y, each = map(act, layer.adapter.part(layer, y, thinned, each, ctx, 1))
    return z + mlp.finish(y, ctx), streams + finished(mlp, each, ctx)


def check_alone(branch: Branch) -> None:
    """Raises an AttachError for a branch with an adapter, which would do nothing there."""
    if isinstance(branch, Adapted):
        raise AttachError(
            f"blocks of a method of several tasks re-wire their branches, so the "
            f"{type(branch.adapter).__name__} on {branch.name!r} would do nothing"
        )


def spread(x: Array, tasks: int) -> Array:
    """Tokens `b n d` as the stream of every task, `b t n d`."""
    return jnp.broadcast_to(x[:, None], (x.shape[0], tasks, *x.shape[1:]))


def one_by_one(f: Callable[[Array], Array], streams: Array) -> Array:
    """What `f`, of tokens `b n d`, makes of each stream of `b t n d`."""
    y = f(streams.reshape(-1, *streams.shape[2:]))
    return y.reshape(*streams.shape[:2], *y.shape[1:])


def finished(branch: Branch, streams: Array, ctx: Context) -> Array:
    """What joins the streams of what a branch transformed; each is dropped by itself."""
    return one_by_one(lambda y: branch.finish(y, ctx, "/tasks"), streams)


def back(pieces: Pieces, streams: Array) -> Array:
    """Streams in pieces, `b*m t n d`, back where they came from: `b t hw d`."""
    _, t, *rest = streams.shape
    y = streams.reshape(-1, pieces.count, t, *rest).swapaxes(1, 2)
    y = pieces.back(y.reshape(-1, *rest))
    return y.reshape(-1, t, *y.shape[1:])


class Streams(nnx.Module):
    """Host: the backbone; answers the `Features` of each task, by its name.

    Without names they are those of one task. Maps are one a stage.

    Attributes:
        tasks: names.
    """

    def __init__(self, tasks: Sequence[str]):
        self.tasks = tuple(tasks)

    def __call__(
        self, host: nnx.Module, images: Array, ctx: Context
    ) -> Features | dict[str, Features]:
        c, stages = host.config, stages_of(host)
        x, ctx = host.entered(images, ctx)
        state, maps, strides, first = self.begin(x), [], [], 0
        options = dict(remat=c.remat, depth=sum(map(len, stages)))
        for number, blocks in enumerate(stages):
            state = fold(blocks[:-1], state, ctx, scan=c.scan, first=first, **options)
            first += len(blocks)
            state, streams = fold(blocks[-1:], state, ctx, first=first - 1, **options)
            streams = self.end(number, streams)
            if number + 1 < len(stages):
                state, streams, ctx = self.between(host, number, state, streams, ctx)
            elif not hasattr(host, "stages") and c.final_norm:
                streams = host.norm(streams, ctx)
            h, w = ctx.grid
            maps.append(streams[:, :, -h * w :].reshape(*streams.shape[:2], h, w, -1))
            # A Swin's maps are behind the merging, and as fine as those of its next stage.
            strides.append(host.strides[min(number + 1, len(host.strides) - 1)])
        tokens = streams[:, :, : host.prefix]
        found = [
            Features(tuple(m[:, t] for m in maps), tokens[:, t], ctx.tape, tuple(strides))
            for t in range(tokens.shape[1])
        ]
        return dict(zip(self.tasks, found, strict=True)) if self.tasks else found[0]

    def begin(self, x: Array) -> Any:
        """What the first block gets, of the tokens."""
        return x

    def end(self, number: int, streams: Any) -> Array:
        """The streams `b t n d` at the end of a stage, of what its last block answers."""
        return streams

    def between(
        self, host: nnx.Module, number: int, state: Any, streams: Array, ctx: Context
    ) -> tuple[Any, Array, Context]:
        """What the next stage gets, the streams as they leave, and what the next stage is told."""
        if not hasattr(host, "stages"):
            return state, streams, ctx
        merge = host.stages[number].merge
        streams = one_by_one(lambda y: merge(y, ctx), streams)
        return self.merged(merge, number, state, ctx), streams, merge.behind(ctx)

    def merged(self, merge: nnx.Module, number: int, state: Any, ctx: Context) -> Any:
        """What goes from block to block behind the patch merging of a stage."""
        return merge(state, ctx)


def stages_of(backbone: nnx.Module) -> list[list[nnx.Module]]:
    """The blocks of each stage; a backbone without stages has its blocks in `STAGES` parts."""
    if hasattr(backbone, "stages"):
        return [list(stage.blocks) for stage in backbone.stages]
    blocks = list(backbone.blocks)
    parts = np.array_split(np.arange(len(blocks)), min(STAGES, len(blocks)))
    return [[blocks[i] for i in part] for part in parts]


def check(
    method: str, backbone: nnx.Module, tasks: Sequence[str], train: Sequence[str], choices: Any
) -> None:
    """Raises a ConfigError for a backbone, tasks or parts that train which can't be served."""
    if not hasattr(backbone, "entered"):
        raise ConfigError(f"{method} needs a ViT or a Swin Transformer, whose blocks it re-wires")
    for name in tasks:
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise ConfigError(f"tasks must be names of letters, digits and _, not {name!r:.80}")
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must differ; {', '.join(tasks)} don't")
    if train:
        check_among(method, "part that trains", train, choices)


def place(
    backbone: nnx.Module,
    linear: Callable[..., nnx.Module],
    block: Callable[..., nnx.Module | None],
    root: nnx.Module,
) -> None:
    """Attaches to all linear layers of the blocks, to blocks, and to the root.

    Args:
        backbone: whole.
        linear: `linear(host, name=, parts=)`, `parts` where it is one that tasks part at.
        block: `block(last=)`, of what every block gets, or None for nothing.
        root: what the backbone gets.
    """
    last = {id(blocks[-1]) for blocks in stages_of(backbone)}
    found = [(host, id(host) in last) for _, host in sites(backbone, BLOCK)]
    ends = {
        id(layer)
        for host, end in found
        if end
        for layer in (host.attn.proj, host.mlp.fc1, host.mlp.fc2)
    }
    for name in LINEARS:
        attach(
            backbone,
            SITES[name],
            lambda host, name=name: linear(host, name=name, parts=id(host) in ends),
        )
    for host, end in found:
        if (adapter := block(last=end)) is not None:
            attach(host, "", lambda host, adapter=adapter: adapter)
    attach(backbone, "", lambda host: root)


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0: a 48th of the width, from 4 to the published 16."""
    return {"rank": rank_of_width(backbone, 48, 16)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    tasks: tuple[str, ...] = (),
    rank: int = 0,
    task_rank: int = 4,
    scale: float = 4.0,
    train: tuple[str, ...] = ("norms", "tables", "embed", "merge"),
    dropout: float = 0.05,
) -> None:
    """Attaches shared factors to every linear layer, and those of each task where tasks part.

    Args:
        backbone: a Swin Transformer or a ViT.
        rngs: source of the random factors.
        tasks: their names; () for one without a name.
        rank: r of the shared factors; 0 is a 48th of the width, the widest stage's, from 4 to 16.
        task_rank: r_t of those of each task.
        scale: s, multiplied directly.
        train: what of the backbone trains besides: norms, tables (of relative positions), embed
            (of patches), merge (the reductions of patch merging).
        dropout: rate on the input of A.
    """
    check("mtlora", backbone, tasks, train, TRAINS)
    check_rate("dropout", dropout)
    check_least("task_rank", task_rank)
    for name in LINEARS:
        check_rank(rank, backbone, SITES[name])
        check_rank(task_rank, backbone, SITES[name], name="task_rank")
    count = max(len(tasks), 1)

    def linear(host: nnx.Module, *, name: str, parts: bool) -> nnx.Module:
        kind = functools.partial(TaskLinear, tasks=count, task_rank=task_rank)
        made = kind if parts else SharedLinear
        return made(host, rank=rank, scale=scale, rate=dropout, site=name, rngs=rngs)

    def block(*, last: bool) -> nnx.Module | None:
        return PartingBlock(count) if last else None

    place(backbone, linear, block, Streams(tasks))
