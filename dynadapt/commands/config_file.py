"""Configs, of a file or by name, with the overrides of a command line."""

import functools
import json
import operator
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_flags import config_flags

from dynadapt import choices
from dynadapt import config as configs
from dynadapt.errors import ConfigError, DynadaptError, suggest

# The configs that come with the package, which are found by name.
SHIPPED = Path(__file__).parents[1] / "configs"
# What other libraries call a field.
ALIASES = {
    **dict.fromkeys(("learning_rate", "learningrate", "blr"), "lr"),
    **dict.fromkeys(("num_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("num_steps", "max_steps", "total_steps"), "steps"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("bs", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("grad_clip", "clip_grad", "max_grad_norm"), "clip_norm"),
    **dict.fromkeys(("grad_accum", "gradient_accumulation_steps"), "accumulate"),
    **dict.fromkeys(("checkpoint", "pretrained", "init_checkpoint"), "weights"),
}


# What a value must be, by the type of the field, and the form of its text.
FORMS = {
    bool: ("true or false", "true|false|t|f|1|0"),
    int: ("a whole number of at most 18 digits", "[+-]?[0-9]{1,18}"),
    float: ("a number", r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf|nan"),
}


def load(
    given: str | None,
    overrides: list[str],
    arg: str | None = None,
    problems: Callable[[Any], list[str]] = configs.field_problems,
) -> Any:
    """The config of `given`, a `FILE:ARG` or `NAME:ARG`, with overrides as `--config.a.b=value`.

    A further `arg` is joined to the file's own; a method that it names replaces the file's.
    `problems` tells what fields the config lacks, and which it should not have.

    Raises:
        ConfigError: for a file that can't be read, an unknown field or a value of another type.
    """
    if not given:
        raise ConfigError("give a config: --config=quickstart")
    path, _, own = given.partition(":")
    path = locate(path)
    text = own if arg is None else ",".join(filter(None, (_without_method(own), arg)))
    config = read_config(path, text)
    if found := problems(config):
        raise ConfigError(*found)
    return overridden(config, overrides)


def overridden(config: ConfigDict, overrides: list[str]) -> Any:
    """The config changed, in place, by overrides such as `--config.a.b=value`.

    Raises:
        ConfigError: for an unknown field or a value of another type.
    """
    check_overrides(config, overrides)
    values = flags.FlagValues()
    argv = ["dynadapt", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"cannot set the config: {str(error).splitlines()[0]}") from error
    return values.config


def names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.py"))


def locate(given: str) -> str:
    """The path of a config file, or of the config of that name that comes with the package.

    Raises:
        ConfigError: if there is neither, with the nearest of both.
    """
    path = Path(given)
    if path.is_file():
        return given
    if given in names():
        return str(SHIPPED / f"{given}.py")
    if path.stem in names():  # a path in the repository, where there is only the package
        near = f"did you mean {path.stem!r}?"
    else:
        beside = path.parent.glob("*.py") if path.parent.is_dir() else []
        near = suggest(given, [*names(), *map(str, beside)])
    raise ConfigError(f"no config file {given!r}, and none of that name; {near}")


def rows(given: str | None) -> dict[str, list[str]]:
    """The rows of a table that a config file offers, each with the `FILE:ARG` of its draws.

    They are what `get_rows(arg)` returns: by title, the arguments of `get_config` for each draw of
    the row's data. A file without it is one row, without a title.

    Raises:
        ConfigError: for a file that can't be read, or rows of another form.
    """
    if not given:
        return {"": [given]}  # `load` says what is wrong
    path, _, arg = given.partition(":")
    path = locate(path)
    get_rows = called(path, lambda: runpy.run_path(path).get("get_rows"))
    if get_rows is None:
        return {"": [given]}
    found = called(path, lambda: get_rows(arg or None))
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(
            isinstance(title, str) and args and all(isinstance(a, str) for a in args)
            for title, args in found.items()
        )
    ):
        raise ConfigError(f"get_rows in {path} must return {{title: [arguments of get_config]}}")
    return {title: [f"{path}:{a}" for a in args] for title, args in found.items()}


def check_overrides(config: ConfigDict, overrides: list[str]) -> None:
    """Raises a ConfigError for an unknown field, and for a value that is of another type."""
    known = configs.fields(config)
    for override in overrides:
        field, given, text = override.removeprefix("--config.").partition("=")
        if field not in known:
            raise ConfigError(f"unknown config field {field!r}; {_suggest_field(field, known)}")
        value = functools.reduce(operator.getitem, field.split("."), config)
        if isinstance(value, ConfigDict):
            inner = next((k for k in known if k.startswith(f"{field}.")), f"{field}.…")
            raise ConfigError(f"{field!r} is no field but a section, with fields such as {inner!r}")
        kind, form = FORMS.get(type(value), ("", ""))
        if given and kind and not re.fullmatch(form, text, re.ASCII | re.IGNORECASE):
            raise ConfigError(f"cannot set the config: --config.{field}={text} must be {kind}")


def read_config(path: str, arg: str) -> Any:
    """What `get_config(arg)` of a file returns; a fault of the file is named with its line."""

    def made() -> Any:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise ConfigError(f"the config file {path} has no function get_config(arg)")
        return get_config(arg) if arg else get_config()

    config = called(path, made)
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config in {path} must return what config.default(…) made")
    return plain(config, path)


def called(path: str, function: Callable[[], Any]) -> Any:
    """What a function of a config file returns; a fault of the file is named with its line."""
    try:
        return function()
    except (DynadaptError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a file that ends the process is at fault, too
        raise ConfigError(choices.fault(path, error)) from error


def plain(config: ConfigDict, path: str) -> ConfigDict:
    """The config, changeable; raises a ConfigError for values that `config.json` couldn't hold."""
    try:
        strange = list(_strange(config))
    except Exception as error:  # it holds itself, or what is still to be given
        raise ConfigError(f"get_config in {path}: {choices.said(error)}") from error
    if strange:
        raise ConfigError(f"{strange[0]} in {path} is neither number, text nor list of these")
    return ConfigDict(config) if isinstance(config, FrozenConfigDict) else config


def _strange(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Names of fields whose values JSON has no form for."""
    for key, value in values.items():
        if hasattr(value, "items"):
            yield from _strange(value, f"{prefix}{key}.")
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            yield f"{prefix}{key}"


def _without_method(arg: str) -> str:
    return ",".join(a for a in arg.split(",") if a and not a.startswith("method="))


def _suggest_field(field: str, known: list[str]) -> str:
    """The nearest field: one with the same last name elsewhere, or one that is written alike."""
    last = field.rsplit(".", 1)[-1]
    last = ALIASES.get(last, last)
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    return f"did you mean {same[0]!r}?" if same else suggest(field, known)
