"""LoRA (Hu et al., arXiv 2106.09685): `y = W x + b + s B A x` on chosen linear layers.

On a fused qkv layer each of q, k and v is a target of its own: its A and B act on that slice of the
output. Count for q and v at rank r on a ViT: 4 d r L.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.attach import adapted, attach, detach
from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError, UnknownName

Array = jax.Array
TRAINS = ()

_SITES = {
    "q": r"blocks/\d+/attn/qkv",
    "k": r"blocks/\d+/attn/qkv",
    "v": r"blocks/\d+/attn/qkv",
    "proj": r"blocks/\d+/attn/proj",
    "fc1": r"blocks/\d+/mlp/fc1",
    "fc2": r"blocks/\d+/mlp/fc2",
}


class Factors(nnx.Module):
    """The two factors of one increment: `a` is `d_in r`, `b` is `r d_out`, zero at the start."""

    def __init__(self, dim_in: int, dim_out: int, rank: int, *, rngs: nnx.Rngs):
        # Kaiming uniform with a = sqrt(5), as the original: bound 1 / sqrt(d_in).
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.a = nnx.Param(init(rngs.params(), (dim_in, rank)))
        self.b = nnx.Param(jnp.zeros((rank, dim_out)))

    def __call__(self, x: Array) -> Array:
        return x @ self.a[...].astype(x.dtype) @ self.b[...].astype(x.dtype)

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
            setattr(self, name, Factors(host.in_features, width, rank, rngs=rngs))

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        y = host.bare(x, ctx)
        x = dropout(x, self.rate, ctx, self.site)
        return y + self.scale * self.joined({n: getattr(self, n)(x) for n, _ in self.targets})

    def joined(self, increments: dict[str, Array]) -> Array:
        """Puts the targets' slices at their places, zeros elsewhere."""
        by_slice = {i: increments[name] for name, i in self.targets}
        empty = jnp.zeros_like(next(iter(by_slice.values())))
        return jnp.concatenate([by_slice.get(i, empty) for i in range(self.parts)], axis=-1)

    def increment(self) -> Array:
        """What merging adds to the host's kernel, `d_in d_out`."""
        return self.scale * self.joined({n: getattr(self, n).product() for n, _ in self.targets})


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
        backbone: a plain transformer.
        rngs: source of the random factors.
        rank: r.
        targets: among q, k, v, proj, fc1, fc2.
        scale: s, multiplied directly (no division by r; ours).
        dropout: rate on the input of A.
    """
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must be in [0, 1), not {dropout}")
    if not targets:
        raise ConfigError(f"LoRA needs at least one target of {', '.join(_SITES)}")
    for target in targets:
        if target not in _SITES:
            raise UnknownName("LoRA target", target, _SITES)
    for where in dict.fromkeys(_SITES[t] for t in targets):
        here = [t for t in targets if _SITES[t] == where]
        fused = where.endswith("qkv")
        slices = {t: "qkv".index(t) if fused else 0 for t in here}
        make = functools.partial(
            Lora,
            targets=slices,
            parts=3 if fused else 1,
            rank=rank,
            scale=scale,
            rate=dropout,
            rngs=rngs,
        )
        attach(backbone, where, make)


def merge(backbone: nnx.Module) -> None:
    """Adds the increments to the kernels, in float32, and detaches."""
    for _, host in adapted(backbone):
        kernel = host.kernel[...]
        merged = kernel.astype(jnp.float32) + host.adapter.increment()
        host.kernel[...] = merged.astype(kernel.dtype)
    detach(backbone)
