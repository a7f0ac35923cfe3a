"""The results of a sweep on disk, and who works on what.

sweep.json           what all results of this folder share
methods/<method>     a hash of the settings and grids of a method
cells/<cell>.json    a finished cell; it appears whole or not at all
claims/<cell>        a cell that a process works on; touched while it lives
results.jsonl        all finished cells, one a line: written anew, whole, after each
running/             states of what is being trained, to go on from

Nothing is locked: a claim is a file that only one process can make, so several processes, on
several machines that share the folder, do no cell twice. A claim of a dead process is given up: at
once on the same machine, and on another one when it hasn't been touched for `STALE` seconds.
"""

import contextlib
import hashlib
import json
import os
import platform
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynadapt import files, tree
from dynadapt.errors import CheckpointError, ConfigError, DataError, MachineError
from dynadapt.sweep.results import FILE, with_score

STALE = 180.0
TOUCH = 20.0


class Store:
    """The folder of a sweep; use it as a context manager.

    Raises:
        ConfigError: if the folder holds results of another sweep, or can't be written.
    """

    def __init__(self, folder: Path, shared: dict[str, Any]):
        self.folder = Path(folder)
        self._done: dict[str, dict[str, Any]] = {}
        self._claims: set[str] = set()
        self._token = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"
        self._over = threading.Event()
        if (self.folder / FILE).exists() and not (self.folder / "sweep.json").exists():
            raise ConfigError(
                f"{folder} holds a {FILE} that no sweep wrote there; give another --workdir"
            )
        try:
            for name in ("cells", "claims", "methods", "running"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._agree(dict(shared))
        except OSError as error:
            raise ConfigError(
                f"nothing can be written in {folder}: {error.strerror}; give another --workdir"
            ) from None

    def _agree(self, shared: dict[str, Any]) -> None:
        """Writes what all results share, or compares it with what is there."""
        methods = shared.pop("methods")
        found = self._settled("sweep.json", shared)
        for name, value in shared.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"{self.folder} holds results of another {name.replace('_', ' ')} "
                    f"({_short(found.get(name))}, now {_short(value)}); give another --workdir"
                )
        for method, own in methods.items():
            if self._settled(f"methods/{method}", own) != own:
                raise ConfigError(
                    f"{self.folder} holds results of {method} with other settings or "
                    "another grid; give another --workdir"
                )

    def _settled(self, name: str, value: Any) -> Any:
        """The values in a file that the first of all processes writes."""
        path = self.folder / name
        if not path.exists():
            own = self.folder / f".{uuid.uuid4().hex}"
            files.write_json(own, value)
            _link(own, path)
        return files.read_json(path, type(value))

    def check_data(self, fingerprints: Mapping[str, str]) -> None:
        """Raises a DataError where a task's results are of other data than are there now."""
        for line in self.done().values():
            task, old = line["task"], line["data_fingerprint"]
            if fingerprints.get(task, old) != old:
                raise DataError(
                    f"the data of {task} are not those of its results in {self.folder} "
                    f"({_short(old)}, now {_short(fingerprints[task])}); bring them back, or give "
                    "another --workdir"
                )

    def __enter__(self) -> "Store":
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        self.release(list(self._claims))

    def _touch(self) -> None:
        while not self._over.wait(TOUCH):
            for cell in list(self._claims):
                try:
                    os.utime(self._claim_path(cell))
                except OSError:
                    continue

    def done(self) -> dict[str, dict[str, Any]]:
        """The finished cells, by name."""
        for entry in os.scandir(self.folder / "cells"):
            cell, suffix = os.path.splitext(entry.name)
            if suffix == ".json" and not cell.startswith(".") and cell not in self._done:
                self._done[cell] = with_score(files.read_json(Path(entry.path)))
        return self._done

    def claim(self, cells: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
        """Up to `most` of the cells that are neither finished nor claimed, now claimed."""
        mine, done = [], self.done()
        for cell in cells:
            if len(mine) == most:
                break
            name = cell["cell"]
            if name in done or not self._take(name):
                continue
            # Finished by another one between the look and the claim.
            if self._cell_path(name).exists():
                self.release([name])
                continue
            mine.append(cell)
        return mine

    def release(self, cells: Sequence[str]) -> None:
        """Gives claims up."""
        for name in cells:
            self._claims.discard(name)
            # A process that slept may have lost its claim to another one.
            if self._read(self._claim_path(name)) == self._token:
                self._claim_path(name).unlink(missing_ok=True)

    def _cell_path(self, cell: str) -> Path:
        return self.folder / "cells" / f"{cell}.json"

    def _claim_path(self, cell: str) -> Path:
        return self.folder / "claims" / cell

    def _take(self, cell: str) -> bool:
        path = self._claim_path(cell)
        if not self._make(path):
            found = self._read(path)
            if found is None or not self._stale(path, found) or not self._clear(path, found):
                return False
            if not self._make(path):
                return False
        self._claims.add(cell)
        return True

    def _make(self, path: Path) -> bool:
        """Makes a claim, whole from the start; false where there is one."""
        own = self.folder / "claims" / f".{uuid.uuid4().hex}"
        with self._writing():
            own.write_text(self._token)
            return _link(own, path)

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_text()
        except OSError:
            return None

    def _stale(self, path: Path, token: str) -> bool:
        # After a power cut a claim may be empty.
        host, process, *_ = [*token.split(), "", ""]
        if host == platform.node():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                pass
        # The clock is that of the file system, which all share.
        now = self.folder / "claims" / f".{uuid.uuid4().hex}"
        now.touch()
        try:
            return now.stat().st_mtime - path.stat().st_mtime > STALE
        except OSError:
            return False
        finally:
            now.unlink()

    def _clear(self, path: Path, token: str) -> bool:
        """Removes a dead process's claim; false if it is another's by now."""
        aside = path.with_name(f".{uuid.uuid4().hex}")
        try:
            os.rename(path, aside)
        except OSError:
            return False
        try:
            if aside.read_text() == token:
                return True
            os.link(aside, path)
            return False
        except FileExistsError:
            return False
        finally:
            aside.unlink()

    def finish(self, lines: Sequence[dict[str, Any]]) -> None:
        """Writes finished cells, gives their claims up and writes `results.jsonl` anew.

        Raises:
            MachineError: if the disk is full; what was finished before stays whole.
        """
        with self._writing():
            for line in lines:
                files.write_json(self._cell_path(line["cell"]), line)
            self.release([line["cell"] for line in lines])
            self._write()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MachineError(
                f"nothing can be written in {self.folder}: {error.strerror}; no finished result is "
                "lost, mend it and start the same command again"
            ) from error

    def _write(self) -> None:
        """`results.jsonl` with all finished cells; written again if another's older one won."""
        path = self.folder / FILE
        while True:
            done = self.done()
            text = "".join(json.dumps(done[c], sort_keys=True) + "\n" for c in sorted(done))
            if self._read(path) == text:
                return
            with files.whole(path) as partial:
                partial.write_text(text)

    def save(self, name: str, done: int, state: Any, origin: str) -> None:
        """Keeps the state of what is being trained, after `done` steps on the data `origin`.

        Its name is that of the first of its cells, a hyphen, and what tells it from others.
        """
        tensors = {p: np.asarray(x) for p, x in tree.leaves(jax.device_get(state)).items()}
        notes = {"done": str(done), "origin": origin, "sha256": _hash(tensors)}
        with self._writing():
            files.write_tensors(self._running(name), tensors, notes)

    def restore(self, name: str, state: Any, origin: str) -> tuple[int, Any]:
        """How many steps were done, and the state after them; 0 and `state` for a new start.

        What is damaged, or of other data, is not gone on with.
        """
        path = self._running(name)
        if not path.exists():
            return 0, state
        try:
            found = files.read_tensors(path)
        except CheckpointError:
            return 0, state
        notes = files.read_metadata(path)
        shapes = {p: (x.shape, x.dtype) for p, x in tree.leaves(state).items()}
        same = shapes == {p: (x.shape, x.dtype) for p, x in found.items()}
        if not same or notes["origin"] != origin or notes["sha256"] != _hash(found):
            return 0, state
        return int(notes["done"]), tree.map_leaves(lambda p, _: found[p], state)

    def forget(self, name: str) -> None:
        """Removes a kept state."""
        self._running(name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes the states of cells that were then finished beside others."""
        for path in (self.folder / "running").glob("[!.]*"):
            if path.name.split("-")[0] in self.done():
                path.unlink(missing_ok=True)

    def _running(self, name: str) -> Path:
        return self.folder / "running" / f"{name}.safetensors"


def _link(own: Path, path: Path) -> bool:
    """Gives a file its name, if no other has it; the file's own name goes."""
    try:
        os.link(own, path)
        return True
    except FileExistsError:
        return False
    finally:
        own.unlink()


def _hash(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[path]).tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
