"""Benchmarks: candidates asked in turn, in one run, each in a process of its own.

Machines are noisy, so what is printed is the ratio of neighbouring readings: median and range.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from dynadapt.errors import ConfigError, MachineError

# The reference's name of each backbone that is compared.
REFERENCES = {
    "vit_b16": "vit_base_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
}
# Runs under another Python, which has torch and timm: nothing here imports them. A torchvision
# without its compiled part fails to import unless its operators are declared.
_TIMM = """
import os, sys, torch
from dynadapt_bench import answer
library = torch.library.Library("torchvision", "DEF")
try:
    import torchvision
except (ImportError, RuntimeError):
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
torch.set_num_threads(os.cpu_count())
network = timm.create_model(sys.argv[1], num_classes=0).eval()
images = torch.randn(int(sys.argv[2]), 3, 224, 224)
with torch.inference_mode():
    answer(lambda: network(images))
"""
_OURS = """
import sys
from dynadapt import bench
from dynadapt_bench import answer
answer(bench.forward_pass(sys.argv[1], int(sys.argv[2])))
"""
# What every worker does: a first call, then one timed call for each line that it reads.
_WORKER = """
import json, sys, time
def answer(call):
    call(); call()
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        print(json.dumps(time.perf_counter() - start), flush=True)
"""


class Worker:
    """A process that times one call whenever it is asked."""

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
        self.answer()

    def answer(self) -> Any:
        """What the process says next."""
        line = self.process.stdout.readline()
        if not line:
            lines = self.process.stderr.read().strip().splitlines() or ["no message"]
            raise MachineError(f"a benchmark's process ended: {lines[-1]}")
        return json.loads(line)

    def ask(self) -> float:
        """Seconds of one call."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


def forward_pass(name: str, batch: int) -> Callable[[], Any]:
    """A compiled forward pass of a backbone in float32, with random weights and images."""
    import jax
    from flax import nnx

    from dynadapt import backbones
    from dynadapt.context import Context

    graph, state = nnx.split(backbones.create(name, rngs=nnx.Rngs(0)))
    size = backbones.config(name).image_size
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))

    @jax.jit
    def forward(state: Any, images: Any) -> Any:
        return nnx.merge(graph, state)(images, Context()).maps[-1]

    return lambda: jax.block_until_ready(forward(state, images))


def forward(reference: str | None, names: list[str], batch: int, rounds: int) -> dict[str, Any]:
    """Times forward passes against timm's on PyTorch, with the same threads and batch.

    Args:
        reference: a Python that has torch and timm, or None to time ours alone.
        names: backbones, among `REFERENCES` where there is a reference.
        batch: images in a pass.
        rounds: readings of each.
    """
    rows = []
    for name in names:
        if reference and name not in REFERENCES:
            raise ConfigError(f"there is no reference of {name!r}; choose of {', '.join(REFERENCES)}")
        workers = [Worker(sys.executable, _OURS, name, str(batch))]
        try:
            if reference:
                workers.append(Worker(reference, _TIMM, REFERENCES[name], str(batch)))
            readings = interleaved(workers, rounds)
        finally:
            for worker in workers:
                worker.stop()
        rows.append(dict(backbone=name, batch=batch, **compared(readings, batch)))
    return dict(machine=machine(), rows=rows)


def interleaved(workers: list[Worker], rounds: int) -> list[list[float]]:
    """Readings of each worker, asked in turn, the first one first in every second round."""
    readings: list[list[float]] = [[] for _ in workers]
    for number in range(rounds):
        order = range(len(workers)) if number % 2 else reversed(range(len(workers)))
        for i in order:
            readings[i].append(workers[i].ask())
    return readings


def compared(readings: list[list[float]], batch: int) -> dict[str, Any]:
    """Milliseconds, images a second, and the ratio of ours to the reference's, pair by pair."""
    ours = statistics.median(readings[0])
    found = dict(ms=round(1e3 * ours, 1), images_per_second=round(batch / ours, 2))
    if len(readings) > 1:
        ratios = sorted(a / b for a, b in zip(*readings, strict=True))
        found["reference_ms"] = round(1e3 * statistics.median(readings[1]), 1)
        found["ratio"] = round(statistics.median(ratios), 3)
        found["ratio_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
        found["ratio_of_minima"] = round(min(readings[0]) / min(readings[1]), 3)
    return found


def machine() -> str:
    """The processor, its cores, and how busy it was."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line for line in file if line.startswith("model name")).split(": ")[1]
    except (OSError, StopIteration):
        pass
    load = os.getloadavg()[0]
    return f"{name.strip()}, {os.cpu_count()} cores, load {load:.1f}, {time.strftime('%Y-%m-%d')}"
