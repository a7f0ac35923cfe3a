"""The model: a backbone, adapted, and a head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import adapters, backbones, optim, tree, weights
from dynadapt.context import Context
from dynadapt.layers import SameKey

Array = jax.Array


class Model(nnx.Module):
    """A backbone and a head; images `b h w 3` in, the head's outputs out."""

    def __init__(self, backbone: nnx.Module, head: nnx.Module):
        self.backbone, self.head = backbone, head

    def __call__(self, images: Array, ctx: Context) -> Any:
        return self.head(self.backbone(images, ctx), ctx)


def build(config: Any, task: Any, bare: nnx.Module | None = None) -> Model:
    """Backbone, its weights, the adapter, the head: in this order, from a checked config.

    The random weights of backbone, adapter and head depend on `config.seed`, each on its own. A
    backbone `bare`, with its weights, is adapted in a copy that shares its arrays: a step that
    donates them must not get them.
    """
    backbone = loaded_backbone(config) if bare is None else nnx.clone(bare)
    _adapt(backbone, config, _rngs(config, "adapter"))
    return _with_head(backbone, task, _rngs(config, "head"))


def abstract(config: Any, task: Any) -> Model:
    """The same model with shapes in place of arrays: nothing is read and nothing is allocated."""
    checkpoint = _checkpoint(config)

    def make() -> Model:
        backbone = bare_backbone(config, checkpoint, SameKey())
        _adapt(backbone, config, SameKey())
        return _with_head(backbone, task, SameKey())

    return nnx.eval_shape(make)


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
    name, given = config.backbone.name, _sizes(config)
    options = weights.options(checkpoint, name) if checkpoint else {}
    return backbones.create(name, rngs=rngs or _rngs(config, "backbone"), **{**options, **given})


def _sizes(config: Any) -> dict[str, Any]:
    """The fields of the backbone's size table that the config gives."""
    given = {k: v for k, v in config.backbone.items() if k not in ("name", "weights")}
    if not given["image_size"]:
        del given["image_size"]
    return given


def _adapt(backbone: nnx.Module, config: Any, rngs: nnx.Rngs | SameKey) -> None:
    given = dict(config.adapter)
    adapters.adapt(backbone, given.pop("name"), rngs=rngs, **given)


def _with_head(backbone: nnx.Module, task: Any, rngs: nnx.Rngs | SameKey) -> Model:
    return Model(backbone, task.head(backbone, rngs=rngs))


def _rngs(config: Any, part: str) -> nnx.Rngs:
    number = ("backbone", "adapter", "head").index(part)
    return nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), number))


def patterns(config: Any) -> tuple[str, ...]:
    """Patterns of base parameters that train: the method's and the config's."""
    return adapters.trains(config.adapter.name) + tuple(config.trainable)


def layers(config: Any) -> optim.Layers:
    """Depths and plain leaves of a config's model, as the optimizer wants them."""
    name = config.backbone.name
    order = backbones.layers(name, **_sizes(config))
    plain = backbones.plain(name) + adapters.plain(config.adapter.name)
    return optim.Layers(*(tuple(f"backbone/(?:{p})" for p in part) for part in (order, plain)))


def split(model: Model, config: Any) -> tuple[Any, nnx.State, nnx.State]:
    """Splits a model into its graph, what trains (float32) and what is frozen (storage dtype).

    Raises:
        ConfigError: for a pattern in the config's `trainable` that matches no parameter.
    """
    tree.check_used(config.trainable, tree.leaves(nnx.state(model)), what="pattern in trainable")
    graph, train, frozen = nnx.split(model, adapters.trainable(patterns(config)), ...)
    cast = jnp.dtype(config.compute.frozen_dtype)
    return graph, train, jax.tree.map(lambda x: _astype(x, cast), frozen)


def _astype(x: Any, dtype: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, dtype)
    return x.astype(dtype)
