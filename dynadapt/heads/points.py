"""The classifier of point clouds: class token, mean of the prompts, maximum over the groups.

three layers, 256 wide, with batch norm, ReLU and dropout between them (Point-MAE, arXiv 2203.06604;
with the prompts DAPT, arXiv 2403.01439)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError
from dynadapt.heads.linear import POOLED
from dynadapt.layers import Linear
from dynadapt.layers.batch_norm import BatchNorm
from dynadapt.layers.maximum import largest

Array = jax.Array

WIDTH = 256


def classifier(
    like: Any, classes: int, *, prompts: bool, rate: float, rngs: nnx.Rngs
) -> "PointsHead":
    """The head for features like these; it reads prompts where there are any and it is to.

    Raises:
        ConfigError: where the features have no class token, or are those of a picture.
    """
    if like.maps[-1].ndim != 3:
        raise ConfigError("point clouds need a backbone of groups of points, such as point_mae_s")
    if not like.tokens.shape[1]:
        raise ConfigError("the classifier of point clouds needs a backbone with a class token")
    parts = 3 if prompts and like.tokens.shape[1] > 1 else 2
    return PointsHead(like.maps[-1].shape[-1], classes, parts=parts, rate=rate, rngs=rngs)


class PointsHead(nnx.Module):
    """Class logits `(b c,)`, in float32, from class token, prompts and groups `b g d`.

    Count: (parts d + 1) W + (W + 1) W + (W + 1) c + 4 W, W = 256.

    Attributes:
        parts: vectors that are joined: 3 with prompts, 2 without.
        rate: of the dropout.
    """

    def __init__(self, dim: int, classes: int, *, parts: int, rate: float, rngs: nnx.Rngs):
        self.parts, self.rate = parts, rate
        self.fc1 = Linear(parts * dim, WIDTH, rngs=rngs)
        self.norm1 = BatchNorm(WIDTH)
        self.fc2 = Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm2 = BatchNorm(WIDTH)
        self.fc3 = Linear(WIDTH, classes, rngs=rngs)

    def __call__(self, features: Any, ctx: Context) -> tuple[Array]:
        x = self.pooled(features).astype(jnp.float32)
        ctx.record(POOLED, x)
        x = dropout(nnx.relu(self.norm1(self.fc1(x, ctx), ctx)), self.rate, ctx, "points/1")
        x = dropout(nnx.relu(self.norm2(self.fc2(x, ctx), ctx)), self.rate, ctx, "points/2")
        return (self.fc3(x, ctx),)

    def pooled(self, features: Any) -> Array:
        """What of each cloud is joined, `b parts*d`."""
        tokens, groups = features.tokens, features.maps[-1]
        prompts = [tokens[:, 1:].mean(1)] if self.parts == 3 else []
        return jnp.concatenate([tokens[:, 0], *prompts, largest(groups)], axis=-1)


class ReconstructionHead(nnx.Module):
    """Points `b g k 3` of each group, and `b g 3` from the class token, by one layer each."""

    def __init__(self, dim: int, groups: int, size: int, *, rngs: nnx.Rngs):
        # Spread from the start: points at one place would all follow the same one.
        spread = nnx.initializers.normal(0.5)
        self.points = Linear(dim, 3 * size, bias_init=spread, rngs=rngs)
        self.whole = Linear(dim, 3 * groups, bias_init=spread, rngs=rngs)

    def __call__(self, features: Any, ctx: Context) -> tuple[Array, Array]:
        groups, token = (x.astype(jnp.float32) for x in (features.maps[-1], features.tokens[:, 0]))
        points, whole = self.points(groups, ctx), self.whole(token, ctx)
        return points.reshape(*groups.shape[:2], -1, 3), whole.reshape(token.shape[0], -1, 3)
