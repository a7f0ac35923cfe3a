"""Weights of backbones: published files and our own, read without pickle and without torch.

Our own layout is a safetensors file whose keys are parameter paths within the backbone; `head/...`
is a classifier that came along, `rest/...` what the backbone does not need.
"""

import dataclasses
import difflib
import functools
import hashlib
import os
import shlex
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import backbones, files, tree
from dynadapt.errors import CheckpointError, ConfigError, UnknownName, suggest
from dynadapt.layers import SameKey
from dynadapt.weights import catalogue, pth, source
from dynadapt.weights.published import Checkpoint, read

ASSETS = Path(__file__).parent.parent / "assets"
# Options that a publisher decides, whatever the sizes.
OPTIONS = (
    *("act", "epsilon", "final_norm", "level_norms"),
    *("pad", "positioned", "resample", "small"),
)


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(p.stem for p in ASSETS.glob("*.safetensors"))


def locate(name: str) -> Path:
    """The file or folder given by a path, or by the name of weights that come with the package.

    Raises:
        CheckpointError: if there is no such file, naming the nearest, or what downloads it.
    """
    if name in shipped():
        return ASSETS / f"{name}.safetensors"
    path = Path(os.path.expanduser(name))
    with source.reading(path):
        there = path.exists()
        if there and not path.is_dir():
            files.regular(path)
    if not there:
        raise CheckpointError(f"no weights at {name!r:.300}; {_nearby(path)}")
    return path


def absolute(name: str) -> str:
    """A name by which `locate` finds the same weights from any folder.

    Names of weights that come with the package stay as they are, and so does "".
    """
    if not name or name in shipped():
        return name
    return os.path.abspath(os.path.expanduser(name))


def _nearby(path: Path) -> str:
    for published in catalogue.PUBLISHED:
        if published.file == path.name:
            place = shlex.quote(str(path.parent))
            return f"run `dynadapt weights {published.name} --download={place}`"
    beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*beside, *shipped()])
    if near:
        return suggest(path.name, near)
    return f"with the package come {', '.join(map(repr, shipped()))}"


def from_checkpoint(path: str | Path, **known: Any) -> nnx.Module:
    """The backbone that a file of weights is of, with its values.

    Args:
        path: a file or folder of any known source (`docs/models.md`).
        **known: config fields that the file can't tell, such as `heads=4` or `grid=(16, 32)`, or
            that are to differ, such as `image_size=384` or `scan=True`.

    Raises:
        CheckpointError: for a file that does not fit, with a list of what is missing (-) or
            strange (+).
        UnknownName: for a field that the family does not have.
    """
    checkpoint = read(locate(str(path)), known.get("grid"))
    backbone = build(checkpoint, **known)
    fill(backbone, checkpoint)
    return backbone


def build(checkpoint: Checkpoint, **known: Any) -> nnx.Module:
    """The backbone that a checkpoint is of, with shapes in place of arrays."""
    if not checkpoint.family:
        raise CheckpointError(f"{str(checkpoint.path)!r} does not say which backbone it is of")
    path, fields = str(checkpoint.path), {**checkpoint.config, **known}
    if fields.get("heads", 1) is None:
        raise CheckpointError(
            f"the weights {path!r} don't tell how many heads they have; say heads=…"
        )
    if fields.get("grid", ()) is None:
        raise CheckpointError(_no_grid(checkpoint))
    if known.get("image_size"):
        fields.pop("grid", None)  # what the file's positions have; they are resampled to a square
    for name in checkpoint.assumed:
        if not known.get(name):
            checkpoint.note(
                f"weights {path!r} don't tell {name}; taken for {fields[name]}, say {name}=… where "
                "it is another"
            )
    try:
        network = backbones.of(checkpoint.family, **fields)
    except UnknownName:
        raise
    except ConfigError as error:
        raise CheckpointError(f"the weights {path!r} describe {error}") from error
    try:
        return nnx.eval_shape(lambda: network(SameKey()))
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the weights {str(checkpoint.path)!r} describe no backbone that can be built: {reason}"
        ) from error


def _no_grid(checkpoint: Checkpoint) -> str:
    count = checkpoint.values["position"].shape[1]
    return (
        f"weights {str(checkpoint.path)!r} hold {count} position embeddings, which belong to no "
        "square grid of patches; say grid=(rows, columns)"
    )


def load(backbone: nnx.Module, path: str | Path) -> None:
    """Copies the values of a file into the backbone, keeping the backbone's dtypes.

    Args:
        backbone: any backbone without adapters, changed in place.
        path: a file or folder of any known source.

    Raises:
        CheckpointError: for a file that does not fit, with a list of what is missing (-) or left
            over (+) or of another shape.
    """
    fill(backbone, read(path))


def fill(backbone: nnx.Module, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's values into a backbone; the same errors as `load`."""
    given = check(backbone, checkpoint)
    state = nnx.state(backbone)
    values = tree.leaves(state)
    for path, value in given.items():
        values[path] = jnp.asarray(value, values[path].dtype)
        pth.release(value)
    nnx.update(backbone, tree.replace(state, values))


def check(backbone: nnx.Module, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """A checkpoint's values at the backbone's sizes; the same errors as `load`."""
    path, name = str(checkpoint.path), checkpoint.called
    bad = source.not_finite(checkpoint.values)
    if bad:
        raise CheckpointError(f"weights {path!r} are damaged: {name(bad)} is not finite")
    own = tree.leaves(nnx.state(backbone))
    grid = checkpoint.config.get("grid", ())
    values = checkpoint.values.items()
    given = {k: _fitted(backbone, k, v, grid) if k in own else v for k, v in values}
    if grid is None and "position" in own and given["position"].shape != own["position"].shape:
        raise CheckpointError(_no_grid(checkpoint))
    needed = [k for k in own if k not in getattr(backbone, "fresh", ())]
    faults = [f"- {name(k)} {tuple(own[k].shape)}" for k in needed if k not in given]
    faults += [f"+ {name(k)} {v.shape}" for k, v in given.items() if k not in own]
    faults += [f"+ {strange}" for strange in checkpoint.strange]
    faults += [
        f"- {name(k)} {tuple(own[k].shape)}\n+ {name(k)} {v.shape}"
        for k, v in given.items()
        if k in own and own[k].shape != v.shape
    ]
    if faults:
        _check_variant(backbone, checkpoint)
        shown = "\n".join(faults[:20]) + ("\n…" if len(faults) > 20 else "")
        raise CheckpointError(f"weights {path!r} do not fit the backbone:\n{shown}")
    return given


def _check_variant(backbone: Any, checkpoint: Checkpoint) -> None:
    """Raises a CheckpointError where the weights are of one variant and the backbone another."""
    if not checkpoint.family:
        return
    sizes = (checkpoint.config, dataclasses.asdict(backbone.config))
    given, wanted = (backbones.variant(checkpoint.family, s) for s in sizes)
    if given and wanted and given != wanted:
        raise CheckpointError(
            f"weights {str(checkpoint.path)!r} are of a {given!r}, but the backbone is a {wanted!r}"
        )


def options(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The options of a backbone that its weights' publisher decides, such as its norms' epsilon.

    Raises:
        CheckpointError: if the weights are of another family than the backbone `name`.
    """
    family = backbones.family(name)
    if checkpoint.family not in ("", family):
        raise CheckpointError(
            f"the weights {str(checkpoint.path)!r} are of a {checkpoint.family}, but the backbone "
            f"{name!r} is a {family}"
        )
    return {k: v for k, v in checkpoint.config.items() if k in OPTIONS}


def digest(path: Path) -> str:
    """SHA-256 of a file of weights; of the files' hashes where they are several in a folder."""
    found = source.parts(path)
    hashes = [_hash(file) for file in found]
    return hashes[0] if len(found) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hash(file: Path) -> str:
    with source.reading(file):
        files.regular(file)
        return _sha256(file, *_stamp(file))


def _stamp(file: Path) -> tuple[int, int, int]:
    """What changes where a file's content does: its size, its time and its inode."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@functools.lru_cache
def _sha256(file: Path, *stamp: int) -> str:
    return files.sha256(file)


def _fitted(backbone: Any, path: str, value: np.ndarray, grid: Any) -> np.ndarray:
    """Lets a backbone change a value to its own size (resampled position embeddings)."""
    return backbone.fitted(path, value, grid) if hasattr(backbone, "fitted") else value
