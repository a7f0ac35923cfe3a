"""Benchmarks: candidates asked in turn in one run, as commands and never as tests.

Machines are noisy, so what is printed is the ratio of neighbouring readings: median and range.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

from dynadapt.errors import ConfigError, MachineError

# What every worker does: a first call, then one timed call for each line that it reads, or its peak
# of memory in bytes.
_WORKER = """
import json, resource, signal, sys, time
signal.pthread_sigmask(signal.SIG_SETMASK, ())  # its parent hears signals in a thread
def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
def answer(call):
    first = seconds(call)
    call()
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(peak if line == "peak\\n" else seconds(call)), flush=True)
"""
# The device of PyTorch that is ours too, and how to wait for it; put before a worker's code.
TORCH_DEVICE = """
import os, torch
on_gpu = os.environ.get("JAX_PLATFORMS") != "cpu" and torch.cuda.is_available()
device = torch.device("cuda" if on_gpu else "cpu")
wait = torch.cuda.synchronize if on_gpu else lambda: None
torch.set_num_threads(os.cpu_count())
"""
# The same, and timm. A torchvision without its compiled part fails to import unless its operators
# are declared.
TIMM = f"""{TORCH_DEVICE}
library = torch.library.Library("torchvision", "DEF")
try:
    import torchvision
except (ImportError, RuntimeError):
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
"""
# Columns of a table that a terminal has room for.
WIDEST = 10


class Worker:
    """A process that times one call whenever it is asked; `first` is its first one, in seconds."""

    def __init__(self, python: str, code: str, *arguments: str):
        # The worker's own piece arrives under a module's name, without a file.
        own = f"import sys, types\nm = types.ModuleType('dynadapt_bench')\nexec({_WORKER!r}, "
        own += f"m.__dict__)\nsys.modules['dynadapt_bench'] = m\n{code}"
        try:
            self.process = subprocess.Popen(
                [python, "-c", own, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ConfigError(f"cannot run {python!r}: {error.strerror}") from error
        try:
            self.first = self.answer()
        except MachineError:
            self.stop()
            raise

    def answer(self) -> Any:
        """What the process says next."""
        line = self.process.stdout.readline()
        if not line:
            lines = self.process.stderr.read().strip().splitlines() or ["no message"]
            raise MachineError(f"a benchmark's process ended: {lines[-1]}")
        return json.loads(line)

    def ask(self) -> float:
        """Seconds of one call."""
        return self._asked("go")

    def peak(self) -> int:
        """The most bytes that the process has held so far."""
        return self._asked("peak")

    def _asked(self, line: str) -> Any:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A function that makes the call, waits for its arrays and answers with the seconds."""
    import jax

    def ask() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    ask(), ask()
    return ask


def interleaved(asks: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Readings of each, asked in turn; every second round goes the other way."""
    readings: list[list[float]] = [[] for _ in asks]
    for number in range(rounds):
        order = range(len(asks)) if number % 2 else reversed(range(len(asks)))
        for i in order:
            readings[i].append(asks[i]())
    return readings


def ratio(ours: list[float], other: list[float]) -> dict[str, float]:
    """Our time over another's, pair by pair: median, range, and the ratio of the best times."""
    pairs = sorted(a / b for a, b in zip(ours, other, strict=True))
    return dict(
        ratio=round(statistics.median(pairs), 3),
        lowest=round(pairs[0], 3),
        highest=round(pairs[-1], 3),
        minima=round(min(ours) / min(other), 3),
    )


def milliseconds(readings: list[float]) -> float:
    """The median of the readings."""
    return round(1e3 * statistics.median(readings), 2)


def machine() -> str:
    """The accelerators, the processor, its cores, and how busy it was."""
    import jax

    kinds = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    before = f"{len(kinds)} x {kinds[0]}; " if kinds else ""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line for line in file if line.startswith("model name")).split(": ")[1]
    except (OSError, StopIteration):
        pass
    load = os.getloadavg()[0]
    cores = f"{before}{name.strip()}, {os.cpu_count()} cores"
    return f"{cores}, load {load:.1f}, {time.strftime('%Y-%m-%d')}"


def show(result: dict[str, Any]) -> None:
    """Prints the rows as a table, ratios with their range; many columns as lines."""
    from dynadapt.runs.journal import show_table

    print(result["machine"])
    table = lines(result["rows"])
    if len(table[0]) > WIDEST:
        table = [list(line) for line in zip(*table, strict=True)]
    show_table("", table[0], table[1:])


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The names of all columns, and a line a row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [columns, *([_text(row.get(key)) for key in columns] for row in rows)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['ratio']} ({value['lowest']}..{value['highest']}; {value['minima']})"
    return "" if value is None else str(value)
