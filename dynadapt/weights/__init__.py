"""Weights of backbones: files in, files out, no pickle and no torch.

The library's own layout is a safetensors file whose keys are parameter paths within the backbone.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import files, tree
from dynadapt.errors import CheckpointError, suggest

ASSETS = Path(__file__).parent.parent / "assets"


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(p.stem for p in ASSETS.glob("*.safetensors"))


def locate(name: str) -> Path:
    """The file of weights given by a path, or by the name of weights that come with the package.

    Raises:
        CheckpointError: if there is no such file, naming the nearest.
    """
    if name in shipped():
        return ASSETS / f"{name}.safetensors"
    path = Path(name).expanduser()
    if not path.is_file():
        raise CheckpointError(f"no weights at {name!r}; {_nearby(path)}")
    return path


def _nearby(path: Path) -> str:
    beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    return suggest(path.name, [p for p in beside if Path(p).suffix] + shipped())


def load(backbone: nnx.Module, path: str | Path) -> None:
    """Copies the values of a file into the backbone, keeping the backbone's dtypes.

    Args:
        backbone: any backbone without adapters, changed in place.
        path: a safetensors file in the library's own layout.

    Raises:
        CheckpointError: for a file that does not fit, with a list of what is missing (-) or left
            over (+) or of another shape.
    """
    state = nnx.state(backbone)
    own, given = tree.leaves(state), files.read_tensors(path)
    given = {k: _fitted(backbone, k, v) for k, v in given.items()}
    faults = [f"- {k} {tuple(own[k].shape)}" for k in own if k not in given]
    faults += [f"+ {k} {v.shape}" for k, v in given.items() if k not in own]
    faults += [
        f"- {k} {tuple(own[k].shape)}\n+ {k} {v.shape}"
        for k, v in given.items()
        if k in own and own[k].shape != v.shape
    ]
    if faults:
        shown = "\n".join(faults[:20]) + ("\n…" if len(faults) > 20 else "")
        raise CheckpointError(f"weights {str(path)!r} do not fit the backbone:\n{shown}")
    values = {k: jnp.asarray(given[k], own[k].dtype) for k in own}
    nnx.update(backbone, tree.replace(state, values))


def _fitted(backbone: Any, path: str, value: np.ndarray) -> np.ndarray:
    """Lets a backbone change a value to its own size (resampled position embeddings)."""
    return backbone.fitted(path, value) if hasattr(backbone, "fitted") else value
