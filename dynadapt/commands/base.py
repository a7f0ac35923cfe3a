"""What a command is: its options, what it does, what it answers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from dynadapt.errors import ConfigError, suggest

# Of images, readings, classes, cells or heads that one may ask for.
MOST = 1_000_000


class Answer:
    """What a command came to: JSON values, how to show them, and the exit code.

    With `lines` the values are many, and each is a JSON document on a line of its own.

    Of several processes the first one answers; the others have no values.
    """

    def __init__(
        self,
        values: Any,
        show: Callable[[], None] | None = None,
        code: int = 0,
        lines: bool = False,
    ):
        self.values, self.show, self.code, self.lines = values, show, code, lines


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        help: what it does, in a line.
        example: a command line that parses.
        run: gets the options and the `--config.…` overrides.
        define: adds the command's options.
        arguments: names of what is given without `--`, in order; they become options too.
        several: the option, a list, that is given all further words without `--`.
    """

    help: str
    example: str
    run: Callable[[flags.FlagValues, list[str]], Answer]
    define: Callable[[flags.FlagValues], None]
    arguments: tuple[str, ...] = ()
    several: str = ""


def config_options(options: flags.FlagValues) -> None:
    """The option `--config`."""
    text = "NAME:ARG of a config that comes with the package, or FILE.py:ARG, a module with "
    text += "get_config(arg); override fields with --config.a.b=value"
    flags.DEFINE_string("config", None, text, flag_values=options)


def config_of(options: flags.FlagValues, overrides: list[str], arg: str | None = None) -> Any:
    """The config given, with its overrides."""
    from dynadapt.commands import config_file

    return config_file.load(options.config, overrides, arg)


def workdir_options(options: flags.FlagValues) -> None:
    """The option `--workdir`."""
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)


def adapter_options(options: flags.FlagValues) -> None:
    """What a command that reads an adapter must be told where its files have moved, or are code."""
    text = "the backbone's weights, where they no longer lie where they lay in training"
    flags.DEFINE_string("weights", "", text, flag_values=options)
    method_option(options)


def method_option(options: flags.FlagValues) -> None:
    """The option `--method`."""
    text = "the file of the adapter's method, where it is one of your own; its code runs"
    flags.DEFINE_string("method", None, text, flag_values=options)


def give_method(options: flags.FlagValues) -> None:
    """Lets an adapter use the method in the file that the user names."""
    if options.method:
        from dynadapt import adapters

        adapters.give(options.method)


def adapter_of(options: flags.FlagValues) -> Path:
    """The adapter of the run in `--workdir`."""
    give_method(options)
    return need(options, "workdir") / "adapter"


def only(options: flags.FlagValues, what: str, *used: str) -> None:
    """Raises a ConfigError for an option that was given and that this part of a command ignores."""
    general = ("json", "debug", "what", "suite")
    for name in options:
        if options[name].present and name not in (*used, *general):
            raise ConfigError(f"{what} takes no --{name}; {suggest(name, used)}")


def counts(options: flags.FlagValues, *names: str) -> None:
    """Raises a ConfigError for an option that counts something and is no count of it."""
    for name in names:
        value = options[name].value
        if value is not None and not 1 <= value <= MOST:
            raise ConfigError(f"--{name} must be from 1 to {MOST}, not {value}")


def need(options: flags.FlagValues, name: str) -> Path:
    """The path given with an option that must be there."""
    if not options[name].value:
        raise ConfigError(f"give --{name}=…")
    return Path(options[name].value)


def out_file(options: flags.FlagValues) -> Path | None:
    """The file given with `--out`, whose folder must be there; None without the option."""
    if not options.out:
        return None
    out = Path(options.out)
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"--out={out} must be a file in a folder that exists")
    return out


def out_folder(options: flags.FlagValues) -> Path:
    """The folder given with `--out`, which is there or can be made in one that is."""
    out = need(options, "out")
    if out.exists() and not out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"--out={out} must be a folder, in a folder that exists")
    return out
