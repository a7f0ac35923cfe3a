"""The optimizer over the trained leaves: schedule, decay and rate groups by path patterns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dynadapt import tree

# Leaves that weight decay never touches, in any model.
NO_DECAY = (r"(.*/)?(\w+_)?(bias|scale|shift)",)


@dataclasses.dataclass(frozen=True)
class Layers:
    """What the optimizer must know of a model besides the paths of its leaves.

    Attributes:
        order: a pattern of module paths for each depth, from the input on. All that lies in a
            module is of its depth, adapters too; what no pattern covers is above them all.
        plain: patterns of leaves that weight decay never touches: tokens, positions, tables.
    """

    order: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    def below_output(self, path: str) -> int:
        """How many layers lie above a leaf's own, and that one: 0 for the final norm and head."""
        for number, pattern in enumerate(self.order):
            if tree.matches(rf"(?:{pattern})(/.*)?", path):
                return len(self.order) - number
        return 0


SCHEDULES = ("cosine", "cosine_hundredth", "linear", "stairs", "constant")


def schedule(o: Any, steps: Any) -> optax.Schedule:
    """Linear warm-up over the first `o.warmup` part of the steps, then `o.schedule` of the rest.

    "cosine" and "linear" fall to zero, "cosine_hundredth" to a hundredth; "stairs" falls to a tenth
    after 30, 60 and 90 % of all steps; "constant" stays. Rate and number of steps may be traced.
    """

    def rate(step: jax.Array) -> jax.Array:
        warmup = jnp.round(o.warmup * jnp.asarray(steps, jnp.float32))
        if o.schedule == "stairs":
            falls = jnp.floor(step / steps / 0.3 + 1e-4)
            level = 0.1 ** jnp.clip(falls, 0, 3)
        elif o.schedule == "constant":
            level = 1.0
        else:
            part = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0, 1)
            level = 1 - part if o.schedule == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * part))
            level = 0.01 + 0.99 * level if o.schedule == "cosine_hundredth" else level
        return o.lr * jnp.where(step < warmup, step / jnp.maximum(warmup, 1), level)

    return rate


def make(o: Any, steps: Any, train: Any, layers: Layers) -> optax.GradientTransformation:
    """The optimizer for the trained leaves.

    Args:
        o: the config's `optim`; rate and weight decay may be traced.
        steps: length of training; may be traced.
        train: the trained leaves, or their shapes.
        layers: of the model, `model.layers(config)`.

    The global norm is taken over the trained leaves alone. A rate factor of 0 freezes a leaf: it
    has no state and no part in the norm.
    """
    mults = rates(o, train, layers)
    tree.check_used(o.no_decay, tree.leaves(train), what="no-decay pattern")
    labels = tree.map_leaves(lambda path, _: str(mults[path]), train)
    groups = {str(m): optax.scale(m) for m in set(mults.values())}
    parts = []
    if o.clip_norm:
        parts.append(optax.clip_by_global_norm(o.clip_norm))
    if o.name == "adamw":
        parts.append(optax.scale_by_adam(b1=o.beta1, b2=o.beta2))
    else:
        parts.append(optax.trace(decay=o.momentum))
    if isinstance(o.weight_decay, jax.Array) or o.weight_decay:
        decayed = tree.map_leaves(lambda path, x: decays(o, path, x, layers), train)
        parts.append(optax.masked(optax.add_decayed_weights(o.weight_decay), decayed))
    parts.append(optax.partition(groups, labels))
    parts.append(optax.scale_by_learning_rate(schedule(o, steps)))
    tx = optax.chain(*parts)
    if all(mults.values()):
        return tx
    moves = tree.map_leaves(lambda path, _: bool(mults[path]), train)
    return optax.partition({True: tx, False: optax.set_to_zero()}, moves)


def decays(o: Any, path: str, leaf: Any, layers: Layers) -> bool:
    """Whether weight decay acts on a leaf: no vector, bias, plain leaf or excluded pattern."""
    spared = (*NO_DECAY, *layers.plain, *o.no_decay)
    return len(leaf.shape) > 1 and not tree.matches_any(spared, path)


def rates(o: Any, train: Any, layers: Layers) -> dict[str, float]:
    """Factor on the learning rate for each trained path: layer decay times the config's factor."""
    paths = list(tree.leaves(train))
    mults = tree.assign([*o.lr_mults, (".*", 1.0)], paths, what="learning-rate pattern")
    return {p: float(mults[p] * o.layer_decay ** layers.below_output(p)) for p in paths}


def ema(old: Any, new: Any, decay: float, step: jax.Array) -> Any:
    """The running mean of trained leaves; early steps use a shorter memory, (1 + t) / (10 + t)."""
    t = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda a, b: rate * a + (1.0 - rate) * b, old, new)
