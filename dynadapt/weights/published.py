"""Published and own files of weights, in our names."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt import backbones
from dynadapt.errors import CheckpointError, UnknownName
from dynadapt.weights import cards, source, unread
from dynadapt.weights.layouts import LAYOUTS
from dynadapt.weights.tables import Layout, averaged

# The key of a safetensors file's metadata under which our own layout describes itself.
METADATA = "dynadapt"
# Notes that were logged: a run reads its weights several times.
_LOGGED: set[str] = set()


@dataclasses.dataclass
class Checkpoint:
    """Weights in our own names, of whatever source.

    Attributes:
        path: where they were found.
        family: module of `backbones`; "" where a file in our own layout does not say.
        publisher: whose layout the file has, or had before it was converted; "" for none.
        prefix: what stands before all names in that layout.
        config: sizes and options of the backbone, as far as the file tells.
        values: by path within the backbone, in the source's dtype.
        head: the classifier that came along, by path from `head/` on.
        rest: what the backbone does not need, by the source's name.
        strange: names of which nothing is known.
        layout: whose names they are in the file that was read; None for our own.
        notes: what a user should know of how they were read, a sentence each.
        assumed: fields of the config that nothing tells, as published ones have them.
    """

    path: Path
    family: str = ""
    publisher: str = ""
    prefix: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    head: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    rest: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    strange: list[str] = dataclasses.field(default_factory=list)
    layout: Layout | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    assumed: tuple[str, ...] = ()

    def note(self, text: str) -> None:
        """Adds a note, and logs it once in a process."""
        self.notes.append(text)
        if text not in _LOGGED:
            _LOGGED.add(text)
            logging.getLogger(__name__).warning("%s", text)

    def called(self, path: str) -> str:
        """The name of one of our paths in the file that was read."""
        names = self.layout.source_names(path, self.prefix) if self.layout else []
        return ", ".join(names) or path


def read(path: str | Path, grid: tuple[int, int] | None = None) -> Checkpoint:
    """Reads weights of any known source; architecture and layout follow from keys and shapes.

    Args:
        path: a file, or a folder with its `config.json`.
        grid: rows and columns of the position embeddings, where they are no square and no
            `config.json` tells them.

    Raises:
        CheckpointError: for a file that is damaged or of no known layout.
        UnsafeCheckpointError: for a file that asks for more than weights need.
    """
    found = source.read(Path(path))
    if grid:
        found.card["grid"] = grid
    layout, prefix = _layout(found)
    checkpoint = _foreign(found, layout, prefix) if layout else _own(found)
    for text in found.notes:
        checkpoint.note(text)
    return checkpoint


def _layout(found: source.SourceFile) -> tuple[Layout | None, str]:
    """The layout that the names are of, None for our own; and the prefix."""
    if METADATA in found.metadata:
        return None, ""
    if title := unread.family(found.tensors, found.card):
        raise CheckpointError(
            f"{str(found.path)!r} look like weights of {title}, which is not read here; "
            f"{backbones.READ} are"
        )
    for layout in LAYOUTS:
        prefixes = layout.prefixes(found.tensors)
        if prefixes:
            prefix, *others = prefixes
            raw = [p for p in others if not averaged(p)]
            if averaged(prefix) and raw:
                found.notes.append(source.taken_averaged(found.path, prefix, raw))
            return layout, prefix
    if any(name.endswith("/kernel") for name in found.tensors):
        return None, ""
    some = ", ".join(list(found.tensors)[:3]) or "none"
    raise CheckpointError(
        f"weights {str(found.path)!r} are of no known source; their names are such as {some}"
    )


def _foreign(found: source.SourceFile, layout: Layout, prefix: str) -> Checkpoint:
    shapes = {
        k.removeprefix(prefix): v.shape for k, v in found.tensors.items() if k.startswith(prefix)
    }
    try:
        config = layout.config(shapes, found.card)
        ours, strange = layout.to_ours(found.tensors, prefix)
    except KeyError as error:
        raise CheckpointError(_unlike(found, layout, f"- {prefix}{error.args[0]}")) from error
    except (IndexError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(_unlike(found, layout, f"wrong shapes ({error})")) from error
    head = {k: ours.pop(k) for k in list(ours) if k.startswith("head/")}
    used = {n for p in (*ours, *head) for n in layout.source_names(p, prefix)}
    rest = {k: v for k, v in found.tensors.items() if k not in used and k not in strange}
    checkpoint = Checkpoint(
        found.path, layout.family, layout.name, prefix, config, ours, head, rest, strange, layout
    )
    checkpoint.assumed = () if cards.image_size(found.card) else layout.assumes
    return checkpoint


def _unlike(found: source.SourceFile, layout: Layout, what: str) -> str:
    path = str(found.path)
    return f"weights {path!r} look like {layout.family} of {layout.name} but do not fit it: {what}"


def _own(found: source.SourceFile) -> Checkpoint:
    checkpoint = Checkpoint(found.path)
    for name, value in found.tensors.items():
        if name.startswith("rest/"):
            checkpoint.rest[name.removeprefix("rest/")] = value
        elif name.startswith("head/"):
            checkpoint.head[name] = value
        else:
            checkpoint.values[name] = value
    try:
        card = json.loads(found.metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(found.path)!r} has metadata that are no JSON") from error
    kinds = dict(family=str, publisher=str, prefix=str, config=dict)
    if not isinstance(card, dict) or any(
        k in card and not isinstance(card[k], kind) for k, kind in kinds.items()
    ):
        raise CheckpointError(f"{str(found.path)!r} has metadata that describe no backbone")
    if not card and found.path.stem in backbones.names():
        config = dataclasses.asdict(backbones.config(found.path.stem))
        card = dict(family=backbones.family(found.path.stem), config=config)
    for field in kinds:
        setattr(checkpoint, field, card.get(field, getattr(checkpoint, field)))
    return checkpoint


def layout_for(publisher: str, family: str, config: Any) -> Layout:
    """The layout in which a publisher keeps a backbone of this config.

    Raises:
        UnknownName: where that publisher has none, naming those that have.
    """
    fits = [x for x in LAYOUTS if x.family == family and x.serves(config)]
    for layout in fits:
        if layout.name == publisher:
            return layout
    raise UnknownName(f"layout of a {family}", publisher, sorted({x.name for x in fits}))
