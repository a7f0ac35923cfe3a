"""The results of a sweep on disk, and who works on what.

sweep.json           what all results of this folder share
cells/<cell>.json    a finished cell; it appears whole or not at all
claims/<cell>        a cell that a process works on; touched while it lives
results.jsonl        all finished cells, one a line: written anew, whole, after each
running/             checkpoints of what is being trained

Nothing is locked: a claim is a file that only one process can make, so several processes, on
several machines that share the folder, do no cell twice. A claim of a dead process is given up: at
once on the same machine, and on another one when it hasn't been touched for `STALE` seconds.
"""

import json
import os
import platform
import threading
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dynadapt import files
from dynadapt.errors import ConfigError, MachineError
from dynadapt.vtab.results import FILE

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
        try:
            for name in ("cells", "claims", "running"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"nothing can be written in {folder}: {error.strerror}; give another --workdir"
            ) from None
        self._agree(shared)

    def _agree(self, shared: dict[str, Any]) -> None:
        """Writes what all results share, or compares it with what is there."""
        path = self.folder / "sweep.json"
        if not path.exists():
            files.write_json(path, shared)
        found = files.read_json(path)
        for name, value in shared.items():
            if name == "methods":
                for method, own in value.items():
                    old = found["methods"].get(method, own)
                    if old != own:
                        raise ConfigError(
                            f"{self.folder} holds results of {method} with other settings or "
                            "another grid; give another --workdir"
                        )
            elif found.get(name) != value:
                raise ConfigError(
                    f"{self.folder} holds results of another {name.replace('_', ' ')} "
                    f"({_short(found.get(name))}, now {_short(value)}); give another --workdir"
                )
        if set(shared["methods"]) - set(found["methods"]):
            files.write_json(path, {**found, "methods": {**found["methods"], **shared["methods"]}})

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
                self._done[cell] = files.read_json(Path(entry.path))
        return self._done

    def claim(self, cells: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
        """Up to `most` of the cells that are neither finished nor claimed, now claimed."""
        mine = []
        for cell in cells:
            if len(mine) == most:
                break
            name = cell["cell"]
            if name in self.done() or not self._take(name):
                continue
            # Finished by another one between the look and the claim.
            if name in self.done():
                self.release([name])
                continue
            mine.append(cell)
        return mine

    def release(self, cells: Sequence[str]) -> None:
        """Gives claims up."""
        for name in cells:
            self._claims.discard(name)
            self._claim_path(name).unlink(missing_ok=True)

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
        own.write_text(self._token)
        try:
            os.link(own, path)
            return True
        except FileExistsError:
            return False
        finally:
            own.unlink()

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_text()
        except OSError:
            return None

    def _stale(self, path: Path, token: str) -> bool:
        host, process, _ = token.split()
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
        try:
            for line in lines:
                files.write_json(self.folder / "cells" / f"{line['cell']}.json", line)
            self.release([line["cell"] for line in lines])
            self._write()
        except OSError as error:
            raise MachineError(
                f"a result can't be written in {self.folder}: {error.strerror}; nothing that was "
                "finished before is lost, start the same command again"
            ) from error

    def _write(self) -> None:
        """`results.jsonl` with all finished cells; written again if another's older one won."""
        path = self.folder / FILE
        while True:
            done = self.done()
            text = "".join(json.dumps(done[c], sort_keys=True) + "\n" for c in sorted(done))
            with files.whole(path) as partial:
                partial.write_text(text)
            self.done()
            if path.read_text() == text and len(done) == text.count("\n"):
                return


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
