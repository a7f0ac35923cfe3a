"""Checkpoints of a run, to go on from.

    checkpoints/<step>/    orbax items `train`, `opt_state`, `data`, `meta`, and `manifest.json`
    (SHA-256)

A checkpoint without a manifest was interrupted and is passed over. Neither orbax nor safetensors
notice a flipped bit, so everything is hashed when it is written and compared when it is read.
The manifest names the step, too, so that a checkpoint under another's name is none.
"""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dynadapt import files, tree
from dynadapt.errors import CheckpointError, MachineError

MANIFEST = "manifest.json"
INTERRUPTED = "it was interrupted"


class Checkpoints:
    """The checkpoints of one run; use it as a context manager.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.

    Raises:
        MachineError: if nothing can be read or written there.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        with files.writing(self.folder, "give another --workdir"):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def save(self, step: int, train: Any, opt_state: Any, data: Any, meta: Any) -> None:
        """Writes the state after `step` steps; `data` and `meta` are JSON values.

        Raises:
            MachineError: if the disk is full; the checkpoint before it stays whole.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            train=ocp.args.StandardSave(_named(train)),
            opt_state=ocp.args.StandardSave(_named(opt_state)),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave({"given": meta, "leaves": _shapes(train, opt_state)}),
        )
        here = self.folder / str(step)
        try:
            with _untold():
                self._manager.save(step, args=items)
                self._manager.wait_until_finished()
            if jax.process_index() == 0:
                files.write_json(here / MANIFEST, {"step": str(step), **_hashes(here)})
        except (OSError, ValueError, RuntimeError) as error:  # libraries tell of a disk by each
            raise MachineError(f"cannot write {here}: {_reason(error)}; {files.GO_ON}") from error

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
            if fault != INTERRUPTED:
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
            self._delete(step)
        return found

    def _delete(self, step: int) -> None:
        """Removes a checkpoint, or its name where it may not be removed."""
        here = self.folder / str(step)
        try:
            self._manager.delete(step)
        except OSError:
            if jax.process_index() == 0:
                here.rename(files.partial_name(here))
            self._manager.reload()

    def _restore(self, step: int, train: Any, opt_state: Any) -> tuple[int, Any, Any, Any, Any]:
        plain = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        notes = self._manager.restore(step, args=plain)
        old, new = notes.meta["leaves"], _shapes(train, opt_state)
        if wrong := [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]:
            named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} others" if wrong[3:] else "")
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} does not fit this run at {named}; "
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
    try:
        if not (folder / MANIFEST).exists():
            return INTERRUPTED
        expected, found = files.read_json(folder / MANIFEST), _hashes(folder)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    step = expected.pop("step", folder.name)  # earlier versions did not write it
    if step != folder.name:
        return f"it is of step {step}"
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if expected.get(name) != found[name]:
            return f"{name} is damaged"
    return None


def steps(folder: Path) -> list[int]:
    """The numbers of the checkpoints in a folder, the newest first."""
    with contextlib.suppress(OSError):
        found = (p.name for p in folder.iterdir() if p.name.isdecimal())
        return sorted((int(name) for name in found if str(int(name)) == name), reverse=True)
    return []


def newest_meta(folder: Path) -> Any:
    """The `meta` of the newest whole checkpoint in a folder; None where there is none."""
    for step in steps(folder):
        if fault(folder / str(step)) is None:
            path = folder.absolute() / str(step) / "meta"
            return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path)["given"]
    return None


def _reason(error: Exception) -> str:
    """Why a file could not be written, which tensorstore says at the end of much else."""
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return getattr(error, "strerror", None) or files.first_line(error)


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Keeps orbax from printing tracebacks of an error that it raises, too."""
    logger = logging.getLogger("absl")
    before = logger.disabled, sys.unraisablehook
    logger.disabled, sys.unraisablehook = True, lambda _: None
    try:
        yield
    except BaseException:
        time.sleep(0.5)  # the other writes fail as well, in threads of their own
        raise
    finally:
        logger.disabled, sys.unraisablehook = before


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
