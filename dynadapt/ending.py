"""How a process ends before its time: by a signal, or as another process of its job is lost."""

import contextlib
import itertools
import os
import select
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PEER_LOST = 3
# Seconds between two signs of life, and those in which a failure may still be told by itself.
BEAT = 1.0
GRACE = 5.0
SIGNS, VERDICT = "dynadapt/signs", "lost"

_lock = threading.Lock()
_saving: list["Stop"] = []
_heard: list[int] = []
_watching: list["Watch"] = []
_listeners: list[threading.Thread] = []
_left: list[int] = []


class Stop(threading.Event):
    """Set by the first signal where something is to be saved; `number` is the signal's."""

    number: int = signal.SIGTERM

    def ask(self, number: int) -> None:
        """Asks for a stop."""
        self.number = number
        self.set()


def command() -> str:
    """How the user calls this program: `dynadapt`, or the script that started it."""
    return os.environ.get("DYNADAPT_COMMAND", "dynadapt")


def again() -> str:
    """The command of this process; given again, it goes on where it was stopped."""
    return shlex.join([command(), *sys.argv[1:]])


def end(code: int, text: str) -> None:
    """Ends this process at once, whatever its threads do, with one line on standard error."""
    line = f"dynadapt: {text}; go on with: {again()}\n"
    with contextlib.suppress(OSError, ValueError):
        if os.isatty(2):  # a progress bar is in the way, and hides the cursor
            line = f"\r\033[K\033[?25h{line}"
        if select.select([], [2], [], BEAT)[1]:
            os.write(2, line.encode(errors="surrogateescape"))
    os._exit(code)


def hold() -> None:
    """Lets signals wait until `listen` is called, also if the process starts anew before."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def listen() -> None:
    """Answers signals in a thread of its own, also while the main one compiles.

    To be called while there is one thread: those that it starts inherit that they hear nothing.
    """
    hold()
    _listeners.append(threading.Thread(target=_answer, daemon=True))
    _listeners[-1].start()


def listening() -> bool:
    """Whether signals are answered in a thread."""
    return bool(_listeners)


def _answer() -> None:
    while True:
        hear(signal.sigwait(SIGNALS))


def hear(number: int) -> None:
    """Leaves a first signal to what has something to save; ends the process else."""
    with _lock:
        _heard.append(number)
        left = _saving and not _saving[-1].is_set()
        if left:
            _saving[-1].ask(number)
    if not left:
        end(128 + number, "stopped")


@contextlib.contextmanager
def left_to(stop: Stop) -> Iterator[None]:
    """Leaves the next signal to `stop`."""
    with _lock:
        _saving.append(stop)
    try:
        yield
    finally:
        with _lock:
            _saving.remove(stop)


class Watch:
    """The signs of life that the processes of a job give each other.

    A process that gives none is named by all others, which end. Beats are counted, not timed: a
    process that was paused itself, with its machine, has missed nothing of the others.

    Args:
        client: JAX's store of keys and values, which process 0 holds.
        number: of this process.
        count: of all processes.
        silence: seconds without a sign after which a process is lost.
    """

    def __init__(self, client: Any, number: int, count: int, silence: int):
        self.client, self.number, self.silence = client, number, silence
        self.others = [i for i in range(count) if i != number]
        self.sign = ""  # what is told instead of a number: that this process is done
        self.beats, self.answered = 0, 0
        self.seen: dict[int, tuple[str, int]] = {i: ("", 0) for i in self.others}
        self.verdict = ""
        self._sending = threading.Lock()

    def start(self) -> None:
        """Starts to tell and to look."""
        for work in (self._tell, self._look):
            threading.Thread(target=work, daemon=True).start()

    def done(self) -> None:
        """Tells the others that this process ends well."""
        self.sign = "done"
        self.send(self.sign)

    def send(self, sign: str, key: object = None) -> None:
        """Gives a sign."""
        with self._sending, contextlib.suppress(Exception):  # the other end may be gone
            name = f"{SIGNS}/{self.number if key is None else key}"
            self.client.key_value_set(name, self.sign or sign, allow_overwrite=True)

    def _tell(self) -> None:
        for beat in itertools.count():
            self.send(str(beat))
            with contextlib.suppress(Exception):
                self.read(dict(self.client.key_value_dir_get(SIGNS)))
            time.sleep(BEAT)

    def read(self, signs: dict[str, str]) -> None:
        """Takes notice of the signs of all processes, by key."""
        self.answered = self.beats
        signs = {key.rsplit("/", 1)[-1]: sign for key, sign in signs.items()}
        self.verdict = signs.get(VERDICT, "")
        for other in self.others:
            sign = signs.get(str(other), "")
            if sign == "done" or sign != self.seen[other][0]:
                self.seen[other] = sign, self.beats

    def lost(self) -> list[int]:
        """The processes that are lost."""
        if self.verdict:
            return [int(number) for number in self.verdict.split()]
        if self.number and self.beats - self.answered > self.silence:
            return [0]
        return [
            other
            for other, (sign, beat) in self.seen.items()
            if sign != "done" and self.beats - beat > self.silence
        ]

    def _look(self) -> None:
        while not self.lost():
            time.sleep(BEAT)
            self.beats += 1
        found = self.lost()
        if self.number == 0:  # the others read it here before this process is gone, too
            self.send(" ".join(map(str, found)), VERDICT)
            time.sleep(3 * BEAT)
        lost(found)


def lost(numbers: list[int]) -> None:
    """Ends this process as those are lost; where it was asked to end, with the code of that, and
    where it has taken leave, with its own."""
    if _left:  # all is done and told: the others may go first
        os._exit(_left[0])
    names = ("process " if len(numbers) == 1 else "processes ") + ", ".join(map(str, numbers))
    code = 128 + _heard[0] if _heard else PEER_LOST
    end(code, f"{names} gave no sign of life, so that the others end, too")


def watch(client: Any, number: int, count: int, silence: int) -> None:
    """Watches over the other processes of this job."""
    _watching.append(Watch(client, number, count, silence))
    _watching[-1].start()


def first_gone(*_: Any) -> None:
    """What JAX calls where process 0 has closed its connections."""
    time.sleep(GRACE)
    lost([0])


def failed() -> None:
    """Tells an unexpected error of one of several processes, unless another one is its reason."""
    for one in _watching:
        time.sleep(one.silence + 5 * BEAT)
        traceback.print_exc()
        leave(1)


def leave(code: int) -> None:
    """Ends one of several processes; all wait for each other here, but not after a failure.

    Python itself isn't taken down: threads that are in C++ at that moment would crash.
    """
    for one in _watching:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        if code in (0, *(128 + number for number in SIGNALS)):
            _left.append(code)
            one.done()
            with contextlib.suppress(Exception):  # who is lost is not waited for
                from jax import distributed

                distributed.shutdown()
        os._exit(code)
