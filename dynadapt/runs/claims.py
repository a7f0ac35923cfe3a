"""Who works on what: a claim is a file that only one process can make.

Nothing is locked, so it holds among machines that share a folder, too. A claim names its host and
process, which touches it while it lives. A claim of a dead process is given up: at once on the
same machine, and on another one when it hasn't been touched for `STALE` seconds.
"""

import contextlib
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from dynadapt import files, processes
from dynadapt.errors import ConfigError, MachineError

STALE = 180.0
TOUCH = 20.0
OWNER = "owner"  # the claim of a folder as a whole


class Claims:
    """The claims of one process in a folder; as a context manager it touches them until the end.

    All but `release` raise an OSError where the folder can't be written.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._names: set[str] = set()
        self._token = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"
        self._over = threading.Event()

    def __enter__(self) -> "Claims":
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        self.release(list(self._names))

    def _touch(self) -> None:
        while not self._over.wait(TOUCH):
            for name in list(self._names):
                with contextlib.suppress(OSError):
                    if self.holds(name):
                        os.utime(self.folder / name)

    def take(self, name: str) -> bool:
        """Makes a claim, in place of a dead process's; false where a living one has it."""
        path = self.folder / name
        if not self._make(path):
            found = read(path)
            if found is None or not self._stale(path, found) or not self._clear(path, found):
                return False
            if not self._make(path):
                return False
        self._names.add(name)
        return True

    def holds(self, name: str) -> bool:
        """Whether the claim is this process's; one that slept may have lost it to another."""
        return read(self.folder / name) == self._token

    def holder(self, name: str) -> str:
        """Which living process holds a claim, and since when it is silent; "" where none does."""
        path = self.folder / name
        found = read(path)
        if found is None or self._stale(path, found):
            return ""
        host, process, *_ = [*found.split(), "", ""]
        who = f"process {process[:20]} on {host[:64]}" if process else "a process without a name"
        return f"{who} (last sign of life {max(self._age(path), 0):.0f} s ago)"

    def release(self, names: Iterable[str]) -> None:
        """Gives claims up."""
        for name in names:
            self._names.discard(name)
            with contextlib.suppress(OSError):
                if self.holds(name):
                    (self.folder / name).unlink(missing_ok=True)

    def _make(self, path: Path) -> bool:
        """Makes a claim, whole from the start; false where there is one."""
        while True:
            own = files.partial_name(path)
            own.write_text(self._token)
            try:
                return link(own, path)
            except FileNotFoundError:  # a new owner swept the folder just then
                if not path.exists():
                    raise

    def _stale(self, path: Path, token: str) -> bool:
        # After a power cut a claim may be empty; a stranger's may hold anything.
        host, process, *_ = [*token.split(), "", ""]
        if host == platform.node() and _is_gone(process):
            return True
        return abs(self._age(path)) > STALE  # no sign of life comes from the future

    def _age(self, path: Path) -> float:
        """Seconds since a claim was touched, by the clock of the file system, which all share."""
        now = files.partial_name(path)
        now.touch()
        try:
            return now.stat().st_mtime - path.lstat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            now.unlink(missing_ok=True)

    def _clear(self, path: Path, token: str) -> bool:
        """Removes a dead process's claim; false if it is another's by now."""
        aside = files.partial_name(path)
        try:
            os.rename(path, aside)
        except OSError:
            return False
        try:
            if read(aside) == token:
                return True
            os.link(aside, path)
            return False
        except FileExistsError:
            return False
        finally:
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def read(path: Path) -> str | None:
    """What a claim says, "" where it can't be read; None where there is none."""
    try:
        if not path.is_file() and os.path.lexists(path):
            return ""
        with open(path, "rb") as file:
            return file.read(4096).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _is_gone(process: str) -> bool:
    """Whether there is no process of this number here; false for what is no number."""
    if not (process.isascii() and process.isdecimal() and len(process) < 10):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def link(own: Path, path: Path) -> bool:
    """Gives a file its name, if no other has it; the file's own name goes."""
    try:
        os.link(own, path)
        return True
    except FileExistsError:
        return False
    finally:
        own.unlink(missing_ok=True)


def refuse(folder: Path, option: str = "--workdir") -> None:
    """Raises a ConfigError where another job that lives has the folder; all processes must ask."""
    _tell(_taken(Claims(folder), option) if jax.process_index() == 0 else "")


@contextlib.contextmanager
def owner(
    folder: Path, parts: Iterable[str] = (), option: str = "--workdir"
) -> Iterator[Callable[[], None]]:
    """Makes a folder this job's own until the end, however it ends; what dead jobs left there goes.

    The first of several processes takes it for all; all must ask. Yields a check that raises a
    MachineError when another job has it by now.

    Args:
        folder: made where it is not there.
        parts: folders in it that are this job's, too.
        option: which gives the folder.

    Raises:
        ConfigError: naming who has it, or why it can't be written.
    """
    claims, problem, first = Claims(folder), "", jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if stack.enter_context(claims).take(OWNER):
                    for place in (folder, *(folder / part for part in parts)):
                        files.sweep(place)
                else:
                    problem = _taken(claims, option) or f"{folder} is given up just now; try again"
            except OSError as error:
                reason = error.strerror or files.first_line(error)
                problem = f"nothing can be written in {folder}: {reason}; give another {option}"
        _tell(problem)

        def check() -> None:
            if first and not claims.holds(OWNER):
                raise MachineError(
                    f"{folder} is no longer this process's: it was silent for more than "
                    f"{STALE:.0f} s, and another one may have taken it; nothing more is written"
                )

        yield check


def _taken(claims: Claims, option: str) -> str:
    """The sentence on who has a folder; "" where nobody has."""
    holder = claims.holder(OWNER)
    return holder and (
        f"{claims.folder} is in use by {holder}; wait for its end, or give another {option} (a "
        f"process that died elsewhere is passed over after {STALE:.0f} s)"
    )


def _tell(problem: str) -> None:
    """Raises the first process's problem in all of them."""
    if told := processes.gather_bytes(problem.encode())[0].decode():
        raise ConfigError(told)
