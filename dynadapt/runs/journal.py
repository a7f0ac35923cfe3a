"""What a run tells: records in `metrics.jsonl`, dashboards where asked, progress for the eye."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dynadapt import files
from dynadapt.errors import MachineError
from dynadapt.runs import sinks, speed

FILE = "metrics.jsonl"


class Journal:
    """Writes records and shows progress on standard error; use it as a context manager.

    Args:
        workdir: where `metrics.jsonl` grows.
        steps: length of the bar.
        tensorboard: also write TensorBoard event files (needs the `[track]` extra).
        to: names of sinks that get the numbers, too.
        config: plain, what sinks are told of the run.
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
        to: Iterable[str] = (),
        config: Mapping[str, Any] | None = None,
        silent: bool = False,
        resumed: int = 0,
    ):
        self.steps, self.silent = steps, silent
        self.console = Console(stderr=True)
        self._board = _board(workdir, resumed) if tensorboard and not silent else None
        self._path = workdir / FILE
        with contextlib.ExitStack() as stack:
            self._sinks = sinks.started(stack, () if silent else to, workdir, config or {})
            self._file = None if silent else _opened(self._path, resumed)
            self._stack = stack.pop_all()
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

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
        except Exception as fault:  # all is in the folder, whatever a library says at its end
            self.say(f"warning: log.sinks: {files.first_line(fault)}")
        for part, close in ((self._bar, "stop"), (self._file, "close"), (self._board, "close")):
            with contextlib.suppress(OSError):  # a full disk was told of at the record
                if part is not None:
                    getattr(part, close)()

    def say(self, text: str) -> None:
        """A line for the eye."""
        if not self.silent:
            self.console.print(text, highlight=False, soft_wrap=True)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line in `metrics.jsonl`, and its numbers to TensorBoard and the sinks."""
        if self._file is not None:
            line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
            with files.writing(self._path):
                self._file.write(json.dumps(line, allow_nan=False) + "\n")
                self._file.flush()
        numbers = {f"{kind}/{k}": v for k, v in values.items() if not isinstance(v, Mapping)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        for name, write in list(self._sinks.items()):
            try:
                write(step, numbers)
            except Exception as error:  # a dashboard that is away ends no training
                del self._sinks[name]
                reason = files.first_line(error)
                self.say(f"warning: {name} gets no more numbers of this run: {reason}")

    def picture(self, name: str, step: int, path: Path) -> None:
        """The picture in a file, where there is one, to TensorBoard."""
        if self._board is not None and path.exists():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Records training values and shows step, loss, speed and the time that is left."""
        self.record("train", step, values)
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = step, now
        text = f"loss {values.get('loss', math.nan):.4f}  {speed.shown(values)}"
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


def _board(workdir: Path, resumed: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MachineError(
            "log.tensorboard needs tensorboardX: pip install 'dynadapt[track]'"
        ) from error
    # What a process wrote after the checkpoint that the next one goes on from is not shown twice.
    return SummaryWriter(str(workdir), purge_step=resumed + 1 if resumed else None)


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


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for Markdown, with a newline at its end."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


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
