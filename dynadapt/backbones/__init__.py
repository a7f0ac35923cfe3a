"""Frozen foundation models, one architecture a file; none of them knows of adapters."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import jax
from flax import nnx

from dynadapt import choices, tree
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import ACTIVATIONS, SameKey

Array = jax.Array

# Ordered (variant, normalisation): AugReg and the first ViTs differ from all that came after.
NORMALISED = ((r"vit_\w+", "inception"), (r".*", "imagenet"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Features:
    """What a backbone returns.

    Attributes:
        maps: chosen levels, fine to coarse, each `b h w d`; the last went through the final norm.
        tokens: class token and registers, for points prompts too, after the final norm, `b p d`.
        aux: what layers recorded, by name.
    """

    maps: tuple[Array, ...]
    tokens: Array
    aux: dict[str, Array] = dataclasses.field(default_factory=dict)


def names() -> list[str]:
    """All variants of all families."""
    return [name for family in _families() for name in family.VARIANTS]


def create(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> nnx.Module:
    """A backbone with random weights.

    Args:
        name: a variant such as `vit_b16`.
        rngs: source of the random weights.
        **overrides: any field of the family's size table, such as `image_size=384`.

    Raises:
        UnknownName: for a variant or a field that does not exist, naming the nearest.
    """
    return _family(name).Backbone(config(name, **overrides), rngs=rngs)


def abstract(name: str, **overrides: Any) -> nnx.Module:
    """The same with shapes in place of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: create(name, rngs=SameKey(), **overrides))


def config(name: str, **overrides: Any) -> Any:
    """Sizes and options of a variant, with some changed; the same errors as `create`."""
    family = _family(name)
    return _config(family, f"backbone {name!r}", {**family.VARIANTS[name], **overrides})


def normalisation(variant: str) -> str:
    """How the images of a variant's published weights are normalised, in `data.images`."""
    return next(value for pattern, value in NORMALISED if tree.matches(pattern, variant))


def layers(name: str, **overrides: Any) -> tuple[str, ...]:
    """Patterns of the modules and leaves at each depth, from the input on, with paths inside it.

    Embeddings and tokens are at depth 0, block i at i + 1; what follows the last block, such as
    the final norm, is in none. The same errors as `create`.
    """
    return _family(name).layers(config(name, **overrides))


def plain(name: str) -> tuple[str, ...]:
    """Patterns of the leaves that are no weights: tokens, positions, tables of biases."""
    return _family(name).PLAIN


def family(variant: str) -> str:
    """Name of the family that a variant is of; raises UnknownName."""
    return _family(variant).__name__.rpartition(".")[-1]


def of(family: str, **fields: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    """What makes a backbone of a family from any fields of its size table.

    Raises:
        UnknownName: for a family or a field that does not exist, naming the nearest.
    """
    module = choices.module(sys.modules[__name__], family, "backbone family")
    config = _config(module, f"a backbone of {family!r}", fields)
    return lambda rngs: module.Backbone(config, rngs=rngs)


def check_patches(height: int, width: int, patch: int) -> None:
    """Raises a ConfigError for images that can't be cut into patches, naming the nearest size."""
    if height % patch or width % patch:
        nearest = [max(round(side / patch), 1) * patch for side in (height, width)]
        size = str(nearest[0]) if height == width else f"{nearest[0]}, {nearest[1]}"
        raise ConfigError(
            f"images of {height}x{width} are not divisible by the backbone's patch {patch}; the "
            f"nearest is resize({size})"
        )


def check_block(dim: int, heads: int, act: str) -> None:
    """Raises a ConfigError for heads that do not divide the width, or an unknown activation."""
    if dim % heads:
        raise ConfigError(f"width {dim} is not divisible by {heads} heads")
    if act not in ACTIVATIONS:
        raise UnknownName("activation", act, ACTIVATIONS)


def check_numbers(name: str, numbers: Iterable[int], depth: int) -> None:
    """Raises a ConfigError for the number of a block that is not there; -1 is the last."""
    for number in numbers:
        if not -depth <= number < depth:
            raise ConfigError(f"there is no block {number} among {depth}, as {name} asks")


def _config(family: ModuleType, kind: str, settings: dict[str, Any]) -> Any:
    known = [f.name for f in dataclasses.fields(family.Config)]
    choices.check_settings(kind, settings, dict.fromkeys(known))
    return family.Config(**settings)


def _family(variant: str) -> ModuleType:
    """The module whose size table has the variant."""
    for family in _families():
        if variant in family.VARIANTS:
            return family
    raise UnknownName("backbone", variant, names())


def _families() -> list[ModuleType]:
    here = sys.modules[__name__]
    return [choices.module(here, name, "backbone family") for name in choices.names(here)]
