"""The processes of one job: how they meet, and what they tell each other."""

import contextlib
import ctypes
import functools
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dynadapt import ending
from dynadapt.errors import MachineError

# Seconds without a sign of life after which a process is lost; less where waiting is shorter.
SILENCE = 30
# What one may give: how many processes there are at most, and how long they wait for each other.
MOST, LONGEST = 100_000, 86_400
# Seconds for who connects to say its number, and how many of those that are missing are named.
HELLO, NAMED = 5, 100


def start() -> None:
    """Joins the processes of a pod or cluster where `DYNADAPT_DISTRIBUTED` is set; else does
    nothing.

    `DYNADAPT_DISTRIBUTED=1` lets JAX find the others (TPU pods, Slurm, Kubernetes);
    `DYNADAPT_DISTRIBUTED=host:port,count,number` names them. `DYNADAPT_TIMEOUT` is how long one
    waits for the others, in seconds (300). From then on each is watched: a process that is lost
    ends the others (`ending.Watch`).

    Raises:
        MachineError: if not all processes report in time.
    """
    text = os.environ.get("DYNADAPT_DISTRIBUTED", "")
    if text in ("", "0") or jax.distributed.is_initialized():
        return
    timeout = _timeout()
    given: dict[str, Any] = {}
    if text != "1":
        address, count, number = _named(text)
        given = dict(coordinator_address=address, num_processes=count, process_id=number)
        meet(address, count, number, timeout)
    # Without it, the processes of CPU machines can't talk to each other.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # signals are answered in `ending`
    try:
        with _answering_for_jax():
            jax.distributed.initialize(initialization_timeout=timeout, **given)
    except Exception as error:
        raise MachineError(
            f"not all hosts reported within {timeout} s; start the same command on every one "
            f"(--worker=all): {str(error).splitlines()[0]}"
        ) from error
    from jax._src.distributed import global_state as job

    if job.num_processes > 1:
        silence = min(timeout, SILENCE)
        ending.watch(job.client, job.process_id, job.num_processes, silence)


def _timeout() -> int:
    """Seconds that one waits for the others."""
    text = os.environ.get("DYNADAPT_TIMEOUT", "300")
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= LONGEST:
        raise MachineError(
            f"DYNADAPT_TIMEOUT must be whole seconds from 1 to {LONGEST}, not {text!r}"
        )
    return int(text)


def _named(text: str) -> tuple[str, int, int]:
    """Address, count and number of `host:port,count,number`."""
    found = re.fullmatch(r"(\S+:([0-9]+)),([0-9]+),([0-9]+)", text)
    if not found:
        raise MachineError(
            f"DYNADAPT_DISTRIBUTED must be 1 or host:port,count,number, not {text!r}"
        )
    port, count, number = (int(digits[:12]) for digits in found.groups()[1:])
    for wrong, what in (
        (not 0 < port < 1 << 16, f"no port is {port}; they are 1 to 65535"),
        (not 0 < count <= MOST, f"there may be 1 to {MOST} processes, not {count}"),
        (number >= count, f"there is no process {number} of {count}; they count from 0"),
    ):
        if wrong:
            raise MachineError(f"DYNADAPT_DISTRIBUTED={text}: {what}")
    return found[1], count, number


_kept: list[Any] = []  # what C++ may call at any time


@contextlib.contextmanager
def _answering_for_jax() -> Iterator[None]:
    """Has what JAX makes here call `ending.first_gone` where it would abort this process.

    The call fails in C++, which can't tell Python the status that belongs to it; C++ then asks its
    handler of termination, which is ours too.
    """
    from jax._src.lib import _jax

    make = _jax.get_distributed_runtime_client
    answer = ending.first_gone
    _jax.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=answer)
    _kept.append(ctypes.CFUNCTYPE(None)(answer))
    with contextlib.suppress(OSError, AttributeError):  # another library of C++
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(_kept[-1])
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = make


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
    missing, guests = {*range(1, count)}, []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        while missing and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # a stranger, or none in time
                guest = stack.enter_context(server.accept()[0])
                guest.settimeout(min(left, HELLO))
                missing.discard(int(guest.recv(16)))
                guests.append(guest)
        for guest in guests:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                guest.sendall(json.dumps(sorted(missing)[:NAMED]).encode())
                guest.recv(1)  # the guest closes first, so that this port is free at once
    return sorted(missing)[:NAMED]


def _report(host: str, port: int, number: int, deadline: float, timeout: int) -> list[int]:
    """Another process: reports to process 0 and hears which ones are missing."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.settimeout(timeout + HELLO)  # its answer comes at the end of its wait
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
