"""The backbone of a run as a plain weights file."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dynadapt import files
from dynadapt.config import DTYPES
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.runs import checkpoint


def run(folder: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Writes the backbone that a run with method `full` trained.

    Args:
        folder: the run.
        out: a `.safetensors` file in the library's own layout.
        dtype: of the stored values.

    Raises:
        ConfigError: if the run has another method.
    """
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    leaves, card = checkpoint.load_adapter(folder / "adapter")
    if card["method"] != "full":
        raise ConfigError(f"{folder} adapted with {card['method']!r}; export needs method 'full'")
    kind = jnp.dtype(dtype)
    prefix = "backbone/"
    tensors = {k.removeprefix(prefix): v for k, v in leaves.items() if k.startswith(prefix)}
    files.write_tensors(out, {k: v.astype(kind) for k, v in tensors.items()})
    return {"file": str(out), "sha256": files.sha256(out), "bytes": out.stat().st_size}
