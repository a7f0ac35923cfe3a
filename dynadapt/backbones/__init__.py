"""Frozen foundation models, one architecture a file; none of them knows of adapters."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from flax import nnx

from dynadapt import choices, tree
from dynadapt.context import REMAT
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import ACTIVATIONS, SameKey
from dynadapt.layers.features import Features as Features

# Ordered (variant, normalisation): AugReg and the first ViTs differ from all that came after.
NORMALISED = ((r"vit_\w+", "inception"), (r".*", "imagenet"))
# Names that timm, Hugging Face and the publishers' code give to our variants, with small letters,
# "_" between the words and sizes as ours; the first pattern that is found is meant.
_LETTERS = dict(tiny="ti", small="s", base="b", large="l", huge="h", giant="g")
_PUBLISHED = (
    (r"vit_([sblg])_patch14_reg4_dinov2", r"dinov2_\g<1>14_reg"),
    (r"vit_([sblg])_patch14_dinov2", r"dinov2_\g<1>14"),
    (r"dinov2_with_registers_([sblg])(?![a-z])", r"dinov2_\g<1>14_reg"),
    (r"dinov2_(?:vit)?([sblg])(?:14)?_reg", r"dinov2_\g<1>14_reg"),
    (r"dinov2_(?:vit)?([sblg])(?![a-z])", r"dinov2_\g<1>14"),
    (r"vit_mae_h", r"mae_h14"),
    (r"vit_mae_([bl])", r"mae_\g<1>16"),
    (r"mae_vit_([blh])_patch(\d+)", r"mae_\1\2"),
    (r"vit_([blh])_patch(\d+)_\d+_mae", r"mae_\1\2"),
    (r"sam_?vit_([blh])", r"sam_\g<1>16"),
    (r"deit_(ti|s|b)_distilled_patch16", r"deit_\g<1>16_distilled"),
    (r"swin_([bl])_patch4_window12_384", r"swin_\1_384"),
    (r"swin_([tsbl])i?_patch4_window7_224", r"swin_\1"),
    (r"(?:deit|(?<![a-z])vit)_(ti|[sblhg])_(?:patch)?(8|14|16|32)(?!\d)", r"vit_\1\2"),
)
# What names of models that are not read here hold, and what those models are called.
_UNREAD = (
    (r"dinov3", "DINOv3"),
    (r"siglip2?", "SigLIP"),
    (r"(meta|open)?clip", "CLIP"),
    (r"eva(02)?", "EVA-02"),
    (r"beit(v2)?", "BEiT"),
    (r"swinv2|swin_v2", "Swin-V2"),
    (r"convnext(v2)?", "ConvNeXt"),
)
# Numbers of a config up to which anything is made: blocks, pixels of a side, and all others.
_MOST = {"depth": 256, "depths": 256, "image_size": 8000, "grid": 8000}
READ = "ViT, DeiT, MAE, DINOv2, SAM, Swin and Point-MAE"


def names() -> list[str]:
    """All variants of all families."""
    return [name for family in _families() for name in family.VARIANTS]


def ours(name: str) -> str:
    """Our name of a model by its name in timm, at Hugging Face or in published code; or ""."""
    words = _words(name)
    for pattern, form in _PUBLISHED if not unread(name) else ():
        if found := re.search(pattern, words):
            variant = found.expand(form)
            return variant if variant in names() else ""
    return ""


def unread(name: str) -> str:
    """What a published model is called that is not read here, by its name; "" for all others."""
    words = _words(name)
    return next((t for p, t in _UNREAD if re.search(rf"(?<![a-z])({p})(?![a-z])", words)), "")


def variant(family: str, sizes: Mapping[str, Any]) -> str:
    """The first variant of a family with these sizes, which may be some of a config; or ""."""
    module = choices.module(sys.modules[__name__], family, "backbone family")
    wanted = _sizes({**dataclasses.asdict(module.Config()), **sizes})
    return next((n for n in module.VARIANTS if _sizes(dataclasses.asdict(config(n))) == wanted), "")


def _sizes(fields: Mapping[str, Any]) -> list[Any]:
    """What of a config tells variants apart that the image size does not."""
    names = ("dim", "depth", "patch", "registers", "gated", "class_token")
    depths, scaled = tuple(fields.get("depths", ())), bool(fields.get("layer_scale"))
    return [depths, scaled, *(fields.get(name) for name in names)]


def _words(name: str) -> str:
    """Small letters, "_" between the words, sizes by our letters."""
    words = re.sub(r"[^a-z0-9]+", "_", name.lower())
    return re.sub("|".join(_LETTERS), lambda m: _LETTERS[m[0]], words)


def create(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> nnx.Module:
    """A backbone with random weights.

    Args:
        name: a variant such as `vit_b16`.
        rngs: source of the random weights.
        **overrides: any field of the family's size table, such as `image_size=384`.

    Raises:
        ConfigError: for a variant or a field that does not exist, naming the nearest, or ours
            where it is another's name of it.
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
    """Name of the family that a variant is of; the same errors as `create`."""
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


def check_grid(grid: tuple[int, ...]) -> None:
    """Raises a ConfigError for a grid that is neither empty nor of rows and columns."""
    if grid and (len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid)):
        raise ConfigError(f"grid={grid} must be rows and columns, such as (16, 32)")


def check_numbers(name: str, numbers: Iterable[int], depth: int) -> None:
    """Raises a ConfigError for the number of a block that is not there; -1 is the last."""
    for number in numbers:
        if not -depth <= number < depth:
            raise ConfigError(f"there is no block {number} among {depth}, as {name} asks")


def _config(family: ModuleType, kind: str, settings: dict[str, Any]) -> Any:
    known = {f.name: f.default for f in dataclasses.fields(family.Config)}
    choices.check_settings(kind, settings, known)
    if "remat" in settings:
        settings = {**settings, "remat": remat(settings["remat"])}
    for name, value in settings.items():
        if None not in (value, known[name]) and not choices.alike(value, known[name]):
            wanted = type(known[name]).__name__
            raise ConfigError(f"{kind} has {name}={value!r:.80}, which must be {wanted}")
    for name, value in settings.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        numbers = [abs(n) for n in numbers if isinstance(n, int | float)]
        limit = most(name)
        if not all(n <= limit for n in (*numbers, len(numbers), name == "depths" and sum(numbers))):
            raise ConfigError(f"{kind} has {name}={value!r:.80}, where {limit:,} is the most")
    return family.Config(**settings)


def remat(value: bool | str) -> str:
    """A name in `context.REMAT`; true and false, which it once was, are `full` and `none`.

    Raises:
        UnknownName: for what is no such name.
    """
    name = {"true": "full", "false": "none"}.get(str(value).lower(), value)
    if name not in REMAT:
        raise UnknownName("remat", str(name), REMAT)
    return name


def most(name: str) -> int:
    """The largest number that a setting of this name may have."""
    return _MOST.get(name, 65_536)


def _family(variant: str) -> ModuleType:
    """The module whose size table has the variant."""
    for family in _families():
        if variant in family.VARIANTS:
            return family
    if title := unread(variant):
        raise ConfigError(f"{variant!r} is a {title}, which is not read here; {READ} are")
    if name := ours(variant):
        raise ConfigError(f"unknown backbone {variant!r}; it is our {name!r}")
    raise UnknownName("backbone", variant, names())


def _families() -> list[ModuleType]:
    here = sys.modules[__name__]
    return [choices.module(here, name, "backbone family") for name in choices.names(here)]
