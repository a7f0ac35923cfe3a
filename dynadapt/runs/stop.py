"""Being stopped: a signal is answered at the next step, with the state saved."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from dynadapt import processes


class Preempted(Exception):
    """The process was asked to end, and the state is saved."""


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked(stop: threading.Event, meeting: bool) -> bool:
    """Whether to stop now; several processes agree on it, at the steps where they meet."""
    if jax.process_count() == 1:
        return stop.is_set()
    return meeting and processes.any_process(stop.is_set())


def interruptible(batches: Iterable[Any], stop: threading.Event) -> Iterator[Any]:
    """The batches, until a stop is asked for; several processes finish what they began."""
    for batch in batches:
        if stop.is_set() and jax.process_count() == 1:
            raise Preempted
        yield batch
