"""A trace of some of a run's steps, as TensorBoard, XProf and Perfetto read it.

profile/plugins/profile/<time>/<host>.xplane.pb, .trace.json.gz
"""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dynadapt import files
from dynadapt.errors import ConfigError

FOLDER = "profile"
OPTION = "--profile"


class Window(NamedTuple):
    """The steps after `start` up to `stop`; `everywhere` is on all processes, not the first."""

    start: int
    stop: int
    everywhere: bool = False


def window(text: str) -> Window:
    """Reads `START:STOP`, or `START:STOP:all`; raises a ConfigError for anything else."""
    form = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})(:all)?", text, re.ASCII)
    found = form and Window(int(form[1]), int(form[2]), bool(form[3]))
    if not found or found.start >= found.stop:
        raise ConfigError(
            f"{OPTION}={text} must be START:STOP with START below STOP, such as 20:25 for the five "
            "steps after step 20; 20:25:all traces every process"
        )
    return found


def check(asked: Window | None, steps: int) -> None:
    """Raises a ConfigError for steps that a run doesn't have."""
    if asked and asked.stop > steps:
        last = max(steps - (asked.stop - asked.start), 0)
        raise ConfigError(
            f"{OPTION}={asked.start}:{asked.stop} ends after step {asked.stop}, and the run has "
            f"{steps}; its last ones are {last}:{steps}"
        )


class Profile:
    """Traces the steps that are asked for; use it as a context manager, which closes the trace.

    Args:
        workdir: where `profile/` will lie, with a folder for each process but the first.
        asked: which steps, None for none.
        done: steps that were taken before.
        say: gets a line for the eye.
    """

    def __init__(
        self, workdir: Path, asked: Window | None, done: int, say: Callable[[str], None]
    ) -> None:
        number = jax.process_index()
        self._asked = asked if asked and (asked.everywhere or number == 0) else None
        self._folder = workdir / FOLDER / (f"process_{number}" if number else "")
        self._partial = files.partial_name(workdir / FOLDER)
        self._since: int | None = None
        self._done, self._say = done, say
        if self._asked and done >= asked.stop:
            say(f"the steps of {OPTION}={asked.start}:{asked.stop} are done: nothing is traced")

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._since is not None:
            self._close()

    def begin(self, done: int, state: Any) -> None:
        """Opens the trace where the next step is the first one of it."""
        asked = self._asked
        if asked and self._since is None and asked.start <= done < asked.stop:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._partial)
            self._since = done

    def end(self, done: int, state: Any) -> float:
        """Closes the trace where the last step was the last one of it; seconds that it took."""
        self._done = done
        if self._since is None or done < self._asked.stop:
            return 0.0
        jax.block_until_ready(state)
        began = time.monotonic()
        self._close()
        return time.monotonic() - began

    def _close(self) -> None:
        since, self._since, self._asked = self._since, None, None
        with files.writing(self._folder):
            try:
                jax.profiler.stop_trace()
                for made in (self._partial / "plugins" / "profile").iterdir():
                    place = self._folder / made.relative_to(self._partial)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(made, place)
            finally:
                shutil.rmtree(self._partial, ignore_errors=True)
        self._say(f"steps {since + 1} to {self._done} are traced in {self._folder}")
