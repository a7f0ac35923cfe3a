"""Being stopped: a signal is answered at the next step, with the state saved."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from dynadapt import ending
from dynadapt.ending import Stop


class Preempted(Exception):
    """The process was asked to end, and the state is saved; `code` is its exit code."""

    code = 128 + signal.SIGTERM


@contextlib.contextmanager
def stop_signal() -> Iterator[Stop]:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once.

    Raises:
        Preempted: at the end, if a signal came and nothing else answered it.
    """
    stop = Stop()
    try:
        with ending.left_to(stop) if ending.listening() else _handlers(stop):
            yield stop
        if stop.is_set():
            raise Preempted
    except Preempted as error:
        error.code = 128 + stop.number
        raise


@contextlib.contextmanager
def _handlers(stop: Stop) -> Iterator[None]:
    """Has signals heard where a program of another's calls; what was there before acts second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in ending.SIGNALS}

    def hear(number: int, _: Any) -> None:
        stop.ask(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked(stop: threading.Event, meeting: bool) -> bool:
    """Whether to stop now; several processes agree on it, at the steps where they meet."""
    import jax

    from dynadapt import processes

    if jax.process_count() == 1:
        return stop.is_set()
    return meeting and processes.any_process(stop.is_set())


def interruptible(batches: Iterable[Any], stop: threading.Event) -> Iterator[Any]:
    """The batches, until a stop is asked for; several processes finish what they began."""
    import jax

    for batch in batches:
        if stop.is_set() and jax.process_count() == 1:
            raise Preempted
        yield batch
