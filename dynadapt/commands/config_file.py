"""Config files with the overrides of a command line."""

import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from dynadapt import config as configs
from dynadapt.errors import ConfigError, DynadaptError, suggest

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


def load(
    given: str | None,
    overrides: list[str],
    arg: str | None = None,
    problems: Callable[[Any], list[str]] = configs.field_problems,
) -> Any:
    """The config of `given`, a `FILE:ARG`, with overrides such as `--config.a.b=value`.

    A further `arg` is joined to the file's own; a method that it names replaces the file's.
    `problems` tells what fields the config lacks, and which it should not have.

    Raises:
        ConfigError: for a file that can't be read, an unknown field or a value of another type.
    """
    if not given:
        raise ConfigError("give a config: --config=configs/quickstart.py")
    path, _, own = given.partition(":")
    if not Path(path).is_file():
        beside = Path(path).parent.glob("*.py") if Path(path).parent.is_dir() else []
        raise ConfigError(f"no config file {path!r}; {suggest(path, map(str, beside))}")
    text = own if arg is None else ",".join(filter(None, (_without_method(own), arg)))
    config = read_config(path, text)
    if found := problems(config):
        raise ConfigError(*found)
    known = configs.fields(config)
    for override in overrides:
        field = override.removeprefix("--config.").split("=", 1)[0]
        if field not in known:
            raise ConfigError(f"unknown config field {field!r}; {_suggest_field(field, known)}")
    values = flags.FlagValues()
    argv = ["dynadapt", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"cannot set the config: {str(error).splitlines()[0]}") from error
    return values.config


def read_config(path: str, arg: str) -> Any:
    """What `get_config(arg)` of a file returns; a fault of the file is named with its line."""
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise ConfigError(f"the config file {path} has no function get_config(arg)")
        config = get_config(arg) if arg else get_config()
    except DynadaptError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == path), 0)
        text = str(error).splitlines()[0] if str(error) else ""
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {text}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config in {path} must return what config.default(…) made")
    return config


def _without_method(arg: str) -> str:
    return ",".join(a for a in arg.split(",") if a and not a.startswith("method="))


def _suggest_field(field: str, known: list[str]) -> str:
    """The nearest field: one with the same last name elsewhere, or one that is written alike."""
    last = field.rsplit(".", 1)[-1]
    last = ALIASES.get(last, last)
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    return f"did you mean {same[0]!r}?" if same else suggest(field, known)
