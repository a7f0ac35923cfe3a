"""FacT (Jie and Deng, arXiv 2212.03145): the increments of all layers as one factorised tensor.

Every linear layer of a block is one or more matrices of `d d`: q, k, v and proj one each, fc1 four
side by side, fc2 four one above the other. Matrix j of all `12 L` gets

    dW_j = s U S_j V,    U `d r` and V `r d` shared by all;  V is zero at the start

    tt:  S_j `r r` is each matrix's own                         2 d r + 12 L r^2
    tk:  S_j = sum_k P_kj C_k, with a shared core C `r r r`     2 d r + r^3 + 12 L r
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_rank, check_rate
from dynadapt.attach import Lent, Shared, attach, each_device, lent, sites
from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import kaiming

Array = jax.Array
TRAINS = ()

FORMS = ("tt", "tk")
_SITES = {
    "attn": f"{BLOCK}/attn/(qkv|proj)",
    "mlp": f"{BLOCK}/mlp/(fc1|fc2)",
}


class TensorFactors(nnx.Module):
    """U, V and, for `tk`, the core: what all layers share."""

    def __init__(self, dim: int, rank: int, form: str, *, rngs: nnx.Rngs):
        # As the published code: U as any linear layer there, V zero, the core xavier.
        self.u = nnx.Param(kaiming(rngs.params(), (dim, rank)))
        self.v = nnx.Param(jnp.zeros((rank, dim)))
        if form == "tk":
            bound = math.sqrt(3) / rank
            init = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
            self.core = nnx.Param(init(rngs.params(), (rank, rank, rank)))


class Fact(nnx.Module):
    """Host: a linear layer whose kernel is `parts` matrices, side by side or one above the other.

    Its own are the S_j, laid out as the host's kernel is: `r parts*r` or `parts*r r`; or, for `tk`,
    the columns P_j, `r parts`.
    """

    def __init__(self, host, *, site, dim, rank, form, columns, scale, rate, rngs: nnx.Rngs):
        self.scale, self.rate, self.form, self.site = scale, rate, form, site
        self.tall = host.in_features > dim
        self.parts = max(host.in_features, host.out_features) // dim
        # The sites of one block share a key: each needs a mask of its own.
        self.name = f"fact/{site}/{host.in_features}/{host.out_features}"
        if form == "tt":
            shape = (self.parts * rank, rank) if self.tall else (rank, self.parts * rank)
            self.s = nnx.Param(kaiming(rngs.params(), shape))
        else:
            # Xavier of the matrix of all columns.
            bound = math.sqrt(6 / (rank + columns))
            draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
            self.p = nnx.Param(draw(rngs.params(), (rank, self.parts)))

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        shared = lent(ctx, TensorFactors)
        h = each_device(ctx, shared, self.before, x)
        h = dropout(h, self.rate, ctx, self.name)
        return host.bare(x, ctx) + self.scale * each_device(ctx, shared, _after, h)

    def before(self, shared: TensorFactors, x: Array) -> Array:
        """The products `... r*parts` of `... d*parts` with U and all S_j."""
        u, s = (w.astype(x.dtype) for w in (shared.u[...], self.inner(shared)))
        h = x.reshape(*x.shape[:-1], -1, len(u)) @ u  # one row for each matrix above another
        return h.reshape(*x.shape[:-1], -1) @ s

    def inner(self, shared: TensorFactors) -> Array:
        """All S_j, `r parts*r` side by side or `parts*r r` one above the other, float32."""
        if self.form == "tt":
            return self.s[...]
        core = shared.core[...]
        rank = len(core)
        s = jnp.matmul(core, self.p[...], precision="highest")  # a b j
        if self.site == "attn":
            return s.transpose(0, 2, 1).reshape(rank, -1)
        # The published code cuts fc1's and fc2's `a bj` into parts without moving j forward.
        s = s.reshape(rank, -1)
        return s.T if self.tall else s

    def merged(self, host: nnx.Module, shared: Lent) -> dict[str, Array]:
        """The host's parameters with the increment in them, float32."""
        shared = shared[TensorFactors]
        times = functools.partial(jnp.matmul, precision="highest")
        u, v, s, rank = shared.u[...], shared.v[...], self.inner(shared), len(shared.v[...])
        if self.tall:  # p r r -> p d r -> pd r -> pd d
            left = times(u[None], s.reshape(-1, rank, rank)).reshape(-1, rank)
            change = times(left, v)
        else:  # d pr -> d p r -> d p d
            change = times(times(u, s).reshape(len(u), -1, rank), v[None]).reshape(len(u), -1)
        return {"kernel": host.kernel[...].astype(jnp.float32) + self.scale * change}


def _after(shared: TensorFactors, h: Array) -> Array:
    """The products `... d*parts` of `... r*parts` with V."""
    v = shared.v[...].astype(h.dtype)
    y = h.reshape(*h.shape[:-1], -1, len(v)) @ v  # one row for each matrix beside another
    return y.reshape(*h.shape[:-1], -1)


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    form: str = "tt",
    rank: int = 16,
    scale: float = 1.0,
    dropout: float = 0.1,
) -> None:
    """Attaches FacT to every linear layer of every block, and the shared factors to the root.

    Args:
        backbone: a transformer of one width d whose layers are of multiples of d.
        rngs: source of the random weights.
        form: "tt" or "tk".
        rank: r; the published runs have 16 for "tt" and 32 for "tk" at most.
        scale: s; chosen for each task in the published runs, 1 is ours.
        dropout: rate between S and V.
    """
    if form not in FORMS:
        raise UnknownName("form of FacT", form, FORMS)
    check_rate("dropout", dropout)
    hosts = [found for where in _SITES.values() for found in sites(backbone, where)]
    dim, columns = getattr(backbone, "dim", 0), 0
    for path, host in hosts:
        wide, narrow = max(host.kernel.shape), min(host.kernel.shape)
        if narrow != dim or wide % dim:
            raise ConfigError(
                f"FacT cuts every layer into matrices of one width: {path!r} of "
                f"{narrow} x {wide} is no row of {dim} x {dim}"
            )
        columns += wide // dim
    for where in _SITES.values():
        check_rank(rank, backbone, where)
    for site, where in _SITES.items():
        make = functools.partial(
            Fact, site=site, dim=dim, rank=rank, form=form, columns=columns, scale=scale,
            rate=dropout, rngs=rngs,
        )  # fmt: skip
        attach(backbone, where, make)
    factors = TensorFactors(dim, rank, form, rngs=rngs)
    attach(backbone, "", lambda host: Shared(host, factors))
