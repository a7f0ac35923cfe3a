"""The command `dynadapt`: parse, call one function, print, exit code.

dynadapt train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import contextlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from dynadapt.errors import ConfigError, DynadaptError, UnknownName, suggest

EXAMPLES = {
    "train": "dynadapt train --config=configs/quickstart.py --workdir=runs/quickstart",
    "eval": "dynadapt eval --workdir=runs/quickstart",
    "plan": "dynadapt plan --config=configs/quickstart.py",
    "verify": "dynadapt verify --workdir=runs/quickstart",
    "export": "dynadapt export --workdir=runs/pretrain_mini --out=vit_mini.safetensors",
}
HELP = {
    "train": "train an adapter and evaluate it; started again, it goes on where it was",
    "eval": "evaluate a run's adapter in a fresh process",
    "plan": "show sites, trainable parameters, memory and FLOPs before anything runs",
    "verify": "compare all that a run wrote, and its backbone, with their hashes",
    "export": "write the backbone of a run with method full as a weights file",
}


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code: 0 done, 2 a user's error, 143 asked to stop."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    debug = "--debug" in argv
    try:
        return dispatch(argv)
    except DynadaptError as error:
        if debug:
            traceback.print_exc()
        print(f"dynadapt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dynadapt: interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """What `dynadapt --help` prints."""
    rows = [f"  {name:8}{text}\n          {EXAMPLES[name]}" for name, text in HELP.items()]
    return "usage: dynadapt COMMAND [options]   (dynadapt COMMAND --help for its options)\n\n" + (
        "\n".join(rows)
    )


def dispatch(argv: list[str]) -> int:
    """Parses the command's options and calls its function."""
    name = argv[0]
    if name not in COMMANDS:
        raise UnknownName("command", name, COMMANDS)
    options = flags.FlagValues()
    flags.DEFINE_bool("json", False, "print one JSON document", flag_values=options)
    flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=options)
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=options)
    command, define = COMMANDS[name]
    define(options)
    if {"--help", "-h", "-help"} & set(argv):
        print(f"dynadapt {name}: {HELP[name]}\n\n  {EXAMPLES[name]}\n")
        print("\n".join(f"  --{f}: {options[f].help}" for f in sorted(options) if len(f) > 1))
        return 0
    with translated(options):
        rest = options(argv, known_only=True)[1:]
    overrides = [a for a in rest if a.startswith("--config.")]
    for stranger in (a for a in rest if a not in overrides):
        raise ConfigError(
            f"unknown option {stranger!r} of {name}; {suggest(stranger, _flags(options))}"
        )
    set_up_jax(options)
    with to_stderr() if options.json else contextlib.nullcontext():
        answer = command(options, overrides)
    if answer.values is None:
        return answer.code
    if options.json:
        print(json.dumps(answer.values, indent=1))
    elif answer.show is not None:
        answer.show()
    return answer.code


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


class Answer:
    """What a command came to: JSON values, how to show them, and the exit code.

    Of several processes the first one answers; the others have no values.
    """

    def __init__(self, values: Any, show: Callable[[], None] | None = None, code: int = 0):
        self.values, self.show, self.code = values, show, code


@contextlib.contextmanager
def translated(options: flags.FlagValues) -> Any:
    """Turns absl's errors about options into one sentence."""
    try:
        yield
    except flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def set_up_jax(options: flags.FlagValues) -> None:
    """Chooses the platform before JAX starts: without a device node, it is the CPU."""
    devices = ("/dev/accel0", "/dev/vfio", "/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")
    if "JAX_PLATFORMS" not in os.environ and not any(map(os.path.exists, devices)):
        os.environ["JAX_PLATFORMS"] = "cpu"


def load_config(options: flags.FlagValues, overrides: list[str], arg: str | None = None) -> Any:
    """The config of `--config=FILE:ARG` with the overrides `--config.a.b=value`.

    Raises:
        ConfigError: for a file that can't be read, an unknown field or a value of another type.
    """
    from ml_collections.config_flags import config_flags

    from dynadapt import config as configs

    if not options.config:
        raise ConfigError("give a config: --config=configs/quickstart.py")
    path, _, own = options.config.partition(":")
    if not Path(path).is_file():
        beside = Path(path).parent.glob("*.py") if Path(path).parent.is_dir() else []
        raise ConfigError(f"no config file {path!r}; {suggest(path, map(str, beside))}")
    text = own if arg is None else ",".join(filter(None, (_without_method(own), arg)))
    config = read_config(path, text)
    if problems := configs.field_problems(config):
        raise ConfigError(*problems)
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
    from ml_collections import ConfigDict

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
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    return f"did you mean {same[0]!r}?" if same else suggest(field, known)


def _config_options(options: flags.FlagValues) -> None:
    text = "FILE.py:ARG, a module with get_config(arg); override fields with --config.a.b=value"
    flags.DEFINE_string("config", None, text, flag_values=options)


def _train_options(options: flags.FlagValues) -> None:
    _config_options(options)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)


def _plan_options(options: flags.FlagValues) -> None:
    _config_options(options)
    text = "machine to compile for that isn't here: a TPU topology such as v5e:4x4, h100 or h200"
    flags.DEFINE_string("topology", None, text, flag_values=options)


def _workdir_options(options: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)


def _eval_options(options: flags.FlagValues) -> None:
    _workdir_options(options)
    text = "CSV file for the predictions; by default none is written"
    flags.DEFINE_string("out", None, text, flag_values=options)


def _export_options(options: flags.FlagValues) -> None:
    _workdir_options(options)
    flags.DEFINE_string("out", None, "the file to write", flag_values=options)
    flags.DEFINE_string("dtype", "float16", "float16, bfloat16 or float32", flag_values=options)


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


def _train(options: flags.FlagValues, overrides: list[str]) -> Answer:
    import jax

    from dynadapt import report, train

    folder = need(options, "workdir")
    config = load_config(options, overrides)
    try:
        if not config.compare:
            result = train.run(config, folder)
            if jax.process_index():
                return Answer(None)
            return Answer(result, lambda: report.show([result], folder, options.config))
        runs = [load_config(options, overrides, f"method={m}") for m in config.compare]
        report.check_all(runs)
        results = []
        for one in runs:
            print(f"method {one.adapter.name}", file=sys.stderr)
            results.append(train.run(one, folder / one.adapter.name))
        if jax.process_index():
            return Answer(None)
        return Answer(results, lambda: report.show(results, folder, options.config))
    except train.Preempted:
        again = " ".join([report.command(), *sys.argv[1:]])
        print(f"dynadapt: stopped and saved; go on with: {again}", file=sys.stderr)
        return Answer({"stopped": True}, code=143)


def _eval(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import evaluate, report

    out = out_file(options)
    result = evaluate.run(need(options, "workdir") / "adapter", out)
    return Answer(result, lambda: report.show_metrics(result))


def _plan(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import plan

    result = plan.run(load_config(options, overrides), options.topology)
    return Answer(result, lambda: plan.show(result), code=0 if result["fits"] is not False else 2)


def _verify(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import verify

    rows = verify.run(need(options, "workdir"))
    bad = any(row["fault"] for row in rows)
    return Answer(rows, lambda: verify.show(rows), code=2 if bad else 0)


def _export(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import export

    need(options, "out")
    result = export.run(need(options, "workdir"), out_file(options), options.dtype)
    return Answer(result, lambda: print(f"wrote {result['file']}  sha256 {result['sha256']}"))


COMMANDS: dict[str, tuple[Callable[..., Answer], Callable[[flags.FlagValues], None]]] = {
    "train": (_train, _train_options),
    "eval": (_eval, _eval_options),
    "plan": (_plan, _plan_options),
    "verify": (_verify, _workdir_options),
    "export": (_export, _export_options),
}
