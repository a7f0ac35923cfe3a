"""The run folder: what is checked before it is touched, and what lies in it.

config.json            resolved config, its hash, versions, device
metrics.jsonl          one line a record
checkpoints/           to go on from
adapter/               the product
predictions/           the final evaluation: records, one an example, and some pictures
result.json            what the run came to
manifest.json          SHA-256 of these files, where the run is complete
"""

import os
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from dynadapt import config as configs
from dynadapt import files, tree
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.runs import product

# Files that a complete run must have; the manifest may name more.
NEEDED = ("config.json", "result.json")


def check(config: Any, folder: Path) -> None:
    """Raises a ConfigError if the folder belongs to another config, or is no folder."""
    above = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not above.is_dir():
        raise ConfigError(f"{above} is a file; give another --workdir")
    if not os.access(above, os.W_OK):
        raise ConfigError(f"nothing can be written in {above}; give another --workdir")
    if not (folder / "config.json").exists():
        return
    old = files.read_json(folder / "config.json").get("config")
    if not isinstance(old, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds no config; give another --workdir")
    changed = configs.differences(old, configs.plain(config))
    if "optim.steps" in changed and len(changed) == 1:
        if problem := _longer(config, *changed["optim.steps"]):
            raise ConfigError(f"{folder} holds a run with {problem}; give another --workdir")
    elif changed:
        raise ConfigError(
            f"{folder} holds a run of another config ({configs.shown(changed)}); give another "
            "--workdir"
        )


def _longer(config: Any, old: int, new: int) -> str:
    """Why a run of `old` steps can't go on to `new` ones, "" where it can."""
    o = config.optim
    if new < old or not old:
        return f"optim.steps {old}, which can only be raised"
    if o.schedule != "constant" or o.warmup:
        rate = f"{o.schedule} schedule" + (f" with warmup {o.warmup}" if o.warmup else "")
        return (
            f"optim.steps {old}; {new} would change the learning rate of the steps that are done, "
            f"as the {rate} is laid over all of them (schedule constant without warmup allows it)"
        )
    return ""


def result(config: Any, folder: Path) -> dict[str, Any] | None:
    """The result of a run that is complete and whole, or None."""
    found = faults(folder)
    if not found or any(found.values()):
        return None
    if files.read_json(folder / "config.json")["config"]["optim"]["steps"] != config.optim.steps:
        return None
    try:
        product.read(folder / "adapter")
    except CheckpointError:
        return None
    return files.read_json(folder / "result.json")


def finish(folder: Path, result: dict[str, Any]) -> None:
    """Writes `result.json` and, last of all, `manifest.json`: the run is complete."""
    files.write_json(folder / "result.json", result)
    listed = [folder / name for name in NEEDED]
    listed += sorted(p for p in (folder / "predictions").rglob("*") if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): files.sha256(p) for p in listed}
    files.write_json(folder / "manifest.json", hashes)


def faults(folder: Path) -> dict[str, str]:
    """What is wrong with each file of a complete run, "" where it is whole; {} before the end."""
    if not (folder / "manifest.json").exists() and not (folder / "result.json").exists():
        return {}
    try:
        hashes = files.read_json(folder / "manifest.json")
    except CheckpointError as error:
        return {"manifest.json": str(error)}
    found = {}
    for name in {**dict.fromkeys(NEEDED), **hashes}:
        there = (folder / name).is_file()
        whole = there and files.sha256(folder / name) == hashes.get(name)
        found[name] = "" if whole else f"{name} was changed" if there else f"{name} is missing"
    return found


def start(config: Any, folder: Path) -> None:
    """Makes the folder and writes `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    values = {
        "config": configs.plain(config),
        "digest": configs.digest(config),
        "versions": product.versions(),
        "device": f"{jax.device_count()} x {device.device_kind}",
    }
    files.write_json(folder / "config.json", values)


def counts(train: Any, frozen: Any) -> dict[str, int]:
    """Parameter counts: trained without and with head, of the backbone, and trained bytes.

    The backbone's own parameters are those outside adapters and head, trained or not; running
    statistics are none.
    """
    leaves = tree.leaves(train)
    kept = jax.tree.leaves(frozen, is_leaf=_is_statistic)
    kept = [v for v in kept if not _is_statistic(v)]
    head = tree.size([x for p, x in leaves.items() if p.startswith("head/")])
    base = [
        x for p, x in leaves.items() if not p.startswith("head/") and "adapter" not in p.split("/")
    ]
    return {
        "trained": tree.size(train) - head,
        "trained_with_head": tree.size(train),
        "backbone": tree.size(base) + tree.size(kept),
        "trained_bytes": tree.nbytes(train),
    }


def _is_statistic(value: Any) -> bool:
    return isinstance(value, nnx.BatchStat)
