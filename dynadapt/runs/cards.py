"""What the card of an adapter may hold. Hashes protect no reader: a stranger writes them too."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dynadapt import backbones, choices
from dynadapt import config as configs
from dynadapt.errors import CheckpointError, DynadaptError
from dynadapt.files import first_line

# What is read of a card, of any format.
KINDS = {
    **{"data": str, "weights_sha256": str, "file_sha256": str},
    **{"classes": list, "config": dict, "tensor_sha256": dict},
}
FIELD = {"kind": str, "dtype": str, "fill": float, "classes": list, "most": int, "size": list}


def number(card: Mapping[str, Any], most: int) -> int:
    """The card's format, from 1 to `most`.

    Raises:
        CheckpointError: for any other.
    """
    given = card.get("format", 1)
    if type(given) is not int or given < 1:
        raise CheckpointError(f"it has format {_shown(given)}, which is no number of a format")
    if given > most:
        versions = card.get("versions")
        writer = versions.get("dynadapt") if isinstance(versions, dict) else None
        raise CheckpointError(
            f"it is of format {_shown(given)}, and this version reads formats up to {most}; it was "
            f"written by dynadapt {str(writer)[:40]}"
        )
    return given


def problems(card: Mapping[str, Any]) -> Iterator[str]:
    """All values of a card that are of another type than what reads them, or missing."""
    yield from _mistyped("", card, KINDS)
    if not all(isinstance(name, str) for name in _listed(card.get("classes"))):
        yield "classes must be names"
    fields = card.get("fields", {})
    if not isinstance(fields, dict):
        yield f"fields must be dict, not {_shown(fields)}"
        return
    for name, field in fields.items():
        if not isinstance(field, dict):
            yield f"fields.{name} must be dict, not {_shown(field)}"
            continue
        known = {k: kind for k, kind in FIELD.items() if k in field or k == "kind"}
        yield from _mistyped(f"fields.{name}.", field, known)
        if not all(isinstance(c, str) for c in _listed(field.get("classes"))):
            yield f"fields.{name}.classes must be names"
        most = backbones.most("size")
        if not all(type(n) is int and 0 <= n <= most for n in _listed(field.get("size"))):
            yield f"fields.{name}.size must be numbers of at most {most:,}"
        if not _is_dtype(field.get("dtype", "")):
            yield f"fields.{name}.dtype must be that of numbers, not {_shown(field['dtype'])}"


def _mistyped(prefix: str, values: Mapping[str, Any], kinds: Mapping[str, type]) -> Iterator[str]:
    for name, kind in kinds.items():
        if not _is(values.get(name), kind):
            yield f"{prefix}{name} must be {kind.__name__}, not {_shown(values.get(name))}"


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; a whole number is a float, true and false are no numbers."""
    return type(value) in (int, float) if kind is float else type(value) is kind


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_dtype(name: Any) -> bool:
    try:
        return name == "" or np.dtype(name).kind in "uif"
    except (TypeError, ValueError, SyntaxError):  # numpy reads lists of types in a text
        return False


def config(values: dict[str, Any]) -> Any:
    """The config of a card, what later versions added with its default.

    Raises:
        CheckpointError: for a value of another type, or beyond all bounds.
        UnknownName: for a choice that this version does not have.
    """
    try:
        text = json.dumps(values, allow_nan=False, ensure_ascii=False)
        text.encode()  # no half of a surrogate pair, which no file name has
        if "\\u0000" in text:
            raise ValueError("a text has a zero byte")
        made = configs.completed(values)
        for fault in _beyond(made):
            raise ValueError(fault)
    except DynadaptError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"its config can't be read: {first_line(error)}") from error
    return made


def _beyond(made: Any) -> Iterator[str]:
    """Sizes of another type, and numbers that no model has."""
    sizes = dict(made.backbone)
    table = dataclasses.asdict(backbones.config(sizes.pop("name")))
    for name, value in sizes.items():
        own = table.get(name)
        if own is not None and not choices.alike(value, own):
            yield f"backbone.{name} must be {type(own).__name__}, not {_shown(value)}"
    for section in ("adapter", "backbone", "task"):
        for name, value in made[section].items():
            most = backbones.most(name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, int | float) and abs(one) > most:
                    yield f"{section}.{name} is {_shown(one)}, above {most:,}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
