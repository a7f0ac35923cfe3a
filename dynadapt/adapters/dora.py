"""DoRA (Liu et al., arXiv 2402.09353): LoRA on the direction of a weight, its length apart.

    W' = m * (W + s B A) / n,    n = |W + s B A| of each output channel,    y = W' x + b

The length m of each output channel trains and starts at |W|; n counts as a constant in the gradient
(section 4.3 of the paper). Targets and factors are LoRA's. Count for q and v at rank r on a ViT:
4 d r L + 2 d L.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters.lora import Lora, place
from dynadapt.attach import Lent
from dynadapt.context import Context

Array = jax.Array
TRAINS = ()


class Dora(Lora):
    """Host: a linear layer, as LoRA's; every target has a length for each output channel."""

    def __init__(self, host, targets: dict[str, int], parts: int, **settings):
        super().__init__(host, targets, parts, **settings)
        start = _lengths(host.kernel[...].astype(jnp.float32)).reshape(parts, -1)
        for name, i in targets.items():
            getattr(self, name).magnitude = nnx.Param(start[i])

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        y = host.bare(x, ctx) + self.branch(x, ctx)
        row = (1,) * (y.ndim - 1) + (-1,)
        rate = self.rates(self.direction(host))
        y = y * rate.astype(y.dtype).reshape(row)
        if host.bias is None:
            return y
        # The bias, which the host has added, keeps its own length.
        return y + ((1.0 - rate) * host.bias[...]).astype(y.dtype).reshape(row)

    def direction(self, host: nnx.Module) -> Array:
        """`W + s B A`, `d_in d_out` in float32."""
        return host.kernel[...].astype(jnp.float32) + self.increment()

    def rates(self, direction: Array) -> Array:
        """`m / n` of each output channel; 1 where there is no target."""
        lengths = jax.lax.stop_gradient(_lengths(direction)).reshape(self.parts, -1)
        # A channel of zeros has no direction and stays zero.
        lengths = jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)
        values = {name: getattr(self, name).magnitude[...] / lengths[i] for name, i in self.targets}
        return self.joined(values, fill=1.0)

    def merged(self, host: nnx.Module, shared: Lent) -> dict[str, Array]:
        """The host's parameters with `W'` for `W`, float32."""
        direction = self.direction(host)
        return {"kernel": direction * self.rates(direction)[None]}


def _lengths(kernel: Array) -> Array:
    return jnp.sqrt(jnp.square(kernel).sum(0))


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 8,
    targets: tuple[str, ...] = ("q", "v"),
    scale: float = 1.0,
    dropout: float = 0.0,
) -> None:
    """Attaches DoRA.

    Args:
        backbone: a transformer with its weights: the lengths start from them.
        rngs: source of the random factors.
        rank: r.
        targets: among q, k, v, qkv (the fused layer as one), proj, fc1, fc2 (ours, as LoRA's).
        scale: s, multiplied directly; where a recipe has an alpha it is alpha / r.
        dropout: rate on the input of A; W sees its whole input (ours).
    """
    place(backbone, Dora, rank=rank, targets=targets, scale=scale, rate=dropout, rngs=rngs)
