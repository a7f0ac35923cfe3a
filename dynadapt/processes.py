"""The processes of one job: how they meet, and what they tell each other."""

import contextlib
import json
import os
import re
import socket
import time
from typing import Any

import jax
import numpy as np

from dynadapt.errors import MachineError


def start() -> None:
    """Joins the processes of a pod or cluster where `DYNADAPT_DISTRIBUTED` is set; else does
    nothing.

    `DYNADAPT_DISTRIBUTED=1` lets JAX find the others (TPU pods, Slurm, Kubernetes);
    `DYNADAPT_DISTRIBUTED=host:port,count,number` names them. `DYNADAPT_TIMEOUT` is how long one
    waits for the others, in seconds (300).

    Raises:
        MachineError: if not all processes report in time.
    """
    text = os.environ.get("DYNADAPT_DISTRIBUTED", "")
    if text in ("", "0") or jax.distributed.is_initialized():
        return
    timeout = os.environ.get("DYNADAPT_TIMEOUT", "300")
    if not timeout.isdecimal():
        raise MachineError(f"DYNADAPT_TIMEOUT must be whole seconds, not {timeout!r}")
    given: dict[str, Any] = {}
    if text != "1":
        found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", text)
        if not found:
            raise MachineError(
                f"DYNADAPT_DISTRIBUTED must be 1 or host:port,count,number, not {text!r}"
            )
        given = dict(
            coordinator_address=found[1],
            num_processes=int(found[2]),
            process_id=int(found[3]),
        )
        meet(found[1], int(found[2]), int(found[3]), int(timeout))
    # Without it, the processes of CPU machines can't talk to each other.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(initialization_timeout=int(timeout), **given)
    except Exception as error:
        raise MachineError(
            f"not all hosts reported within {timeout} s; start the same command on every one "
            f"(--worker=all): {str(error).splitlines()[0]}"
        ) from error


def meet(address: str, count: int, number: int, timeout: int) -> None:
    """Waits for all processes; JAX itself would end a process that waits in vain without a word.

    Raises:
        MachineError: that names the processes that are missing after `timeout` seconds.
    """
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    try:
        if number == 0:
            missing = _receive(int(port), count, deadline)
        else:
            missing = _report(host, int(port), number, deadline, timeout)
    except OSError as error:
        raise MachineError(f"the processes cannot meet at {address}: {error}") from error
    if missing:
        raise MachineError(
            f"processes {missing} did not report within {timeout} s; start the same command on "
            "every host (--worker=all)"
        )


def _receive(port: int, count: int, deadline: float) -> list[int]:
    """Process 0: collects the others, and tells them and the caller which are missing."""
    guests: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        while len(guests) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError):
                guest = stack.enter_context(server.accept()[0])
                guest.settimeout(left)
                guests[int(guest.recv(16))] = guest
        missing = sorted({*range(1, count)} - {*guests})
        for guest in guests.values():
            guest.sendall(json.dumps(missing).encode())
            guest.recv(1)  # the guest closes first, so that this port is free at once
    return missing


def _report(host: str, port: int, number: int, deadline: float, timeout: int) -> list[int]:
    """Another process: reports to process 0 and hears which ones are missing."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.settimeout(timeout)
                connection.sendall(str(number).encode())
                if answer := connection.recv(4096):
                    return json.loads(answer)
        except OSError:
            time.sleep(0.1)
    return [0]


def gather_rows(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all processes, which must have equally many."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(rows)
    return {k: v.reshape(-1, *v.shape[2:]) for k, v in every.items()}


def any_process(flag: bool) -> bool:
    """Whether the flag is set in one process at least; all must ask."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def gather_bytes(own: bytes) -> list[bytes]:
    """What each process gives, in their order; all must ask."""
    if jax.process_count() == 1:
        return [own]
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.asarray(len(own)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    every = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(every, sizes, strict=True)]


def agree(text: str) -> None:
    """Raises a MachineError unless every process holds the same text (a config's digest)."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    own = np.frombuffer(bytes.fromhex(text), np.uint8)
    everyone = multihost_utils.process_allgather(own)
    strangers = [i for i, other in enumerate(everyone) if (other != everyone[0]).any()]
    if strangers:
        raise MachineError(f"processes {strangers} run another config than process 0")
