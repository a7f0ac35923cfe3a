"""Files that are whole or not there: atomic writes, hashes, JSON and safetensors."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from dynadapt.errors import CheckpointError


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to; it gets the final name at the end, if nothing was raised."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Writes JSON values."""
    with whole(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; raises a CheckpointError if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def write_tensors(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file."""
    with whole(path) as partial:
        save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, partial)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: if the file is missing, truncated or not of that format.
    """
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read weights {str(path)!r}: {error}") from error
