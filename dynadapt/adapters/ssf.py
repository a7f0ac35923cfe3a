"""SSF (Lian et al., arXiv 2210.08823): scale and shift of what every operation answers.

    y = gamma * op(x) + beta

after the patch embedding, every norm and every linear layer; fc1's before the activation. Count on
a ViT of width d and L blocks: 22 d L + 4 d.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import BLOCK, check_map
from dynadapt.attach import Lent, attach, sites
from dynadapt.context import Context
from dynadapt.layers import Affine

Array = jax.Array
TRAINS = ()
PRINTED = {"vit_b16": "0.21 M"}

# Where a norm ends the patch embedding, as in Swin, its scale and shift serve both (ours).
_EMBED = ("embed/norm", "embed")
_SITES = (
    f"{BLOCK}/(attn/(norm|qkv|proj)|mlp/(norm|fc1|fc2))",
    r"stages/\d+/merge/(norm|reduction)",
    r"norm|norms/\d+",
)


class ScaleShift(Affine):
    """Host: a linear layer, norm or patch embedding of `d` channels."""

    def __init__(self, host, *, rngs: nnx.Rngs):
        weight = host.kernel if hasattr(host, "kernel") else host.scale
        super().__init__(weight.shape[-1], rngs=rngs)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        return super().__call__(host.bare(x, ctx))

    def merged(self, host: nnx.Module, shared: Lent) -> dict[str, Array]:
        """The host's parameters, scaled and shifted, float32."""
        name = "kernel" if hasattr(host, "kernel") else "scale"
        weight = getattr(host, name)[...].astype(jnp.float32)
        row = (1,) * (weight.ndim - 1) + (-1,)
        bias = 0.0 if host.bias is None else host.bias[...].astype(jnp.float32)
        return {
            name: weight * self.scale[...].reshape(row),
            "bias": bias * self.scale[...] + self.shift[...],
        }


def adapt(backbone: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Attaches a scale and a shift to every operation of a transformer.

    A layer without bias, such as the reduction between Swin's stages, has no place for the shift:
    with one the model runs, but does not merge.
    """
    check_map("ssf", backbone)
    embed = next((where for where in _EMBED if sites(backbone, where)), _EMBED[-1])
    make = functools.partial(ScaleShift, rngs=rngs)
    attach(backbone, _SITES[0], make)
    for where in (embed, *_SITES[1:]):
        if sites(backbone, where):
            attach(backbone, where, make)
