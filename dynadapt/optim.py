"""The optimizer over the trained leaves: schedule, decay and rate groups by path patterns."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynadapt import tree

# Leaves that weight decay never touches, in any model.
NO_DECAY = (r"(.*/)?(\w+_)?(bias|scale|shift)",)
# Leaves of so many values at most are packed; of larger ones a copy would cost more than it saves.
SMALL = 1 << 18


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
            if tree.within((pattern,), path):
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


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer over packed leaves, and how they are packed.

    Small leaves of one rate and one decay are one vector: what takes a few kernels for a vector
    takes a few for each leaf otherwise, to compile and to start. Values are those of leaf by leaf.

    Attributes:
        tx: over what `pack` answers.
        places: for each path the name of its vector, or of itself; "" where its rate is 0.
    """

    tx: optax.GradientTransformation
    places: Mapping[str, str]

    def init(self, train: Any) -> Any:
        """The state for the trained leaves."""
        return self.tx.init(self.pack(train))

    def pack(self, train: Any) -> dict[str, jax.Array]:
        """The leaves that move, of a tree as the trained one: those that share a name in a row."""
        rows: dict[str, list[jax.Array]] = {}
        for path, x in tree.leaves(train).items():
            if name := self.places[path]:
                rows.setdefault(name, []).append(x if name == path else x.reshape(-1))
        return {k: jnp.concatenate(v) if len(v) > 1 else v[0] for k, v in rows.items()}

    def unpack(self, packed: dict[str, jax.Array], train: Any) -> Any:
        """The tree that was packed; leaves that don't move are those of `train`."""
        taken = dict.fromkeys(packed, 0)

        def leaf(path: str, x: Any) -> jax.Array:
            name = self.places[path]
            if name in ("", path):
                return packed.get(name, x)
            first = taken[name]
            taken[name] += x.size
            return packed[name][first : taken[name]].reshape(x.shape)

        return tree.map_leaves(leaf, train)


def make(o: Any, steps: Any, train: Any, layers: Layers) -> Optimizer:
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
    places, factor, decayed = {}, {}, {}
    for path, x in tree.leaves(train).items():
        decay, name = decays(o, path, x, layers), ""
        if mults[path]:
            shared = f"{'decayed' if decay else 'plain'} x {mults[path]}"
            name = path if math.prod(x.shape) > SMALL else shared
            factor[name], decayed[name] = str(mults[path]), decay
        places[path] = name
    parts = []
    if o.clip_norm:
        parts.append(optax.clip_by_global_norm(o.clip_norm))
    if o.name == "adamw":
        parts.append(optax.scale_by_adam(b1=o.beta1, b2=o.beta2))
    else:
        parts.append(optax.trace(decay=o.momentum))
    if isinstance(o.weight_decay, jax.Array) or o.weight_decay:
        parts.append(optax.masked(optax.add_decayed_weights(o.weight_decay), decayed))
    groups = {text: optax.scale(float(text)) for text in factor.values()}
    parts.append(optax.partition(groups, factor))
    parts.append(optax.scale_by_learning_rate(schedule(o, steps)))
    return Optimizer(optax.chain(*parts), places)


def hyper(o: Any, steps: int) -> dict[str, np.float32]:
    """The values that `traced` takes: all that a grid varies and one program serves."""
    names = ("lr", *(["weight_decay"] if o.weight_decay else []))
    return {"steps": np.float32(steps), **{name: np.float32(o[name]) for name in names}}


def traced(o: Any, values: Any, train: Any, layers: Layers) -> Optimizer:
    """The optimizer of `make` whose rate, decay and number of steps are `values`, as of `hyper`."""
    own = {**o, **{name: value for name, value in values.items() if name in o}}
    return make(types.SimpleNamespace(**own), values["steps"], train, layers)


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
