"""RepAdapter (Luo et al., arXiv 2302.08106): linear bottlenecks that fold into the next layer.

    x' = x + s Up(dropout(Down(x)))

before qkv and before fc1, without activation; Up is cut into g groups: each sees `r/g` channels and
gives `d/g`. Count on a ViT: 2 L (d r + d r / g), and 2 L (r + d) more with biases.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import POSITIONS, check_among, check_rank, check_rate
from dynadapt.attach import Lent, attach, sites
from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError
from dynadapt.layers import Linear

Array = jax.Array
TRAINS = ()
PRINTED = {"vit_b16": "0.22 M without biases"}


class Grouped(nnx.Module):
    """A grouped linear layer from `r` to `d` channels, zero at the start; `kernel` `g r/g d/g`."""

    def __init__(self, rank: int, dim: int, groups: int, use_bias: bool):
        self.kernel = nnx.Param(jnp.zeros((groups, rank // groups, dim // groups)))
        self.bias = nnx.Param(jnp.zeros(dim)) if use_bias else nnx.data(None)

    def __call__(self, h: Array) -> Array:
        lead, kernel = h.shape[:-1], self.kernel[...].astype(h.dtype)
        h = h.reshape(*lead, *kernel.shape[:2])
        y = jnp.einsum("...gr,grd->...gd", h, kernel).reshape(*lead, -1)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(h.dtype).reshape((1,) * len(lead) + (-1,))

    def dense(self) -> Array:
        """The same as one matrix `r d`, zero outside the groups."""
        kernel = self.kernel[...]
        return jax.scipy.linalg.block_diag(*kernel)


class RepAdapter(nnx.Module):
    """Host: a linear layer; what it sees goes through the bottleneck first."""

    def __init__(self, host, *, position, rank, groups, scale, use_bias, rate, rngs: nnx.Rngs):
        self.site, self.scale, self.rate = f"repadapter/{position}", scale, rate
        # As the published code: Down xavier, all else zero.
        xavier = nnx.initializers.xavier_uniform()
        dim = host.in_features
        self.down = Linear(dim, rank, kernel_init=xavier, use_bias=use_bias, rngs=rngs)
        self.up = Grouped(rank, dim, groups, use_bias)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        h = dropout(self.down(x, ctx), self.rate, ctx, self.site)
        return host.bare(x + self.scale * self.up(h), ctx)

    def merged(self, host: nnx.Module, shared: Lent) -> dict[str, Array]:
        """The host's parameters with the bottleneck before them, float32."""
        times = functools.partial(jnp.matmul, precision="highest")
        kernel = host.kernel[...].astype(jnp.float32)
        after = times(self.up.dense(), kernel)  # r d_out
        found = {"kernel": kernel + self.scale * times(self.down.kernel[...], after)}
        if self.up.bias is not None:
            bias = 0.0 if host.bias is None else host.bias[...].astype(jnp.float32)
            shift = times(self.down.bias[...], after) + times(self.up.bias[...], kernel)
            found["bias"] = bias + self.scale * shift
        return found


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 8,
    groups: int = 2,
    scale: float = 1.0,
    bias: bool = True,
    positions: tuple[str, ...] = ("attn", "mlp"),
    dropout: float = 0.1,
) -> None:
    """Attaches a linear bottleneck to qkv and fc1 of every block.

    The published code places them between norm and qkv or fc1. Standing before qkv itself, they
    also act on the zeros with which windows are padded, which is what makes merging exact (ours).

    Args:
        backbone: a transformer.
        rngs: source of the random weights.
        rank: r.
        groups: g; it divides r and the width.
        scale: s; chosen for each task in the published runs.
        bias: whether both projections have one; the published counts are without.
        positions: "attn", "mlp" or both.
        dropout: rate between the two projections.
    """
    check_rate("dropout", dropout)
    check_among("RepAdapter", "position", positions, POSITIONS)
    for position in positions:
        check_rank(rank, backbone, POSITIONS[position])
        for path, host in sites(backbone, POSITIONS[position]):
            if groups < 1 or rank % groups or host.in_features % groups:
                common = math.gcd(rank, host.in_features)
                fits = (g for g in range(1, common + 1) if common % g == 0)
                near = min(fits, key=lambda g: abs(g - groups))
                raise ConfigError(
                    f"groups must divide rank and width, not {groups} for {rank} and "
                    f"{host.in_features} at {path!r}; the nearest is {near}"
                )
    for position in positions:
        make = functools.partial(
            RepAdapter, position=position, rank=rank, groups=groups, scale=scale, use_bias=bias,
            rate=dropout, rngs=rngs,
        )  # fmt: skip
        attach(backbone, POSITIONS[position], make)
