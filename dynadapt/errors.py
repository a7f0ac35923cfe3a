"""Errors that a user can cause: one clear sentence each, and the nearest valid choice."""

import difflib
from collections.abc import Iterable


class DynadaptError(Exception):
    """Base of all errors that the command line answers with one sentence and exit code 2."""


class ConfigError(DynadaptError):
    """A configuration that cannot be run; `problems` lists every fault found."""

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__(
            problems[0]
            if len(problems) == 1
            else f"{len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems)
        )


class UnknownName(ConfigError):
    """A name that is not among the valid choices of its kind."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]):
        shown = " ".join(f"{name!r:.200}".split())  # what a stranger's file says may be of any kind
        super().__init__(f"unknown {kind} {shown}; {suggest(name, choices)}")


class AttachError(ConfigError):
    """An adapter that cannot be attached where it was asked for."""


class NotMergeable(ConfigError):
    """A method that can't be folded into the weights, for the reason that it gives."""


class DataError(DynadaptError):
    """Data that is missing, broken or not what was announced."""


class MissingSplit(DataError):
    """Data that are there, but not in the split that was asked for."""


class CheckpointError(DynadaptError):
    """Weights, an adapter or a checkpoint that is missing, damaged or does not fit."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for something that reading weights never needs."""


class MachineError(DynadaptError):
    """A machine, mesh or optional package that is not there."""


class TrainingError(DynadaptError):
    """Training that cannot go on, such as a loss that is not finite."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Names the nearest valid choice, or lists the choices where none is near."""
    choices = sorted(map(str, choices))
    near = difflib.get_close_matches(str(name), choices, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "choose one of " + ", ".join(choices) if choices else "there is nothing to choose from"
