"""The model: a backbone, adapted, and a head."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import adapters, attach, backbones, optim, tree, weights
from dynadapt.context import Context, join_map
from dynadapt.errors import ConfigError
from dynadapt.layers import SameKey, quantised

Array = jax.Array
Batch = Mapping[str, jax.ShapeDtypeStruct]
# Values of a run that a program may get as arguments, so that one program serves many runs.
Hyper = Mapping[str, Array]


# What a model records of its features: how far those of a batch's examples differ (`variance`), and
# whether those of an example are finite.
VARIANCE, FINITE = "features/variance", "features/finite"


class Model(nnx.Module):
    """A backbone and a head; what the backbone takes in, the head's outputs out."""

    def __init__(self, backbone: nnx.Module, head: nnx.Module):
        self.backbone, self.head = backbone, head

    def __call__(self, inputs: Array, ctx: Context, parts: int = 1) -> Any:
        """The outputs; the backbone may see the batch in several parts, one after another.

        `VARIANCE` and `FINITE`, `b`, are recorded: of tasks with features of their own, those of
        the task that differ least, and whether all are finite.
        """
        if parts == 1:
            found = self.backbone(inputs, ctx)
        else:
            found = _in_parts(self.backbone, inputs, ctx, parts)
        each = of_tasks(found)
        spread = (variance(features, ctx.mask) for features in each)
        ctx.record(VARIANCE, functools.reduce(jnp.minimum, spread))
        last = [x for features in each for x in (features.maps[-1], features.tokens)]
        finite = [jnp.isfinite(x).all(tuple(range(1, x.ndim))) for x in last]
        ctx.record(FINITE, functools.reduce(jnp.logical_and, finite))
        return self.head(found, ctx)


def of_tasks(found: Any) -> list[backbones.Features]:
    """The features of each task that a backbone answers by name; or those that serve all."""
    return list(found.values()) if isinstance(found, Mapping) else [found]


def variance(features: Any, mask: Array | None = None) -> Array:
    """How far examples differ: their variance over their mean square, from 0 (all equal) to 1.

    Of class tokens where there are, else of means over positions. `mask` is 1 for each example
    that counts.
    """
    last = features.maps[-1].astype(jnp.float32)
    seen = last.mean(tuple(range(1, last.ndim - 1)))
    if features.tokens.shape[1]:
        seen = features.tokens[:, 0].astype(jnp.float32)
    mask = jnp.ones(seen.shape[0]) if mask is None else mask
    share = (mask / jnp.maximum(mask.sum(), 1.0))[:, None]
    centre = (share * seen).sum(0)
    # Differences, since squares of large means cancel.
    between = (share * jnp.square(seen - centre[None])).sum()
    return between / jnp.maximum(between + jnp.square(centre).sum(), 1e-30)


class Parts(NamedTuple):
    """A model taken apart, to be put together by `nnx.merge(*parts)`.

    Attributes:
        graph: its structure.
        train: what trains, float32.
        stats: running statistics that training moves, float32.
        frozen: all else, in the storage dtype, of which `quantised.KINDS` are for kernels alone;
            running statistics among it are constants, float32.
    """

    graph: Any
    train: nnx.State
    stats: nnx.State
    frozen: nnx.State


def build(config: Any, task: Any, spec: Batch, bare: nnx.Module | None = None) -> Model:
    """Backbone, its weights, the adapter, the head: in this order, from a checked config.

    The random weights of backbone, adapter and head depend on `config.seed`, each on its own. A
    backbone `bare`, with its weights, is adapted in a copy that shares its arrays: a step that
    donates them must not get them.

    Args:
        config: checked.
        task: what gives the head.
        spec: shapes of a batch, as of `data.loader.spec`.
        bare: the backbone with its weights, where it is there already.

    Raises:
        ConfigError: for a backbone that does not take such a batch.
    """
    backbone = loaded_backbone(config) if bare is None else nnx.clone(bare)
    _adapt(backbone, config, _rngs(config, "adapter"))
    return Model(backbone, head_of(task, features(backbone, spec), _rngs(config, "head")))


def abstract(config: Any, task: Any, spec: Batch) -> Model:
    """The same model with shapes in place of arrays: nothing is read and nothing is allocated."""
    checkpoint = _checkpoint(config)

    def make() -> Model:
        backbone = bare_backbone(config, checkpoint, SameKey())
        _adapt(backbone, config, SameKey())
        return Model(backbone, head_of(task, features(backbone, spec), SameKey()))

    return nnx.eval_shape(make)


def head_of(task: Any, like: Any, rngs: nnx.Rngs | SameKey) -> nnx.Module:
    """The task's head for features like these.

    Raises:
        ConfigError: for features of several tasks where the task is one.
    """
    if isinstance(like, Mapping) and not hasattr(task, "tasks"):
        raise ConfigError(
            f"the adapter has the tasks {', '.join(like)}, and this run is of one; leave out "
            "adapter.tasks"
        )
    return task.head(like, rngs=rngs)


def features(backbone: nnx.Module, spec: Batch) -> Any:
    """Shapes of what a backbone answers to one example of a batch: what heads are made for.

    They are `Features`, or those of each task by its name.
    """
    given = spec.get(backbone.takes)
    if given is None:
        raise ConfigError(
            f"the backbone takes the field {backbone.takes!r}, which the data don't have; they "
            f"have {', '.join(spec)}"
        )
    graph, state = nnx.split(backbone)
    one = jax.ShapeDtypeStruct((1, *given.shape[1:]), jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x, Context()), state, one)


def outputs(
    network: Model,
    batch: Mapping[str, Array],
    ctx: Context,
    task: Any,
    config: Any,
    hyper: Hyper,
    parts: int = 1,
    look: bool = False,
) -> Any:
    """What a model answers to a prepared batch.

    Args:
        network: the model.
        batch: on the device, prepared by the task.
        ctx: what layers are told.
        task: what is learned.
        config: of the run; images are cast to its compute dtype, points never.
        hyper: `scale` takes the place of the adapters' fixed scales, and `classes` says how many
            of the head's classes there are.
        parts: into which the batch is cut for the backbone.
        look: whether the task may call the model several times, as it wants in an evaluation;
            what layers record is lost then.
    """
    ctx = ctx.replace(frozen=untouched(network, config))
    if "patches" in batch:  # kept of the frozen prefix
        inputs = join_map(batch["leading"], batch["patches"])
        ctx = ctx.replace(grid=batch["patches"].shape[1:3])
    else:
        inputs = batch[network.backbone.takes]
    if network.backbone.takes == "image":
        inputs = inputs.astype(config.compute.dtype)
    if "scale" in hyper:
        adapters.rescale(network.backbone, hyper["scale"].astype(inputs.dtype))
    if look and hasattr(task, "look"):
        # Each call writes on a tape of its own: they may be turns of a loop.
        inputs = batch.get("whole", inputs)
        answer = task.look(lambda x: network(x, ctx.replace(tape={})), inputs)
        finite = [jnp.isfinite(x).all(tuple(range(1, x.ndim))) for x in jax.tree.leaves(answer)]
        ctx.record(FINITE, functools.reduce(jnp.logical_and, finite))
    else:
        answer = network(inputs, ctx, parts)
    return task.within(answer, hyper["classes"]) if "classes" in hyper else answer


def _in_parts(backbone: nnx.Module, inputs: Array, ctx: Context, parts: int) -> Any:
    """A backbone's features of a batch, of one part after another.

    Each part is computed anew for its gradient, so that the activations of one part are held at a
    time. A part takes every `parts`-th example: on a mesh no example moves to another device.
    """
    cut = inputs.reshape(-1, parts, *inputs.shape[1:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(given: tuple[Array, Array]) -> Any:
        part, number = given
        key = None if ctx.key is None else jax.random.fold_in(ctx.key, number)
        inner = ctx.replace(key=key, mask=None, tape={})
        found = backbone(part, inner)
        losses = {k: v for k, v in inner.tape.items() if k.startswith("loss/")}
        return jax.tree.map(_unwatched, found, is_leaf=_has_aux), losses

    found, losses = jax.lax.map(one, (cut, jnp.arange(parts)))
    for name, value in losses.items():
        ctx.record(name, value.mean(0))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found)


def _has_aux(value: Any) -> bool:
    return isinstance(value, backbones.Features)


def _unwatched(found: backbones.Features) -> backbones.Features:
    """Features without what layers recorded, which has no axis of examples."""
    return dataclasses.replace(found, aux={})


def named(config: Any, backbone: nnx.Module) -> Any:
    """A copy of the config that names the adapter's settings which follow from the backbone."""
    made = config.copy_and_resolve_references()
    given = dict(made.adapter)
    made.adapter.update(adapters.resolved(backbone, given.pop("name"), **given))
    return made


def adapted_backbone(config: Any) -> nnx.Module:
    """The backbone of a config with its weights and the adapter, not yet trained."""
    backbone = loaded_backbone(config)
    _adapt(backbone, config, _rngs(config, "adapter"))
    return backbone


def loaded_backbone(config: Any) -> nnx.Module:
    """The backbone of a config with its weights, without adapter."""
    checkpoint = _checkpoint(config)
    backbone = bare_backbone(config, checkpoint)
    if checkpoint:
        weights.fill(backbone, checkpoint)
    return backbone


def _checkpoint(config: Any) -> weights.Checkpoint | None:
    """The backbone's weights as they were found; None where they are random."""
    name = config.backbone.weights
    return weights.read(weights.locate(name)) if name else None


def bare_backbone(
    config: Any,
    checkpoint: weights.Checkpoint | None = None,
    rngs: nnx.Rngs | SameKey | None = None,
) -> nnx.Module:
    """The backbone of a config with random weights, without adapter.

    Options that the config leaves open are those of the weights' publisher, then the variant's.
    """
    name, given = config.backbone.name, sizes(config)
    options = weights.options(checkpoint, name) if checkpoint else {}
    return backbones.create(name, rngs=rngs or _rngs(config, "backbone"), **{**options, **given})


def sizes(config: Any) -> dict[str, Any]:
    """The fields of the backbone's size table that the config gives."""
    given = {k: v for k, v in config.backbone.items() if k not in ("name", "weights")}
    if not given["image_size"]:
        del given["image_size"]
    return given


def _adapt(backbone: nnx.Module, config: Any, rngs: nnx.Rngs | SameKey) -> None:
    given = dict(config.adapter)
    adapters.adapt(backbone, given.pop("name"), rngs=rngs, **given)


def _rngs(config: Any, part: str) -> nnx.Rngs:
    number = ("backbone", "adapter", "head").index(part)
    return nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), number))


def patterns(config: Any) -> tuple[str, ...]:
    """Patterns of base parameters that train: the method's and the config's."""
    given = dict(config.adapter)
    order = backbones.layers(config.backbone.name, **sizes(config))
    return adapters.trains(given.pop("name"), order, **given) + tuple(config.trainable)


def untouched(network: Model, config: Any) -> int:
    """How many blocks, from the first, lie below all that is adapted and all that trains."""
    if adapters.leads(network.backbone):
        return 0
    order = layers(config)
    trained = tree.leaves(nnx.state(network, adapters.trainable(patterns(config))))
    touched = [*trained, *(path for path, _ in attach.adapted(network))]
    return max(len(order.order) - 1 - max(map(order.below_output, touched), default=0), 0)


def layers(config: Any) -> optim.Layers:
    """Depths and plain leaves of a config's model, as the optimizer wants them."""
    name = config.backbone.name
    order = backbones.layers(name, **sizes(config))
    plain = backbones.plain(name) + adapters.plain(config.adapter.name)
    return optim.Layers(*(tuple(f"backbone/(?:{p})" for p in part) for part in (order, plain)))


def split(model: Model, config: Any) -> Parts:
    """Takes a model apart.

    Raises:
        ConfigError: for a pattern in the config's `trainable` that matches no parameter.
    """
    tree.check_used(config.trainable, tree.leaves(nnx.state(model)), what="pattern in trainable")
    filters = (adapters.trainable(patterns(config)), adapters.moving, nnx.BatchStat, ...)
    graph, train, stats, constants, frozen = nnx.split(model, *filters)
    frozen = tree.map_leaves(functools.partial(_stored, config.compute.frozen_dtype), frozen)
    return Parts(graph, train, stats, nnx.merge_state(constants, frozen))


def statistics(network: Model) -> nnx.State:
    """The running statistics of a model, after a call that moved them."""
    return nnx.state(network, adapters.moving)


def _stored(kind: str, path: str, x: Any) -> Any:
    """A frozen leaf as it is stored: of kinds in few bits the kernels, and all else in float32."""
    if kind in quantised.KINDS:
        return quantised.pack(x, kind) if path.endswith("/kernel") else x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(kind))
    return x.astype(kind)
