"""Reads files of weights in every format that publishers use, without torch and without pickle."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt import files
from dynadapt.errors import CheckpointError
from dynadapt.weights import pth
from dynadapt.weights.tables import averaged

# Names under which training programs nest the tensors, the most wanted first; averaged weights
# (`tables.averaged`) go before all of them.
WRAPPERS = ("model", "state_dict", "base_model", "module", "params", "shadow")
# What a folder of Hugging Face or timm holds, the safest first.
IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclasses.dataclass
class SourceFile:
    """A file of weights as it was found.

    Attributes:
        path: the file or folder.
        tensors: all arrays by name; those of large files are mapped, not read.
        card: the values of a `config.json` beside them, or nothing.
        metadata: text that a safetensors file carries.
        notes: what a user should know of how they were read, a sentence each.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    card: dict[str, Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def read(path: Path) -> SourceFile:
    """The tensors of a file, or of a folder with a file and a `config.json`.

    Raises:
        CheckpointError: for what is missing, damaged or no weights.
        UnsafeCheckpointError: for a pickle that asks for more than weights need.
    """
    with reading(path):
        card = path / "config.json" if path.is_dir() else path.with_name("config.json")
        found = SourceFile(path, {}, files.read_json(card) if card.is_file() else {})
    for file in parts(path):
        _read(file, found)
    return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the file system refuses, such as a closed folder, into a CheckpointError."""
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError for a path that can't be one
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read weights {str(path)!r:.300}: {reason}") from error


def parts(path: Path) -> list[Path]:
    """The files of weights at a path: itself, or those in the folder."""
    with reading(path):
        return _parts(path)


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    held = [path / name for name in IN_FOLDER if (path / name).is_file()]
    if not held:
        held = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".npz"))
        if len(held) != 1:
            raise CheckpointError(f"the folder {str(path)!r} holds {len(held)} files of weights")
    if held[0].suffix != ".json":
        return held[:1]
    names = files.read_json(held[0]).get("weight_map")
    if not names or not isinstance(names, dict):
        raise CheckpointError(f"{held[0]} has no weight_map, which names the parts of tensors")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise CheckpointError(f"{held[0]} names a part outside its folder: {name!r:.80}")
    return [path / name for name in sorted(set(names.values()))]


def _read(path: Path, found: SourceFile) -> None:
    """Adds what a file holds."""
    with reading(path):
        files.regular(path)
        with open(path, "rb") as file:
            start = file.read(16)
    if start[8:9] == b"{":
        found.tensors |= files.read_tensors(path)
        found.metadata |= files.read_metadata(path)
    elif start.startswith(b"PK") and _has_arrays(path):
        found.tensors |= files.read_npz(path)
    else:
        tensors, notes = unwrapped(pth.read(path), path)
        found.tensors |= tensors
        found.notes += notes


def _has_arrays(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return any(name.endswith(".npy") for name in files.zip_entries(file))
    except Exception:  # a damaged file, of which the reader says more
        return False


def unwrapped(values: Any, path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The mapping of names to arrays inside what a training program saved, and notes about it.

    Averaged weights are taken where there are some.

    Raises:
        CheckpointError: where there is no such mapping.
    """
    notes: list[str] = []
    if found := _inside(values, path, notes, set()):
        return found, notes
    held = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
    raise CheckpointError(f"{str(path)!r} holds no weights, only {held[:200]}")


def _inside(values: Any, path: Path, notes: list[str], seen: set[int]) -> dict[str, np.ndarray]:
    """The arrays by name in the most wanted of the mappings at hand; none where there are none."""
    if not isinstance(values, Mapping) or id(values) in seen:
        return {}
    seen.add(id(values))  # a damaged file may hold a mapping that is inside itself
    first = sorted((k for k in values if averaged(str(k))), key=str)
    for name in (*first, *WRAPPERS):
        if found := _inside(values.get(name), path, notes, seen):
            beside = [k for k in (*WRAPPERS, "student") if _inside(values.get(k), path, [], set())]
            if name in first and beside:
                notes.append(taken_averaged(path, str(name), beside))
            return found
    return {str(k): v for k, v in values.items() if isinstance(v, np.ndarray)}


def taken_averaged(path: Path, name: str, beside: Sequence[str]) -> str:
    """The note that of several weights the averaged ones were taken."""
    others = " and ".join(repr(name) if name else "those without prefix" for name in beside)
    return f"weights {str(path)!r}: took the averaged ones, {name!r}, rather than {others}"


def not_finite(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The first name whose values are not all finite."""
    for name, value in tensors.items():
        if value.dtype.kind in "fV" and not np.isfinite(np.asarray(value, np.float32)).all():
            return name
        pth.release(value)
    return None
