"""Reads files of weights in every format that publishers use, without torch and without pickle."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt import files
from dynadapt.errors import CheckpointError
from dynadapt.weights import pth

# Names under which training programs nest the tensors, the most wanted first.
WRAPPERS = ("teacher", "model", "state_dict", "base_model", "module", "params")
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
    """

    path: Path
    tensors: dict[str, np.ndarray]
    card: dict[str, Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def read(path: Path) -> SourceFile:
    """The tensors of a file, or of a folder with a file and a `config.json`.

    Raises:
        CheckpointError: for what is missing, damaged or no weights.
        UnsafeCheckpointError: for a pickle that asks for more than weights need.
    """
    card = path / "config.json" if path.is_dir() else path.with_name("config.json")
    values = files.read_json(card) if card.is_file() else {}
    found = SourceFile(path, {}, values if isinstance(values, dict) else {})
    for file in parts(path):
        tensors, metadata = _read(file)
        found.tensors |= tensors
        found.metadata |= metadata
    return found


def parts(path: Path) -> list[Path]:
    """The files of weights at a path: itself, or those in the folder."""
    if not path.is_dir():
        return [path]
    held = [path / name for name in IN_FOLDER if (path / name).is_file()]
    if not held:
        held = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".npz"))
        if len(held) != 1:
            raise CheckpointError(f"the folder {str(path)!r} holds {len(held)} files of weights")
    if held[0].suffix != ".json":
        return held[:1]
    names = sorted(set(files.read_json(held[0]).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{held[0]} names a part outside its folder: {name!r}")
    return [path / name for name in names]


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read weights {str(path)!r}: {error.strerror}") from error
    if start[8:9] == b"{":
        return files.read_tensors(path), files.read_metadata(path)
    if start.startswith(b"PK") and _has_arrays(path):
        return files.read_npz(path), {}
    return unwrapped(pth.read(path), path), {}


def _has_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def unwrapped(values: Any, path: Path) -> dict[str, np.ndarray]:
    """The mapping of names to arrays inside what a training program saved.

    Raises:
        CheckpointError: where there is none.
    """
    seen = values
    while isinstance(seen, Mapping):
        arrays = {k: v for k, v in seen.items() if isinstance(v, np.ndarray)}
        inner = next((seen[w] for w in WRAPPERS if isinstance(seen.get(w), Mapping)), None)
        if inner is None:
            if arrays:
                return {str(k): v for k, v in arrays.items()}
            break
        seen = inner
    held = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
    raise CheckpointError(f"{str(path)!r} holds no weights, only {held[:200]}")


def not_finite(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The first name whose values are not all finite."""
    for name, value in tensors.items():
        if value.dtype.kind in "fV" and not np.isfinite(np.asarray(value, np.float32)).all():
            return name
        pth.release(value)
    return None
