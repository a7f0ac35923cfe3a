"""AdaptFormer (Chen et al., arXiv 2205.13535): a bottleneck beside the MLP.

    x <- x + MLP(LN(x)) + s * Up(dropout(relu(Down(x))))

The bottleneck sees the un-normed tokens. Count at rank r on a ViT: L (2 d r + r + d).
"""

import functools

import jax
from flax import nnx

from dynadapt.attach import attach
from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError
from dynadapt.layers import Linear

Array = jax.Array
TRAINS = ()


class Bottleneck(nnx.Module):
    """Host: a residual branch over tokens `b n d`; zero effect at the start."""

    def __init__(self, host, *, rank: int, scale: float, rate: float, rngs: nnx.Rngs):
        self.scale, self.rate = scale, rate
        kaiming = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.down = Linear(host.dim, rank, kernel_init=kaiming, rngs=rngs)
        self.up = Linear(rank, host.dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        h = dropout(jax.nn.relu(self.down(x)), self.rate, ctx, "adaptformer")
        return host.bare(x, ctx) + self.scale * self.up(h)


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 64,
    scale: float = 0.1,
    dropout: float = 0.1,
) -> None:
    """Attaches a bottleneck to the MLP of every block.

    Args:
        backbone: a plain transformer.
        rngs: source of the random weights.
        rank: r.
        scale: s, fixed.
        dropout: rate after the activation.
    """
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must be in [0, 1), not {dropout}")
    make = functools.partial(Bottleneck, rank=rank, scale=scale, rate=dropout, rngs=rngs)
    attach(backbone, r"blocks/\d+/mlp", make)
