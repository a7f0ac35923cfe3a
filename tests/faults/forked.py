"""A process that has imported all and forks: each command of a test starts in no time.

It has made no device and no thread when it forks, so what it forks is as a process of its own.
Asked by a line `[argv, phase, signal, folder]`, it answers with a number, and then with an exit
code.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Where a process may send itself a signal: modules and what they call when it comes to that.
PHASES = {
    "data": "dynadapt.inputs.open_split",
    "model": "dynadapt.model.build",
    "start": "dynadapt.runs.workdir.start",
    "restore": "dynadapt.train.restore",
    "compilation": "dynadapt.model.outputs",
    "evaluation": "dynadapt.evaluate.in_order",
    "saving": "dynadapt.runs.checkpoint.Checkpoints.save",
    "predictions": "dynadapt.runs.predictions.Predictions.finish",
    "product": "dynadapt.runs.product.save",
    "finish": "dynadapt.runs.workdir.finish",
    "plan": "dynadapt.plans.plan.show",
}


class Forker:
    """Starts commands, one at a time; use it as a context manager."""

    def __enter__(self) -> "Forker":
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        call = [sys.executable, "-m", "tests.faults.forked"]
        env = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(call, cwd=ROOT, env=env, **pipes)
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def start(self, argv: list[str], folder: Path, phase: str = "", number: int = 0) -> int:
        """Starts a command whose outputs go to `folder`; returns the number of its process."""
        self.process.stdin.write(json.dumps([argv, phase, number, str(folder)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def code(self) -> int:
        """Waits for its end: the exit code, or less than 0 where a signal ended it."""
        self.process.stdout.readline()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def plant(phase: str, number: int) -> None:
    """Has this process send itself a signal in a phase."""
    import importlib

    *path, name = PHASES[phase].split(".")
    owner: Any = None
    for part in range(len(path), 0, -1):
        try:
            owner = importlib.import_module(".".join(path[:part]))
        except ImportError:
            continue
        for attribute in path[part:]:
            owner = getattr(owner, attribute)
        break
    real, left = getattr(owner, name), [number]

    def call(*args: Any, **named: Any) -> Any:
        if left:
            os.kill(os.getpid(), left.pop())
            time.sleep(0.05)  # it is heard in another thread
        return real(*args, **named)

    setattr(owner, name, call)


def child(argv: list[str], phase: str, number: int, folder: str) -> None:
    """What a forked process does: the command, as a process that has just started."""
    from dynadapt import ending
    from dynadapt.main import main

    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    sys.argv = ["dynadapt", *argv]
    ending.listen()
    if phase:
        plant(phase, number)
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Forks for each line that is read."""
    import jax  # noqa: F401
    import sklearn.datasets  # noqa: F401

    from dynadapt import evaluate, predict, train  # noqa: F401
    from dynadapt.plans import plan  # noqa: F401

    while line := sys.stdin.readline():
        given = json.loads(line)
        if not (pid := os.fork()):
            child(*given)
        print(pid, flush=True)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print("over", flush=True)  # its number is its own until the next line is read
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
