"""What a run leaves: checkpoints to go on from, and the adapter, which is the product.

    checkpoints/<step>/    orbax items `train`, `opt_state`, `data`, `meta`, and `manifest.json`
    (SHA-256)
    adapter/               adapter.safetensors (all that is trained) and adapter.json (all that
    it needs)

A checkpoint without a manifest was interrupted and is passed over. Neither orbax nor safetensors
notice a flipped bit, so everything is hashed when it is written and compared when it is read.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dynadapt import files, tree
from dynadapt.errors import CheckpointError

MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run; use it as a context manager.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def save(self, step: int, train: Any, opt_state: Any, data: Any, meta: Any) -> None:
        """Writes the state after `step` steps; `data` and `meta` are JSON values."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            train=ocp.args.StandardSave(_named(train)),
            opt_state=ocp.args.StandardSave(_named(opt_state)),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave({"given": meta, "leaves": _shapes(train, opt_state)}),
        )
        self._manager.save(step, args=items)
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            here = self.folder / str(step)
            files.write_json(here / MANIFEST, _hashes(here))

    def restore(self, train: Any, opt_state: Any) -> tuple[int, Any, Any, Any, Any] | None:
        """The newest whole checkpoint as `(step, train, opt_state, data, meta)`, or None.

        `train` and `opt_state` give structure, shapes and shardings of what is expected.

        Raises:
            CheckpointError: if there are finished checkpoints but all are damaged.
        """
        damaged, useless = [], []
        for step in sorted(self._manager.all_steps(), reverse=True):
            fault = self._fault(step)
            if fault is None:
                found = self._restore(step, train, opt_state)
                break
            logging.warning("checkpoint %d is passed over: %s", step, fault)
            useless.append(step)
            if (self.folder / str(step) / MANIFEST).exists():
                damaged.append(f"{step} ({fault})")
        else:
            found = None
        if found is None and damaged:
            raise CheckpointError(
                f"no whole checkpoint in {self.folder}, damaged: {', '.join(damaged)}; "
                "start in a new work directory"
            )
        # They go only now: where nothing is whole, the next start must not find an empty folder.
        for step in useless:
            self._manager.delete(step)
        return found

    def _restore(self, step: int, train: Any, opt_state: Any) -> tuple[int, Any, Any, Any, Any]:
        plain = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        notes = self._manager.restore(step, args=plain)
        old, new = notes.meta["leaves"], _shapes(train, opt_state)
        if wrong := [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} does not fit this run at {', '.join(wrong)}; "
                "start in a new work directory"
            )
        items = ocp.args.Composite(
            train=ocp.args.StandardRestore(_named(train)),
            opt_state=ocp.args.StandardRestore(_named(opt_state)),
        )
        found = self._manager.restore(step, args=items)
        return (
            step,
            tree.map_leaves(lambda p, _: found.train[_key(p)], train),
            tree.map_leaves(lambda p, _: found.opt_state[_key(p)], opt_state),
            notes.data,
            notes.meta["given"],
        )

    def _fault(self, step: int) -> str | None:
        return fault(self.folder / str(step))


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    if not (folder / MANIFEST).exists():
        return "it was interrupted"
    try:
        expected = files.read_json(folder / MANIFEST)
    except CheckpointError as error:
        return str(error)
    found = _hashes(folder)
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if expected.get(name) != found[name]:
            return f"{name} is damaged"
    return None


def _key(path: str) -> str:
    return path.replace("/", ".")


def _named(values: Any) -> dict[str, Any]:
    return {_key(path): x for path, x in tree.leaves(values).items()}


def _shapes(train: Any, opt_state: Any) -> dict[str, str]:
    """Shape and type of each leaf, such as `float32 5 3`."""
    both = {"train": train, "opt_state": opt_state}
    return {p: " ".join(map(str, (x.dtype, *x.shape))) for p, x in tree.leaves(both).items()}


def _hashes(folder: Path) -> dict[str, str]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): files.sha256(p) for p in found}


def save_adapter(folder: Path, leaves: Any, card: dict[str, Any]) -> dict[str, Any]:
    """Writes the adapter of a run.

    Args:
        folder: `adapter/` of the run.
        leaves: all that is trained; the file holds these bytes and a header.
        card: what an evaluation needs to know; hashes are added.

    Returns:
        The card as it was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {path: np.asarray(x) for path, x in tree.leaves(leaves).items()}
    file = folder / "adapter.safetensors"
    (folder / "adapter.json").unlink(missing_ok=True)
    files.write_tensors(file, tensors)
    card = {
        **card,
        "bytes": file.stat().st_size,
        "file_sha256": files.sha256(file),
        "tensor_sha256": {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in tensors.items()},
    }
    card["card_sha256"] = _card_hash(card)
    files.write_json(folder / "adapter.json", card)
    return card


def _card_hash(card: dict[str, Any]) -> str:
    values = {k: v for k, v in card.items() if k != "card_sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_adapter(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the card of an adapter, after comparing every hash.

    Raises:
        CheckpointError: naming what is missing or damaged.
    """
    card = files.read_json(folder / "adapter.json")
    faults = list(adapter_faults(folder, card))
    if faults:
        raise CheckpointError(f"the adapter in {folder} is damaged: {'; '.join(faults)}")
    return files.read_tensors(folder / "adapter.safetensors"), card


def adapter_faults(folder: Path, card: dict[str, Any]) -> Iterator[str]:
    """All that does not agree with the card's hashes."""
    if card.get("card_sha256") != _card_hash(card):
        yield "adapter.json was changed"
    file = folder / "adapter.safetensors"
    if not file.is_file():
        yield "adapter.safetensors is missing"
        return
    if files.sha256(file) == card.get("file_sha256"):
        return
    yield "adapter.safetensors was changed"
    with contextlib.suppress(CheckpointError):
        expected = card.get("tensor_sha256", {})
        found = files.read_tensors(file)
        for name in sorted({*expected, *found}):
            value = found.get(name)
            if value is None:
                yield f"tensor {name} is missing"
            elif hashlib.sha256(value.tobytes()).hexdigest() != expected.get(name):
                yield f"tensor {name} was changed"
