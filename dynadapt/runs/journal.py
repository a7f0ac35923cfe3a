"""What a run tells: records in `metrics.jsonl`, TensorBoard where asked, progress for the eye."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dynadapt import files
from dynadapt.errors import MachineError

FILE = "metrics.jsonl"


class Journal:
    """Writes records and shows progress on standard error; use it as a context manager.

    Args:
        workdir: where `metrics.jsonl` grows.
        steps: length of the bar.
        tensorboard: also write TensorBoard event files (needs the `[track]` extra).
        silent: show and write nothing (all processes but the first).
        resumed: the step that the run goes on from; later records in the file are dropped, and
            the evaluation at this step, which is done again.
    """

    def __init__(
        self,
        workdir: Path,
        steps: int,
        *,
        tensorboard: bool = False,
        silent: bool = False,
        resumed: int = 0,
    ):
        self.steps, self.silent = steps, silent
        self.console = Console(stderr=True)
        self._board = _board(workdir) if tensorboard and not silent else None
        self._path = workdir / FILE
        self._file = None if silent else _opened(self._path, resumed)
        self._bar = None
        self._started = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> "Journal":
        if self.console.is_terminal and not self.silent:
            columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps)
        return self

    def __exit__(self, *_: Any) -> None:
        for part, close in ((self._bar, "stop"), (self._file, "close"), (self._board, "close")):
            with contextlib.suppress(OSError):  # a full disk was told of at the record
                if part is not None:
                    getattr(part, close)()

    def say(self, text: str) -> None:
        """A line for the eye."""
        if not self.silent:
            self.console.print(text, highlight=False, soft_wrap=True)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line in `metrics.jsonl`, and its numbers to TensorBoard."""
        if self._file is not None:
            line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
            with files.writing(self._path):
                self._file.write(json.dumps(line, allow_nan=False) + "\n")
                self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if not isinstance(value, Mapping):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Records training values and shows step, loss, images/s and the time that is left."""
        self.record("train", step, values)
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = step, now
        loss, rate = values.get("loss", math.nan), values["images_per_second"]
        text = f"loss {loss:.4f}  {rate:.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        left = (now - self._started) / max(step - self._first, 1) * (self.steps - step)
        known = f"  {_duration(left)} left" if step > self._first else ""
        self.say(f"step {step}/{self.steps}  {text}{known}")


def _opened(path: Path, resumed: int) -> Any:
    """The file of records, open for more; whole records of what is not done again stay.

    A file with anything else in it than records is set aside.
    """
    lines, whole = read(path)
    records = map(json.loads, lines)
    kept = [
        line + "\n"
        for line, record in zip(lines, records, strict=True)
        if record["step"] + (record["kind"] != "train") <= resumed
    ]
    with files.writing(path):
        if not whole:
            aside = _aside(path)
            path.rename(aside)
            logging.warning("%s is damaged: it is kept as %s, without it goes on", path, aside.name)
        with files.whole(path) as partial:
            partial.write_text("".join(kept))
        return open(path, "a")


def _aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
        number += 1
    return aside


def read(path: Path) -> tuple[list[str], bool]:
    """The lines of a file that are records, and whether there is nothing else in it.

    The last line may be cut, as a process leaves it that is killed.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], True
    except OSError:
        return [], False
    records = [line.decode() for line in lines if _is_record(line)]
    return records, all(map(_is_record, lines[:-1]))


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    kinds = {"step": int, "kind": str}
    return isinstance(record, dict) and all(isinstance(record.get(k), t) for k, t in kinds.items())


def _board(workdir: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MachineError(
            "log.tensorboard needs tensorboardX: pip install 'dynadapt[track]'"
        ) from error
    return SummaryWriter(str(workdir))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def show_table(
    title: str, columns: list[str], rows: list[list[Any]], *, file: Any = None, note: str = ""
) -> None:
    """Prints a table; numbers stand right, None is an empty cell."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for number, name in enumerate(columns):
        numeric = all(isinstance(r[number], int | float | None) for r in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = ("" if v is None else f"{v:,}" if isinstance(v, int) else str(v) for v in row)
        table.add_row(*cells)
    _Console(file=file or sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)


class _Console(Console):
    """Raises a BrokenPipeError as `print` does, where rich would leave the process."""

    def on_broken_pipe(self) -> None:
        raise  # what is being handled


def size_text(count: float) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 3.2 MiB, 1.1 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
