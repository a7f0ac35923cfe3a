"""LoRA (Hu et al., arXiv 2106.09685): `y = W x + b + s B A x` on chosen linear layers.

On a fused qkv layer each of q, k and v is a target of its own: its A and B act on that slice of the
output. The target `qkv` is the layer as a whole, A of `d r` and B of `r 3d`, as Hugging Face's peft
adapts it. Count for q and v at rank r on a ViT: 4 d r L; also for `qkv`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_among, check_rank, check_rate
from dynadapt.attach import Lent, attach
from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError
from dynadapt.layers import kaiming

Array = jax.Array
TRAINS = ()
PRINTED = {"vit_b16": "0.29 M"}

SITES = {
    "q": f"{BLOCK}/attn/qkv",
    "k": f"{BLOCK}/attn/qkv",
    "v": f"{BLOCK}/attn/qkv",
    "qkv": f"{BLOCK}/attn/qkv",
    "proj": f"{BLOCK}/attn/proj",
    "fc1": f"{BLOCK}/mlp/fc1",
    "fc2": f"{BLOCK}/mlp/fc2",
}


class LowRank(nnx.Module):
    """The two factors of one increment: `a` is `d_in r`, `b` is `r d_out`, zero at the start."""

    def __init__(self, dim_in: int, dim_out: int, rank: int, *, rngs: nnx.Rngs):
        self.a = nnx.Param(kaiming(rngs.params(), (dim_in, rank)))
        self.b = nnx.Param(jnp.zeros((rank, dim_out)))

    def __call__(self, x: Array) -> Array:
        return self.up(self.down(x))

    def down(self, x: Array) -> Array:
        """`... d_in` to `... r`."""
        return x @ self.a[...].astype(x.dtype)

    def up(self, x: Array) -> Array:
        """`... r` to `... d_out`."""
        return x @ self.b[...].astype(x.dtype)

    def product(self) -> Array:
        """`d_in d_out` in float32."""
        return jnp.matmul(self.a[...], self.b[...], precision="highest")


class Lora(nnx.Module):
    """Host: a linear layer whose output is `parts` slices; an increment for each target."""

    def __init__(self, host, targets: dict[str, int], parts: int, *, rank, scale, rate, rngs):
        self.parts, self.scale, self.rate = parts, scale, rate
        # Pairs (target, slice): static attributes of a module must be hashable.
        self.targets = tuple(targets.items())
        # The sites of one block share a key: each needs a mask of its own.
        self.site = "lora/" + "+".join(targets)
        width = host.out_features // parts
        for name in targets:
            setattr(self, name, LowRank(host.in_features, width, rank, rngs=rngs))

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        return host.bare(x, ctx) + self.branch(x, ctx)

    def branch(self, x: Array, ctx: Context) -> Array:
        """`s B A x` of all targets, `... d_out`."""
        x = dropout(x, self.rate, ctx, self.site)
        return self.scale * self.joined({n: getattr(self, n)(x) for n, _ in self.targets})

    def joined(self, values: dict[str, Array], fill: float = 0.0) -> Array:
        """Puts the targets' slices at their places on the last axis, `fill` elsewhere."""
        by_slice = {i: values[name] for name, i in self.targets}
        empty = jnp.full_like(next(iter(by_slice.values())), fill)
        return jnp.concatenate([by_slice.get(i, empty) for i in range(self.parts)], axis=-1)

    def increment(self) -> Array:
        """What merging adds to the host's kernel, `d_in d_out`."""
        return self.scale * self.joined({n: getattr(self, n).product() for n, _ in self.targets})

    def merged(self, host: nnx.Module, shared: Lent) -> dict[str, Array]:
        """The host's parameters with the increments in them, float32."""
        return {"kernel": host.kernel[...].astype(jnp.float32) + self.increment()}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 8,
    targets: tuple[str, ...] = ("q", "v"),
    scale: float = 1.0,
    dropout: float = 0.0,
) -> None:
    """Attaches LoRA.

    Args:
        backbone: a transformer.
        rngs: source of the random factors.
        rank: r.
        targets: among q, k, v, qkv (the fused layer as one), proj, fc1, fc2.
        scale: s, multiplied directly (ours). Where a recipe has an alpha it is alpha / r, or
            alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732).
        dropout: rate on the input of A.
    """
    place(backbone, Lora, rank=rank, targets=targets, scale=scale, rate=dropout, rngs=rngs)


def place(
    backbone: nnx.Module,
    kind: Callable[..., nnx.Module],
    *,
    rank: int,
    targets: tuple[str, ...],
    scale: float,
    rate: float,
    rngs: nnx.Rngs,
) -> None:
    """Checks the settings and attaches an adapter of this kind to every layer with a target."""
    check_rate("dropout", rate)
    check_among("LoRA", "target", targets, SITES)
    for target in targets:
        check_rank(rank, backbone, SITES[target])
    both = [t for t in targets if t in ("q", "k", "v")]
    if "qkv" in targets and both:
        raise ConfigError(f"the target 'qkv' holds {both[0]!r} already; choose one of the two")
    for where in dict.fromkeys(SITES[t] for t in targets):
        here = [t for t in targets if SITES[t] == where]
        apart = where == SITES["q"] and "qkv" not in here
        make = functools.partial(
            kind,
            targets={t: "qkv".index(t) if apart else 0 for t in here},
            parts=3 if apart else 1,
            rank=rank,
            scale=scale,
            rate=rate,
            rngs=rngs,
        )
        attach(backbone, where, make)
