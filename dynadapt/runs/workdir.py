"""The run folder: what is checked before it is touched, and what lies in it.

config.json            resolved config, its hash, versions, device
metrics.jsonl          one line a record
profile/               traces of steps, where asked for; sinks.json: the run's ids at dashboards
checkpoints/           to go on from
adapter/               the product
predictions/           the final evaluation: records, one an example, and some pictures
result.json            what the run came to
manifest.json          SHA-256 of these files, where the run is complete
"""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from dynadapt import config as configs
from dynadapt import files, tree
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.layers import quantised
from dynadapt.runs import checkpoint, product
from dynadapt.runs.journal import FILE as LOG

# Files that a complete run must have; the manifest may name more.
NEEDED = ("config.json", "result.json")
PARTS = ("checkpoints", "adapter", "predictions")
PART_BYTES, PATH_BYTES = 255, 3800  # of a name, and of a path with room for what lies below it


def check(config: Any, folder: Path) -> None:
    """Raises a ConfigError if the folder belongs to another config, or can't be one of a run."""
    check_name(folder)
    above = next(p for p in (folder.absolute(), *folder.absolute().parents) if _is_there(p))
    if not above.is_dir():
        raise ConfigError(f"{above} is a file; give another --workdir")
    for place in (above, *(folder / part for part in PARTS if above == folder.absolute())):
        if _is_there(place) and not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"nothing can be written in {place}; give another --workdir")
    agree(_known(folder), config, folder)


def check_name(folder: Path) -> None:
    """Raises a ConfigError for a folder whose name no file system has, or no file can hold."""
    shown = ascii(str(folder)) if len(str(folder)) < 100 else f"{ascii(str(folder))[:60]}…"
    try:
        parts = [len(part.encode()) for part in folder.absolute().parts]
    except UnicodeEncodeError:
        raise ConfigError(f"the name {shown} is no UTF-8; give another --workdir") from None
    if max(parts) > PART_BYTES or sum(parts) + len(parts) > PATH_BYTES:
        raise ConfigError(
            f"the name {shown} is too long: {PART_BYTES} bytes a folder and {PATH_BYTES:,} in all "
            "are the most; give another --workdir"
        )
    if "\0" in str(folder):
        raise ConfigError(f"the name {shown} has a zero byte; give another --workdir")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that may not be entered
        return False


def agree(old: dict[str, Any] | None, config: Any, folder: Path) -> None:
    """Raises a ConfigError that names how the plain config of a run differs, if any is known."""
    changed = {} if old is None else configs.differences(old, configs.plain(config))
    if "optim.steps" in changed and len(changed) == 1:
        if problem := _longer(config, *changed["optim.steps"]):
            raise ConfigError(f"{folder} holds a run with {problem}; give another --workdir")
    elif changed:
        raise ConfigError(
            f"{folder} holds a run of another config ({configs.shown(changed)}); give another "
            "--workdir"
        )


def _known(folder: Path) -> dict[str, Any] | None:
    """The plain config of the run in a folder, of its file or else of its newest checkpoint."""
    fault, written = config_fault(folder), _written(folder)
    if not fault:
        return written
    meta = checkpoint.newest_meta(folder / "checkpoints")
    if meta and "config" in meta:
        logging.warning("%s; it is written anew, as the last checkpoint knows it", fault)
        return meta["config"]
    # Earlier versions kept no config in checkpoints, and their hash was of other fields.
    if written is None and (meta or os.path.lexists(folder / "config.json")):
        raise CheckpointError(
            f"{fault}, and no whole checkpoint beside it knows the config; bring the file back, "
            "or give another --workdir"
        )
    return written


def config_fault(folder: Path) -> str:
    """What is wrong with `config.json`, "" where it is whole."""
    path = folder / "config.json"
    try:
        digest = files.read_json(path).get("digest")
    except CheckpointError as error:
        return str(error) if os.path.lexists(path) else f"{path} is missing"
    written = _written(folder)
    if written is None:
        return f"{path} holds no config"
    return "" if configs.digest(written) == digest else f"{path} was changed"


def _written(folder: Path) -> dict[str, Any] | None:
    """The plain config in `config.json`, None where there is none."""
    try:
        config = files.read_json(folder / "config.json").get("config")
        configs.digest(config)
        return config if type(config["optim"]["steps"]) is int else None
    except (CheckpointError, AttributeError, KeyError, RecursionError, TypeError):
        return None


def _longer(config: Any, old: Any, new: int) -> str:
    """Why a run of `old` steps can't go on to `new` ones, "" where it can."""
    o = config.optim
    if type(old) is not int or new < old or not old:
        return f"optim.steps {old}, which can only be raised"
    if o.schedule != "constant" or o.warmup:
        rate = f"{o.schedule} schedule" + (f" with warmup {o.warmup}" if o.warmup else "")
        return (
            f"optim.steps {old}; {new} would change the learning rate of the steps that are done, "
            f"as the {rate} is laid over all of them (schedule constant without warmup allows it)"
        )
    return ""


def result(config: Any, folder: Path) -> dict[str, Any] | None:
    """The result of a run that is complete and whole, its log aside, or None."""
    found = faults(folder)
    log = found.pop(LOG, "")
    written = _written(folder)
    if not found or any(found.values()) or written is None:
        return None
    if written["optim"]["steps"] != config.optim.steps:
        return None
    try:
        product.read(folder / "adapter")
        values = files.read_json(folder / "result.json")
    except CheckpointError:
        return None
    if log:
        logging.warning("%s in %s; the run is complete, and its result stands", log, folder)
    return values


def finish(folder: Path, result: dict[str, Any]) -> None:
    """Writes `result.json` and, last of all, `manifest.json`: the run is complete."""
    with files.writing(folder):
        files.write_json(folder / "result.json", result)
        listed = [folder / name for name in (*NEEDED, LOG, f"adapter/{product.CARD}")]
        listed += sorted((folder / "predictions").rglob("*"))
        hashes = {p.relative_to(folder).as_posix(): files.sha256(p) for p in listed if p.is_file()}
        files.write_json(folder / "manifest.json", hashes)


def faults(folder: Path) -> dict[str, str]:
    """What is wrong with each file of a complete run, "" where it is whole; {} before the end."""
    if not (folder / "manifest.json").exists() and not (folder / "result.json").exists():
        return {}
    try:
        hashes = files.read_json(folder / "manifest.json")
    except CheckpointError as error:
        return {"manifest.json": str(error)}
    return {name: _fault(folder, name, hashes) for name in {**dict.fromkeys(NEEDED), **hashes}}


def _fault(folder: Path, name: str, hashes: Mapping[str, Any]) -> str:
    try:
        if not (folder / name).is_file():
            return f"{name} is missing"
        return "" if files.sha256(folder / name) == hashes.get(name) else f"{name} was changed"
    except OSError as error:
        return f"{name[:80]} cannot be read: {error.strerror}"


def start(config: Any, folder: Path) -> None:
    """Writes `config.json`, in a folder that is made where it is not there."""
    device = jax.devices()[0]
    values = {
        **known_by(config),
        "versions": product.versions(),
        "device": f"{jax.device_count()} x {device.device_kind}",
    }
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "config.json", values)


def known_by(config: Any) -> dict[str, Any]:
    """What a run and each of its checkpoints says of its config."""
    return {"config": configs.plain(config), "digest": configs.digest(config)}


def counts(train: Any, frozen: Any) -> dict[str, int]:
    """Parameter counts: trained without and with head, of the backbone, and trained bytes.

    The backbone's own parameters are those outside adapters and head, trained or not; running
    statistics are none.
    """
    leaves = tree.leaves(train)
    kept = jax.tree.leaves(frozen, is_leaf=lambda v: _is_statistic(v) or quantised.is_packed(v))
    kept = [math.prod(v.shape) for v in kept if not _is_statistic(v)]
    head = tree.size([x for p, x in leaves.items() if p.startswith("head/")])
    base = [
        x for p, x in leaves.items() if not p.startswith("head/") and "adapter" not in p.split("/")
    ]
    return {
        "trained": tree.size(train) - head,
        "trained_with_head": tree.size(train),
        "backbone": tree.size(base) + sum(kept),
        "trained_bytes": tree.nbytes(train),
    }


def _is_statistic(value: Any) -> bool:
    return isinstance(value, nnx.BatchStat)
