"""TADFormer (arXiv 2501.04293, CVPR 2025): prompts of tasks, and filters made of their features.

    y   = W x + b + s B A x               every linear layer of the blocks: what tasks share
    y_t = W x + b + s B DTF(A x_t)        besides, proj, fc1, fc2 of a stage's last block
    DTF(u) = depthwise(u, k)              3x3, k = FilterNorm(W_k mean(u) + c)
    a_t = gelu(l_t), g_t = a_t f          TPC, before proj, head by head; f: attention's answer
    x_t = LN(f + g_t)                     l_t: raw scores q.k of the task's prompt and the tokens
    F_t = sig(g) g_t + (1 - sig(g)) o_t   at a stage's end; o_t: what its last block answers

One prompt a task, given before the first block, takes part in the attention of every window,
without bias; the mean over an image's windows goes on: p <- p + MLP(LN(attention(p))). Behind each
stage a linear layer widens the prompts. A, B and DTF are the same for all tasks. At proj DTF sees
a window, in the MLP the whole map. Streams, what trains besides, and ViTs, are as in `mtlora`; the
reductions of patch merging stay frozen. Of the norms before proj those of last blocks are used; a
Swin has one in every block, as published.

Count of the adapters on Swin: (16 r + 2) sum of d over blocks + S (3 (9 r^2 + 27 r) + 1) + T d
+ 2 sum of d^2 over stages with a merging; S stages, d of the first. On a ViT: 16 d r L
+ S (3 (9 r^2 + 27 r) + 2 d + 1) + T d.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import dynamic
from dynadapt.adapters import check_rank, check_rate, mtlora, rank_of_width
from dynadapt.adapters.iconformer import ICoN
from dynadapt.adapters.lora import SITES
from dynadapt.context import Context, join_map, split_map
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import ACTIVATIONS, LayerNorm, Linear, kaiming
from dynadapt.layers.transformer import Attention, Pieces

Array = jax.Array
TRAINS = {name: mtlora.TRAINS[name] for name in ("norms", "tables", "embed")}
PLAIN = ("adapter/prompts",)
NOT_MERGEABLE = "prompts are tokens of their own, and filters follow the input"

FILTERS = ("dynamic", "static", "none")
SKIPS = ("tokens", "released")
KERNEL = 3
ATTENTION = "attention/task"  # what is recorded at each stage's end: `b h w t`, means over heads


class DynamicFilter(ICoN):
    """Kernels `b k k r` of maps `b h w r`: the mean, one linear layer, FilterNorm."""

    def __init__(self, rank: int, *, rngs: nnx.Rngs):
        how = dict(scaled=False, filter_norm=True, identity_bias=False)
        super().__init__(rank, KERNEL, **how, rngs=rngs)

    def filtered(self, u: Array, ctx: Context, pieces: int) -> Array:
        """Streams `b*m t n r`, the map's tokens convolved; leading ones pass."""
        leading, m = split_map(u.reshape(-1, *u.shape[2:]), ctx)
        m = dynamic.depthwise(m, self.given(self(m), u.shape[0] // pieces, ctx))
        return join_map(leading, m).reshape(u.shape)

    def given(self, kernels: Array, b: int, ctx: Context) -> Array:
        """Kernels `b*m*t k k r`, through `Context.made`, which wants `b k k m*t*r`."""
        k, r = self.kernel, self.rank
        rows = kernels.reshape(b, -1, k, k, r).transpose(0, 2, 3, 1, 4)
        rows = ctx.made("kernel", rows.reshape(b, k, k, -1))
        return rows.reshape(b, k, k, -1, r).transpose(0, 3, 1, 2, 4).reshape(-1, k, k, r)


class StaticFilter(nnx.Module):
    """The released code's: a learned kernel and a bias for each task, `t k k r` and `t r`."""

    def __init__(self, rank: int, tasks: int, *, rngs: nnx.Rngs):
        draw = functools.partial(jax.random.uniform, minval=-1 / KERNEL, maxval=1 / KERNEL)
        self.taps = nnx.Param(draw(rngs.params(), (tasks, KERNEL, KERNEL, rank)))
        self.bias = nnx.Param(draw(rngs.params(), (tasks, rank)))

    def filtered(self, u: Array, ctx: Context, pieces: int) -> Array:
        """Streams `b*m t n r`, the map's tokens convolved; leading ones pass."""
        leading, m = split_map(u.reshape(-1, *u.shape[2:]), ctx)
        taps = jnp.broadcast_to(self.taps[...][None], (u.shape[0], *self.taps.shape))
        m = dynamic.depthwise(m, taps.reshape(-1, *taps.shape[2:]))
        bias = jnp.broadcast_to(
            self.bias[...].astype(u.dtype)[None], (u.shape[0], *self.bias.shape)
        )
        m = m + bias.reshape(-1, 1, 1, bias.shape[-1])
        return join_map(leading, m).reshape(u.shape)


class FilteredLinear(mtlora.SharedLinear):
    """Host: a linear layer of a stage's last block; what A answers a task is filtered before B."""

    def __init__(self, host, *, kind: str, tasks: int, rngs: nnx.Rngs, **shared: Any):
        super().__init__(host, rngs=rngs, **shared)
        self.kind, rank = kind, shared["rank"]
        if kind == "dynamic":
            self.filter = DynamicFilter(rank, rngs=rngs)
        elif kind == "static":
            self.filter = StaticFilter(rank, tasks, rngs=rngs)

    def increments(self, streams: Array, ctx: Context, pieces: int) -> Array:
        u = self.low.down(streams)
        if self.kind != "none":
            u = self.filter.filtered(u, ctx, pieces)
        return self.low.up(u)


class PromptedBlock(nnx.Module):
    """Host: a block over prompts `b p d` and tokens `b n d`, which attend to each other."""

    def __call__(
        self, host: nnx.Module, state: tuple[Array, Array], ctx: Context
    ) -> tuple[Array, Array]:
        prompts, x = state
        pieces, _, mixed = attend(host.attn, prompts, x, ctx)
        p = prompts.shape[1]
        y = host.attn.proj(mixed, ctx)
        z = x + host.attn.finish(pieces.back(y[:, p:]), ctx)
        return prompts + host.mlp(mean_of_pieces(y[:, :p], pieces), ctx), z + host.mlp(z, ctx)


class TaskBlock(nnx.Module):
    """Host: the last block of a stage; from prompts and tokens to those, and streams with skips.

    Attributes:
        tasks: number of them.
        logit_scale: of the raw scores of prompts.
        released: whether a window's skip is read in the released code's order.
    """

    def __init__(self, tasks: int, *, logit_scale: float, released: bool):
        self.tasks, self.logit_scale, self.released = tasks, logit_scale, released

    def __call__(
        self, host: nnx.Module, state: tuple[Array, Array], ctx: Context
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (prompts, x), attn = state, host.attn
        pieces, qkv, mixed = attend(attn, prompts, x, ctx)
        p, proj = prompts.shape[1], attn.proj.adapter
        seen = mean_of_pieces(attn.proj(mixed[:, :p], ctx), pieces)
        f = proj.thin(mixed[:, p:], ctx)
        given, skip = mtlora.spread(f, self.tasks), None
        if p:
            attention = self.attention(attn, qkv, p)
            means = mtlora.back(pieces, attention.mean(1)[..., None])[..., 0]
            ctx.record(ATTENTION, split_map(means.swapaxes(1, 2), ctx)[1])
            skip = weighted(f, attention)
            given = proj.norm(given + skip, ctx)
            if self.released:
                skip = skip.swapaxes(2, 3).reshape(skip.shape)
            skip = mtlora.back(pieces, skip)
        y, each = proj.part(attn.proj, mixed[:, p:], f, given, pieces.ctx, pieces.count)
        z = x + attn.finish(pieces.back(y), ctx)
        each = mtlora.finished(attn, mtlora.back(pieces, each), ctx)
        streams = mtlora.spread(x, self.tasks) + each
        z, streams = mtlora.part_mlp(host.mlp, z, streams, ctx)
        return (prompts + host.mlp(seen, ctx), z), (streams, skip)

    def attention(self, attn: Attention, qkv: Array, p: int) -> Array:
        """Weights `w h t n` of tokens for each task, of queries, keys and values `w p+n 3d`.

        Several prompts of a task count by the mean of their scores.
        """
        q, k, _ = attn.split(qkv)
        raw = attn.scores(q[:, :p], k[:, p:])
        w, h, _, n = raw.shape
        raw = raw.reshape(w, h, self.tasks, -1, n).mean(3)
        return ACTIVATIONS["gelu"](self.logit_scale * raw)


def attend(attn: Attention, prompts: Array, x: Array, ctx: Context) -> tuple[Pieces, Array, Array]:
    """Prompts `b p d` and tokens `b n d` in attention together: prompts lead in every piece.

    Returns:
        The tokens' pieces; queries, keys and values `b*m p+n 3d`; what attention answers, before
        proj, `b*m p+n d`.
    """
    mtlora.check_alone(attn)
    pieces, p = attn.cut(attn.norm(x, ctx), ctx), prompts.shape[1]
    lead = jnp.repeat(attn.norm(prompts, ctx), pieces.count, axis=0)
    qkv = attn.qkv(jnp.concatenate([lead, pieces.tokens], axis=1), ctx)
    pairs = pieces.pairs
    if pairs:
        bias, mask = pairs
        sides = ((0, 0), (p, 0), (p, 0))
        pairs = (
            jnp.pad(bias, sides),
            None if mask is None else np.pad(mask, sides, constant_values=True),
        )
    return pieces, qkv, attn.mix(qkv, *pairs)


def mean_of_pieces(y: Array, pieces: Pieces) -> Array:
    """Prompts `b*m p d` of all pieces of an image: `b p d`."""
    return y.reshape(y.shape[0] // pieces.count, pieces.count, *y.shape[1:]).mean(1)


def weighted(f: Array, weights: Array) -> Array:
    """Tokens `w n d`, their heads weighted by each task's attention `w h t n`: `w t n d`."""
    heads = f.reshape(*f.shape[:2], weights.shape[1], -1)
    y = jnp.einsum("whtn,wnhc->wtnhc", weights.astype(f.dtype), heads)
    return y.reshape(*y.shape[:3], -1)


class PromptedStreams(mtlora.Streams):
    """Host: the backbone; the prompts `t*p d` of all tasks, and a gate for each stage."""

    def __init__(self, host, tasks: Sequence[str], prompts: int, *, rngs: nnx.Rngs):
        super().__init__(tasks)
        self.count = prompts * max(len(tasks), 1)
        stages = mtlora.stages_of(host)
        dims = [blocks[0].dim for blocks in stages]
        if not prompts:
            return
        # Normal around 1 with deviation 1, within -2 and 2.
        draw = jax.random.truncated_normal(rngs.params(), -3.0, 1.0, (self.count, dims[0]))
        self.prompts = nnx.Param(1.0 + draw)
        self.gates = nnx.Param(jnp.zeros(len(stages)))
        if hasattr(host, "stages"):
            both = dict(use_bias=False, kernel_init=kaiming, rngs=rngs)
            pairs = zip(dims, dims[1:], strict=False)
            self.wider = nnx.List([Linear(d, wide, **both) for d, wide in pairs])

    def begin(self, x: Array) -> tuple[Array, Array]:
        if not self.count:
            return x[:, :0], x
        prompts = self.prompts[...].astype(x.dtype)
        return jnp.broadcast_to(prompts[None], (x.shape[0], *prompts.shape)), x

    def end(self, number: int, streams: tuple[Array, Array | None]) -> Array:
        out, skip = streams
        if skip is None:
            return out
        share = jax.nn.sigmoid(self.gates[...][number]).astype(out.dtype)
        return share * skip + (1 - share) * out

    def merged(
        self, merge: nnx.Module, number: int, state: tuple[Array, Array], ctx: Context
    ) -> tuple[Array, Array]:
        prompts, x = state
        if self.count:
            return self.wider[number](prompts, ctx), merge(x, ctx)
        x = merge(x, ctx)
        return x[:, :0], x


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0: a 48th of the width, from 4 to 16, the smallest that is published."""
    return {"rank": rank_of_width(backbone, 48, 16)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    tasks: tuple[str, ...] = (),
    rank: int = 0,
    ranks: tuple[int, ...] = (),
    filter: str = "dynamic",
    prompts: int = 1,
    tpc_logit_scale: float = 1.0,
    skip: str = "tokens",
    scale: float = 4.0,
    train: tuple[str, ...] = ("norms", "tables", "embed"),
    dropout: float = 0.05,
) -> None:
    """Attaches shared factors to every linear layer, prompts, and filters where tasks part.

    Args:
        backbone: a Swin Transformer or a ViT.
        rngs: source of the random weights.
        tasks: their names; () for one without a name.
        rank: r; 0 is a 48th of the width, the widest stage's, from 4 to 16.
        ranks: r of qkv, proj, fc1 and fc2; () for `rank` in all.
        filter: "dynamic"; "static" (a learned kernel for each task, as the released code runs) and
            "none" are ablations.
        prompts: of each task; without any there are no task attention, skips and gates either.
        tpc_logit_scale: of the scores that make the task attention; published: 1.
        skip: "tokens", or "released" for comparisons: the released code reads a window's skip,
            `d n` in memory, as `n d`.
        scale: s, multiplied directly.
        train: what of the backbone trains besides: norms, tables (of relative positions), embed
            (of patches).
        dropout: rate on the input of A.
    """
    mtlora.check("tadformer", backbone, tasks, train, TRAINS)
    for what, value, choices in (("filter", filter, FILTERS), ("skip", skip, SKIPS)):
        if value not in choices:
            raise UnknownName(what, value, choices)
    check_rate("dropout", dropout)
    if prompts < 0:
        raise ConfigError(f"prompts must be at least 0, not {prompts}")
    names = mtlora.LINEARS
    if ranks and len(ranks) != len(names):
        raise ConfigError(f"ranks must be four, of {', '.join(names)}, not {len(ranks)}")
    of = dict(zip(names, ranks or (rank,) * len(names), strict=True))
    for name in names:
        check_rank(of[name], backbone, SITES[name], name="ranks" if ranks else "rank")
    count, staged = max(len(tasks), 1), hasattr(backbone, "stages")

    def linear(host: nnx.Module, *, name: str, parts: bool) -> nnx.Module:
        given = dict(rank=of[name], scale=scale, rate=dropout, site=name, rngs=rngs)
        if parts:
            made = FilteredLinear(host, kind=filter, tasks=count, **given)
        else:
            made = mtlora.SharedLinear(host, **given)
        if prompts and name == "proj" and (parts or staged):
            made.norm = LayerNorm(host.in_features, epsilon=1e-5, rngs=rngs)
        return made

    def block(*, last: bool) -> nnx.Module:
        if last:
            return TaskBlock(count, logit_scale=tpc_logit_scale, released=skip == "released")
        return PromptedBlock()

    mtlora.place(backbone, linear, block, PromptedStreams(backbone, tasks, prompts, rngs=rngs))
