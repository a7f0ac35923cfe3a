"""A class for each point: features of groups, interpolated at the points (PointNet++'s feature
propagation, as Point-MAE's part segmentation has it; without its embedding of the category).

The first layer is linear in the interpolated features, the point and the means and maxima over the
groups, so that the features are narrowed before they are interpolated.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError
from dynadapt.layers import LayerNorm, Linear
from dynadapt.layers.batch_norm import BatchNorm
from dynadapt.layers.interpolate import shares
from dynadapt.layers.maximum import largest

Array = jax.Array


def propagation(
    like: Any, classes: int, *, channels: int, rate: float, rngs: nnx.Rngs
) -> "PropagationHead":
    """The head for features like these; raises a ConfigError for those of a picture."""
    if not like.places:
        raise ConfigError("parts of point clouds need a backbone of points, such as point_mae_s")
    dims = tuple(level.shape[-1] for level in like.maps)
    return PropagationHead(dims, classes, channels=channels, rate=rate, rngs=rngs)


class PropagationHead(nnx.Module):
    """Class logits `(b n c,)`, in float32, from levels `b g d` whose widths add up to D.

    Count: 2 D + (3 D + 3 + 1) W + (W + 1) W + (W + 1) c + 4 W.
    """

    def __init__(
        self, dims: tuple[int, ...], classes: int, *, channels: int, rate: float, rngs: nnx.Rngs
    ):
        self.rate = rate
        self.norms = nnx.List([LayerNorm(d, epsilon=1e-5, rngs=rngs) for d in dims])
        self.near = Linear(sum(dims), channels, use_bias=False, rngs=rngs)
        self.whole = Linear(2 * sum(dims), channels, use_bias=False, rngs=rngs)
        self.place = Linear(3, channels, rngs=rngs)
        self.norm1 = BatchNorm(channels)
        self.fc2 = Linear(channels, channels, rngs=rngs)
        self.norm2 = BatchNorm(channels)
        self.fc3 = Linear(channels, classes, rngs=rngs)

    def __call__(self, features: Any, ctx: Context) -> tuple[Array]:
        levels = [norm(x, ctx) for norm, x in zip(self.norms, features.maps, strict=True)]
        groups = jnp.concatenate(levels, -1).astype(jnp.float32)  # b g D
        points, centers = features.places
        near = jnp.einsum(
            "bng,bgw->bnw", jax.vmap(shares)(points, centers), self.near(groups, ctx),
            precision="highest",
        )  # fmt: skip
        whole = self.whole(jnp.concatenate([largest(groups), groups.mean(1)], -1), ctx)
        x = near + self.place(points.astype(jnp.float32), ctx) + whole[:, None]
        x = dropout(nnx.relu(self.norm1(x, ctx)), self.rate, ctx, "parts")
        x = nnx.relu(self.norm2(self.fc2(x, ctx), ctx))
        return (self.fc3(x, ctx),)
