"""Checkpoints of a run, to go on from.

    checkpoints/<step>/    orbax items `train`, `opt_state`, `data`, `meta`, and `manifest.json`
    (SHA-256)

A checkpoint without a manifest was interrupted and is passed over. Neither orbax nor safetensors
notice a flipped bit, so everything is hashed when it is written and compared when it is read.
"""

import logging
from pathlib import Path
from typing import Any

import jax
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
