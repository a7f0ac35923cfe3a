"""Processes of tests: one with eight virtual devices, or several that find each other."""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def eight() -> dict[str, str]:
    """The environment of a process with eight virtual devices.

    Threads enough: a device that waits for the others holds one, and a product asks for more. XLA
    starts `NPROC` of them, or one a device, which block each other once in a while.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    own = {"XLA_FLAGS": flags, "NPROC": "32", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    return {**os.environ, **own}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def several(
    commands: Sequence[Sequence[str]], present: Sequence[int] | None = None, timeout: int = 60
) -> list[subprocess.Popen]:
    """Starts a command in each of several processes that find each other.

    Args:
        commands: of each process.
        present: the numbers of those that do start; all of them where none are given.
        timeout: seconds that one waits for the others.
    """
    port, processes = free_port(), []
    for number in range(len(commands)) if present is None else present:
        env = {
            **os.environ,
            "DYNADAPT_DISTRIBUTED": f"localhost:{port},{len(commands)},{number}",
            "DYNADAPT_TIMEOUT": str(timeout),
        }
        env.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which JAX set in this process
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(subprocess.Popen(commands[number], env=env, cwd=ROOT, **pipes))
    return processes


def finish(
    processes: Sequence[subprocess.Popen], limit: int = 240
) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, outputs and errors of processes, at their end."""
    try:
        outs = [p.communicate(timeout=limit) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [p.returncode for p in processes], [o for o, _ in outs], [e for _, e in outs]
