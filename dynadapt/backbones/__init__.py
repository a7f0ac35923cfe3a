"""Frozen foundation models, one architecture a file; none of them knows of adapters."""

import dataclasses
import sys
from types import ModuleType
from typing import Any

import jax
from flax import nnx

from dynadapt import choices
from dynadapt.errors import UnknownName

Array = jax.Array


@dataclasses.dataclass
class Features:
    """What a backbone returns.

    Attributes:
        maps: chosen levels, fine to coarse, each `b h w d`; the last went through the final norm.
        tokens: class token and registers after the final norm, `b p d`.
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


def config(name: str, **overrides: Any) -> Any:
    """Sizes and options of a variant, with some changed; the same errors as `create`."""
    family = _family(name)
    settings = {**family.VARIANTS[name], **overrides}
    fields = [f.name for f in dataclasses.fields(family.Config)]
    choices.check_settings(f"backbone {name!r}", settings, dict.fromkeys(fields))
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
