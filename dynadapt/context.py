"""What a layer is told besides its input, and how a pile of blocks is run.

`Context` goes from the model down to every layer and adapter. `fold` runs blocks in a loop,
rematerialised, or stacked for a scan; what is stored never depends on which.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynadapt import sharding

Array = jax.Array
Tape = dict[str, Array]
# What blocks recompute in the backward pass, by name, and what is saved for it. Recomputing what is
# `cheap` saves the products with weights: norms, activations and all of attention are done again.
REMAT = {
    "none": None,
    "cheap": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer may know.

    Attributes:
        grid: static `(h, w)` of the patch tokens.
        prefix: static count of tokens before the patch tokens (class token, registers, prompts).
        train: static; dropout and drop-path act only where it is true.
        key: random key of this layer, or None where nothing is random.
        mask: 1 for examples `b` that count, 0 for padding; None where all do.
        seen: 1 for tokens `n` that are there, 0 for free places; None where all are.
        number: of this block among those of the network; `fold` tells it.
        drop_path: drop rate of this layer's residual branches, or None for no drop-path.
        shared: the modules that adapters on the root lend to all layers, by their class.
        copies: the same with a copy for each device on a leading axis, while training on several.
        tape: where `record` writes; `fold` opens a new one for each block.
        frozen: static count of the first blocks of the network that have nothing to train, in them
            or below them.
        probe: static; "branches" records what adapters add, over what they add to, and "mean" puts
            means over the batch in the place of what layers make from each input.
    """

    grid: tuple[int, int] = (0, 0)
    prefix: int = 0
    train: bool = False
    key: Array | None = None
    mask: Array | None = None
    seen: Array | None = None
    number: Any = 0
    drop_path: Any = None
    shared: Mapping[type, Any] = dataclasses.field(default_factory=dict)
    copies: Mapping[type, Any] = dataclasses.field(default_factory=dict)
    tape: Tape = dataclasses.field(default_factory=dict)
    frozen: int = 0
    probe: str = ""

    def replace(self, **changes: Any) -> "Context":
        """This context with some fields changed; the tape stays the same object unless given."""
        return dataclasses.replace(self, **changes)

    def random(self, name: str) -> Array:
        """A key for the choice `name` of this layer."""
        return jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)

    def made(self, name: str, value: Array) -> Array:
        """Records what a layer makes from its input, `b …`, and answers what it shall use."""
        self.record(name, value)
        if self.probe != "mean":
            return value
        mask = jnp.ones(value.shape[0]) if self.mask is None else self.mask
        share = (mask / mask.sum()).astype(value.dtype)
        return jnp.broadcast_to(jnp.einsum("b...,b->...", value, share)[None], value.shape)

    def record(self, name: str, value: Array) -> None:
        """Writes a value on the tape.

        Names that start with `loss/` are added up and join the training loss. Any other name may be
        written several times in a layer: later ones get a number.
        """
        if name.startswith("loss/"):
            self.tape[name] = self.tape.get(name, 0.0) + value
            return
        count, free = 1, name
        while free in self.tape:
            count, free = count + 1, f"{name}.{count + 1}"
        self.tape[free] = value


def split_map(x: Array, ctx: Context) -> tuple[Array, Array]:
    """The leading tokens `b p d` of `b n d`, and the patch tokens as a map `b h w d`."""
    h, w = ctx.grid
    first = x.shape[1] - h * w
    return x[:, :first], x[:, first:].reshape(x.shape[0], h, w, x.shape[2])


def join_map(leading: Array, m: Array) -> Array:
    """Undoes `split_map`."""
    return jnp.concatenate([leading, m.reshape(m.shape[0], -1, m.shape[-1])], axis=1)


def mean_of_tokens(x: Array, ctx: Context) -> Array:
    """The mean of the tokens of `b n …` that are there, `b …`, in float32."""
    x = x.astype(jnp.float32)
    if ctx.seen is None:
        return x.mean(1)
    return jnp.einsum("bn...,n->b...", x, ctx.seen / ctx.seen.sum())


def drop_path(x: Array, ctx: Context, name: str) -> Array:
    """Drops the residual branch `x` of whole examples, `b n d` (stochastic depth)."""
    if not ctx.train or ctx.drop_path is None or ctx.key is None:
        return x
    keep = 1.0 - jnp.asarray(ctx.drop_path, jnp.float32)
    kept = jax.random.bernoulli(ctx.random(name), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (kept / keep).astype(x.dtype)


def dropout(x: Array, rate: float, ctx: Context, name: str, *, channels: bool = False) -> Array:
    """Zeroes entries with probability `rate` (static) while training, scaled to keep the mean.

    With `channels`, an example's channel `b ... d` is zeroed everywhere or nowhere.
    """
    if not ctx.train or rate == 0.0 or ctx.key is None:
        return x
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if channels else x.shape
    kept = jax.random.bernoulli(ctx.random(name), 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def fold(
    blocks: Sequence[Callable[[Any, Context], Any]],
    x: Any,
    ctx: Context,
    *,
    scan: bool = False,
    remat: str = "none",
    first: int = 0,
    depth: int | None = None,
) -> Any:
    """Applies blocks one after another; the result does not depend on `scan` and `remat`.

    Args:
        blocks: modules called as `block(x, ctx)`.
        x: tokens `b n d`, or a tree of such arrays, where blocks take and answer one.
        ctx: each block gets its own key, its share of the drop rate (linear in depth) and a
            new tape.
        scan: compiles each kind of block once, where kinds alternate regularly (windowed and
            shifted, windowed and global); the parameters are stacked inside the compiled function.
            A block that answers other shapes than it gets runs before the scan of those that
            follow, and frozen ones (`ctx.frozen`) are scanned apart from those above, as a scan has
            one gradient for all.
        remat: what each block recomputes in the backward pass, a name in `REMAT`.
        first: number of the first block within a network of `depth` blocks, where only a
            part is run.

    What the blocks record is stacked on a leading axis (`loss/` names are summed) on `ctx.tape`.
    """
    depth = depth or len(blocks)

    def step(x: Any, block: Any, number: Any) -> tuple[Any, Tape]:
        inner = ctx.replace(tape={}, number=number)
        if ctx.key is not None:
            inner = inner.replace(key=jax.random.fold_in(ctx.key, number))
        if ctx.drop_path is not None:
            inner = inner.replace(drop_path=ctx.drop_path * number / max(depth - 1, 1))
        return sharding.whole(block)(x, inner), inner.tape

    cut = min(max(ctx.frozen - first, 0), len(blocks)) if scan else 0
    if scan and not 0 < cut < len(blocks):
        # A scan carries one shape.
        same = _same_shapes(blocks, x, lambda x, block: step(x, block, 0)[0])
        scan, cut = same > 0, max(same, 1)
    if 0 < cut < len(blocks):
        tapes = []
        for piece, number in ((blocks[:cut], first), (blocks[cut:], first + cut)):
            inner = ctx.replace(tape={})
            x = fold(piece, x, inner, scan=True, remat=remat, first=number, depth=depth)
            tapes.append(inner.tape)
        _join(tapes, ctx)
        return x
    numbers = range(first, first + len(blocks))
    if remat != "none":
        step = jax.checkpoint(step, prevent_cse=not scan, policy=REMAT[remat])
    if scan:
        kinds = _period(blocks)
        stacked = [
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks[kind::kinds])
            for kind in range(kinds)
        ]

        def turn(x: Any, several: Any) -> tuple[Any, list[Tape]]:
            tapes = []
            for block, number in zip(*several, strict=True):
                x, tape = step(x, block, number)
                tapes.append(tape)
            return x, tapes

        numbers = [jnp.asarray(numbers[kind::kinds]) for kind in range(kinds)]
        x, tapes = jax.lax.scan(turn, x, (stacked, numbers))
        if kinds > 1:
            turns = range(len(blocks) // kinds)
            tapes = [jax.tree.map(lambda v, i=i: v[i : i + 1], t) for i in turns for t in tapes]
    else:
        tapes = []
        for block, number in zip(blocks, numbers, strict=True):
            x, tape = step(x, block, jnp.asarray(number))
            tapes.append(jax.tree.map(lambda v: jnp.asarray(v)[None], tape))
    _join(tapes, ctx)
    return x


def _join(tapes: Sequence[Tape], ctx: Context) -> None:
    """Records what blocks recorded, one after another; `loss/` names are summed."""
    for name in dict.fromkeys(n for tape in tapes for n in tape):
        value = jnp.concatenate([jnp.atleast_1d(tape[name]) for tape in tapes if name in tape])
        ctx.record(name, value.sum(0) if name.startswith("loss/") else value)


def _same_shapes(blocks: Sequence[Any], x: Any, run: Callable[[Any, Any], Any]) -> int:
    """How many of the first blocks answer the shapes that they get; each kind is traced once."""
    known = []
    for number, (block, kind) in enumerate(zip(blocks, map(_kind, blocks), strict=True)):
        if kind not in known and _shapes(jax.eval_shape(run, x, block)) != _shapes(x):
            return number
        known.append(kind)
    return len(blocks)


def _shapes(x: Any) -> Any:
    return jax.tree.structure(x), [leaf.shape for leaf in jax.tree.leaves(x)]


def _kind(block: Any) -> Any:
    return jax.tree.structure(block), [(v.shape, v.dtype) for v in jax.tree.leaves(block)]


def _period(blocks: Sequence[Any]) -> int:
    """The smallest number of kinds of blocks that take turns throughout."""
    kinds = [_kind(block) for block in blocks]
    for period in range(1, len(blocks)):
        if len(blocks) % period == 0 and kinds[period:] == kinds[:-period]:
            return period
    return len(blocks)
