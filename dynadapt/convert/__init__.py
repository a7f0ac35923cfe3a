"""Weights from one publisher's layout to another's or to our own, also those of a merged run.

LoRA and DoRA come from, and go to, the folders of Hugging Face's peft.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynadapt import files, weights
from dynadapt.config import DTYPES
from dynadapt.convert import hf, merged, timm, to_peft
from dynadapt.convert.merged import POOLED, Merged
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.weights import peft
from dynadapt.weights.layouts import LAYOUTS
from dynadapt.weights.published import METADATA, layout_for

OWN = "safetensors"
# Adapters alone, as a folder.
PEFT = "peft"
TIMM, HF = "timm", "hf"
# Their files are .npz; all others are written as safetensors, with the publisher's names.
NPZ = ("google", "big_vision")
SUFFIXES = (".safetensors", ".npz")


def targets() -> list[str]:
    """What can be written: our own layout, those of all publishers, and peft's adapters."""
    return [OWN, PEFT, *sorted({layout.name for layout in LAYOUTS})]


def is_folder(to: str, out: Path) -> bool:
    """Whether a folder is written: with hf and peft always, with timm where `out` is no file."""
    return to in (PEFT, HF) or to == TIMM and out.suffix not in SUFFIXES


def run(
    source: Path,
    out: Path,
    to: str = OWN,
    base: str | None = None,
    dtype: str = "",
    **known: Any,
) -> dict[str, Any]:
    """Writes the weights of a file, a folder or a run in another layout.

    A run's adapter is merged into its backbone, and the head of a classification goes along.

    Args:
        source: weights of any known source, the folder of a run, or a folder of peft.
        out: the file or the folder to write, see `is_folder`.
        to: one of `targets()`.
        base: the weights that a folder of peft adapts, of any known source.
        dtype: of the values that are written, "" for those of the source.
        **known: config fields that the file can't tell, such as `heads=4`.

    Returns:
        The file, its SHA-256, the family, the names that were left behind, the Python that loads
        what was written, and notes on what that does not tell.

    Raises:
        UnknownName: for a layout that does not exist or does not serve this backbone.
        CheckpointError: for weights that are damaged or incomplete.
        NotMergeable: for a run whose adapter depends on the input.
        ConfigError: for a backbone that Hugging Face has no class for.
    """
    if to not in targets():
        raise UnknownName("layout", to, targets())
    if dtype and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if base and not peft.is_folder(source):
        raise ConfigError(f"--base is for a folder of peft, with {peft.CONFIG}; {source} is none")
    if is_folder(to, out) and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"the folder {out} holds files; give one that is empty or not there yet")
    if to == PEFT:
        return to_peft.write(source, out)
    if is_folder(to, out) and out.suffix in SUFFIXES:
        raise ConfigError(f"--to={to} writes a folder; leave {out.suffix} of {out} out")
    if not is_folder(to, out) and (out.suffix == ".npz") != (to in NPZ):
        raise ConfigError(f"{to} weights are {'.npz' if to in NPZ else 'safetensors'}, not {out}")
    if (source / "adapter" / "adapter.json").is_file():
        given = merged.of_run(source / "adapter", fitted=to in (TIMM, HF))
    elif peft.is_folder(source):
        given = merged.of_peft(source, base, **known)
    else:
        given = merged.of_file(weights.read(weights.locate(str(source))), **known)
    found = given.found
    if dtype:
        kind = jnp.dtype(dtype)
        for values in (found.values, found.head, found.rest):
            values.update({k: v.astype(kind) for k, v in values.items() if v.dtype.kind in "fV"})
    write = {OWN: _to_own, HF: _to_hf, TIMM: _to_timm}.get(to, _to_publisher)
    file, result = write(given, out, to)
    return {
        "file": str(out),
        "sha256": files.sha256(file),
        "family": found.family,
        **result,
        "left": [*result["left"], *given.left],
        "notes": [*given.notes, *result["notes"]],
    }


def _to_own(given: Merged, out: Path, to: str) -> tuple[Path, dict[str, Any]]:
    found = given.found
    tensors = found.values | found.head | {f"rest/{k}": v for k, v in found.rest.items()}
    card = dict(family=found.family, publisher=found.publisher, prefix=found.prefix)
    card["config"] = dataclasses.asdict(given.backbone.config)
    files.write_tensors(out, tensors, {METADATA: json.dumps(card)})
    load = f"backbone = dynadapt.weights.from_checkpoint({str(out)!r})"
    return out, dict(tensors=len(tensors), left=[], load=load, notes=pool_note(given))


def _to_publisher(given: Merged, out: Path, to: str) -> tuple[Path, dict[str, Any]]:
    tensors, left = renamed(given.found, given.backbone.config, to)
    if to in NPZ:
        with files.whole(out) as partial, open(partial, "wb") as file:
            np.savez(file, **tensors)
    else:
        files.write_tensors(out, tensors, {"format": "pt"})
    load = f"backbone = dynadapt.weights.from_checkpoint({str(out)!r}{_heads(given)})"
    return out, dict(tensors=len(tensors), left=left, load=load, notes=pool_note(given))


def _heads(given: Merged) -> str:
    heads = given.backbone.config.heads
    return f", heads={heads}" if isinstance(heads, int) else ""


def pool_note(given: Merged) -> list[str]:
    """What a run's head pools, for layouts that have no place for it."""
    if not given.classes or not given.found.head:
        return []
    return [f"the file does not say that its head pools {POOLED[given.pool]} after the last norm"]


def _to_timm(given: Merged, out: Path, to: str) -> tuple[Path, dict[str, Any]]:
    found, config = given.found, given.backbone.config
    tensors, left = renamed(found, config, to)
    folder, same = is_folder(to, out), found.publisher == TIMM
    if folder:
        out.mkdir(exist_ok=True)
    file = out / timm.TENSORS if folder else out
    if found.family == "vit" and not same:
        tensors = timm.tensors(tensors, config)
    card, notes = None, []
    if found.family not in timm.EPSILON or same and (found.rest or "dist_token" in tensors):
        load = f"backbone = dynadapt.weights.from_checkpoint({str(out)!r}{_heads(given)})"
    else:
        load = timm.call(given, str(file))
        if why := timm.unlike(found.family, config):
            notes = [f"no model of timm answers exactly like this backbone: {why}"]
        elif timm.epsilon(found.family, config) is None:
            card = timm.card(given)
        elif folder:
            notes = [
                f"{timm.CONFIG} can't say the norms' epsilon {config.epsilon:g}, so none is written"
            ]
    if folder and card:
        files.write_json(out / timm.CONFIG, card)
        load = f"model = timm.create_model({f'local-dir:{out}'!r}, pretrained=True).eval()"
    files.write_tensors(file, tensors, {"format": "pt"})
    return file, dict(tensors=len(tensors), left=left, load=load, notes=notes)


def _to_hf(given: Merged, out: Path, to: str) -> tuple[Path, dict[str, Any]]:
    layout_for(to, given.found.family, given.backbone.config)
    written = hf.describe(given)
    tensors, left = renamed(written.found, given.backbone.config, to, written.prefix)
    same = given.found.publisher == HF
    came = given.found.rest if same else {}
    kept = hf.rest(written, came)
    tensors = {k: v for k, v in tensors.items() if k not in came} | kept
    left += sorted(came.keys() - kept.keys())
    out.mkdir(exist_ok=True)
    file = out / hf.TENSORS
    files.write_tensors(file, tensors, {"format": "pt"})
    if written.head:
        files.write_tensors(out / hf.HEAD, written.head, {"format": "pt"})
    files.write_json(out / hf.CONFIG, written.config)
    if given.preprocessing:
        files.write_json(out / hf.PREPROCESSOR, hf.preprocessor(given.preprocessing))
    notes = [note] if (note := hf.note(written, given)) else []
    load = hf.call(written, given, str(out))
    return file, dict(tensors=len(tensors), left=left, load=load, notes=notes)


def renamed(
    found: weights.Checkpoint, config: Any, to: str, prefix: str | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A checkpoint's tensors in a publisher's layout, and the names that it has no place for.

    The prefix of all names is by default the one that the publisher's own files have.
    """
    layout = layout_for(to, found.family, config)
    same = layout.name == found.publisher
    if prefix is None:
        prefix = found.prefix if same else layout.usual(bool(found.head))
    heads = config.heads if isinstance(config.heads, int) else 0
    named, left = found.values | found.head, [] if same else sorted(found.rest)
    for path in [p for p in found.head if not layout.source_names(p, prefix)]:
        left.append(path)
        del named[path]
    return layout.to_source(named, prefix, heads) | (found.rest if same else {}), left


def show(result: dict[str, Any]) -> None:
    """Prints what was written and how it is loaded."""
    print(f"wrote {result['file']}: {result['tensors']} tensors, sha256 {result['sha256']}")
    if result["left"]:
        some = ", ".join(result["left"][:5]) + (", …" if len(result["left"]) > 5 else "")
        print(f"left behind {len(result['left'])} that this layout has no place for: {some}")
    print(f"load it with: {result['load']}")
