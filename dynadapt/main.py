"""The command `dynadapt`: parse, call one function, print, exit code.

dynadapt train --config=quickstart --workdir=runs/quickstart
"""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from absl import flags

from dynadapt import __version__, ending
from dynadapt.commands import COMMANDS
from dynadapt.commands.base import Answer
from dynadapt.errors import ConfigError, DynadaptError, MachineError, UnknownName, suggest
from dynadapt.runs.stop import Preempted

# Keep what is freed, in large pages. Only glibc reads it, and only when a process starts.
ALLOCATION = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "mmap_max=0", "trim_threshold=1099511627776")
)

# What a value of an option must be, by absl's names of types.
VALUES = {"bool": "true or false", "int": "a whole number", "float": "a number"}


def run() -> None:
    """Entry point of the console script."""
    ending.hold()
    choose_platform()
    keep_memory()
    ending.listen()
    open_streams()
    code = main(sys.argv[1:])
    ending.leave(code)
    sys.exit(code)


def choose_platform() -> None:
    """Chooses the platform before JAX starts: without a device node, it is the CPU."""
    devices = ("/dev/accel0", "/dev/vfio", "/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")
    if "JAX_PLATFORMS" not in os.environ and not any(map(os.path.exists, devices)):
        os.environ["JAX_PLATFORMS"] = "cpu"
    if os.environ.get("DYNADAPT_DISTRIBUTED"):  # what C++ says of other processes, we say
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def keep_memory() -> None:
    """On a CPU, starts this process again under `ALLOCATION`, unless the library is tuned already.

    A compiled program takes all its temporaries at once and frees them at its end. Given back to
    the system, they come in page by page at the next step, which is a third of its time.
    """
    tuned = sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ
    if os.environ.get("JAX_PLATFORMS") == "cpu" and not tuned:
        os.environ["GLIBC_TUNABLES"] = ALLOCATION
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_streams() -> None:
    """Opens what the caller closed of the standard streams, lest a file takes their numbers."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w")
    if sys.stdout is not None:  # what it can't encode is escaped
        sys.stdout.reconfigure(errors="backslashreplace")


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code.

    It is 0 for done, 2 for a user's error, 130 and 143 for being stopped, 141 for an output that
    nobody reads; 3 is for a process whose job has lost another one.
    """
    debug = "--debug" in argv
    logging.basicConfig(format="dynadapt: %(message)s")
    try:
        check_streams(argv)
        return dispatch(argv)
    except DynadaptError as error:
        return told(str(error), debug)
    except KeyboardInterrupt:
        print("dynadapt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read the output has gone, as `| head` does
        discard_output()
        return 141
    except OSError as error:  # of a disk, a folder or a file that is the user's
        where = "" if error.filename is None else f": {error.filename}"
        return told(f"{error.strerror or error}{where}", debug)
    except Exception:
        ending.failed()
        raise


def told(text: str, debug: bool) -> int:
    """Tells an error in a sentence, with its traceback where asked for; returns its exit code."""
    with contextlib.suppress(OSError):  # standard error may be full, too
        if debug:
            traceback.print_exc()
        print(f"dynadapt: {text}", file=sys.stderr)
    return 2


def check_streams(argv: list[str]) -> None:
    """Raises for arguments that are no text, and for a standard output that is closed."""
    for argument in argv:
        if "\0" in argument or not argument.isascii() and _broken(argument):
            raise ConfigError(f"the argument {ascii(argument)} is no text in UTF-8")
    if sys.stdout is None:
        raise MachineError("cannot write to the standard output: it is closed")


def _broken(text: str) -> bool:
    """Whether bytes that are no UTF-8 are in an argument."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def usage() -> str:
    """What `dynadapt --help` prints."""
    rows = [f"  {name:8}{c.help}\n          {c.example}" for name, c in COMMANDS.items()]
    return "usage: dynadapt COMMAND [options]   (dynadapt COMMAND --help for its options)\n\n" + (
        "\n".join(rows)
    )


def dispatch(argv: list[str]) -> int:
    """Parses the command's options and calls its function."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        with writing():
            print(usage())
        return 0
    if argv[0] == "--version":
        with writing():
            print(f"dynadapt {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise UnknownName("command", name, COMMANDS)
    options = flags.FlagValues()
    flags.DEFINE_bool("json", False, "print one JSON document", flag_values=options)
    flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=options)
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=options)
    command = COMMANDS[name]
    command.define(options)
    for argument in command.arguments:
        flags.DEFINE_string(
            argument, None, f"may also be given without --{argument}=", flag_values=options
        )
    if {"--help", "-h", "-help"} & set(argv):
        with writing():
            print(f"dynadapt {name}: {command.help}\n\n  {command.example}\n")
            print("\n".join(f"  --{f}: {options[f].help}" for f in sorted(options) if len(f) > 1))
        return 0
    for argument in argv:  # what absl takes beside the options of a command
        if argument.lstrip("-").split("=")[0] in ("flagfile", "undefok") and argument[:1] == "-":
            raise ConfigError(f"unknown option {argument!r} of {name}")
    with translated(options):
        rest = options(argv, known_only=True)[1:]
    for option in options:
        if options[option].present and options[option].value in ("", []):
            raise ConfigError(f"--{option}= is empty; give it a value, or leave it out")
    overrides = [a for a in rest if a.startswith("--config.")]
    plain = [a for a in rest if not a.startswith("-")]
    for argument, value in zip(command.arguments, plain, strict=False):
        options[argument].value = value
    words = plain[len(command.arguments) :]
    if command.several and words:
        options[command.several].value = words
        words = []
    strangers = [a for a in rest if a.startswith("-") and a not in overrides]
    for stranger in strangers + words:
        raise ConfigError(
            f"unknown option {stranger!r} of {name}; {suggest(stranger, _flags(options))}"
        )
    if overrides and "config" not in options:
        raise ConfigError(f"{name} takes no config: {overrides[0]} would change nothing")
    with to_stderr() if options.json else contextlib.nullcontext():
        try:
            answer = command.run(options, overrides)
        except Preempted as stopped:
            print(f"dynadapt: stopped and saved; go on with: {ending.again()}", file=sys.stderr)
            answer = Answer({"stopped": True}, code=stopped.code)
    if answer.values is None:
        return answer.code
    with writing():
        if options.json and answer.lines:
            for value in answer.values:
                print(json.dumps(value))
        elif options.json:
            print(json.dumps(answer.values, indent=1))
        elif answer.show is not None:
            answer.show()
    return answer.code


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turns what keeps standard output from being written into one sentence."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise MachineError(f"cannot write to the standard output: {error.strerror}") from error


def discard_output() -> None:
    """Sends what is left of standard output nowhere, so that it can't fail again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """Sends standard output to standard error, that of compiled libraries too."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _flags(options: flags.FlagValues) -> list[str]:
    return [f"--{name}" for name in options if len(name) > 1]


@contextlib.contextmanager
def translated(options: flags.FlagValues) -> Any:
    """Turns absl's errors about options into one sentence."""
    try:
        yield
    except flags.IllegalFlagValueError as error:
        given = str(error).removeprefix("flag ").split(": ")[0]
        kind = options[given.removeprefix("--").split("=")[0]].flag_type()
        raise ConfigError(f"{given} must be {VALUES[kind]}") from error
    except flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
