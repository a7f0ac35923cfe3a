"""What each command of `dynadapt` is given, does and answers.

Jobs are imported when their command runs: `dynadapt --help` starts no JAX.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from dynadapt.errors import ConfigError, UnknownName


class Answer:
    """What a command came to: JSON values, how to show them, and the exit code.

    Of several processes the first one answers; the others have no values.
    """

    def __init__(self, values: Any, show: Callable[[], None] | None = None, code: int = 0):
        self.values, self.show, self.code = values, show, code


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        help: what it does, in a line.
        example: a command line that parses.
        run: gets the options and the `--config.…` overrides.
        define: adds the command's options.
        arguments: names of what is given without `--`, in order; they become options too.
    """

    help: str
    example: str
    run: Callable[[flags.FlagValues, list[str]], Answer]
    define: Callable[[flags.FlagValues], None]
    arguments: tuple[str, ...] = ()


def _config_options(options: flags.FlagValues) -> None:
    text = "FILE.py:ARG, a module with get_config(arg); override fields with --config.a.b=value"
    flags.DEFINE_string("config", None, text, flag_values=options)


def _config(options: flags.FlagValues, overrides: list[str], arg: str | None = None) -> Any:
    from dynadapt import config_file

    return config_file.load(options.config, overrides, arg)


def _train_options(options: flags.FlagValues) -> None:
    _config_options(options)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)


def _plan_options(options: flags.FlagValues) -> None:
    _config_options(options)
    text = "machine to compile for that isn't here: a TPU topology such as v5e:4x4, h100 or h200"
    flags.DEFINE_string("topology", None, text, flag_values=options)
    text = "methods to compare at their default settings, or all; without --config"
    flags.DEFINE_list("methods", None, text, flag_values=options)
    text = "backbone of --methods; vit_b16 where none is given"
    flags.DEFINE_string("backbone", None, text, flag_values=options)
    text = "classes of the head of --methods; 10 where none are given"
    flags.DEFINE_integer("classes", None, text, flag_values=options)


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


def out_folder(options: flags.FlagValues) -> Path:
    """The folder given with `--out`, which is there or can be made in one that is."""
    out = need(options, "out")
    if out.exists() and not out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"--out={out} must be a folder, in a folder that exists")
    return out


def _train(options: flags.FlagValues, overrides: list[str]) -> Answer:
    import jax

    from dynadapt import report, train

    folder = need(options, "workdir")
    config = _config(options, overrides)
    try:
        if not config.compare:
            result = train.run(config, folder)
            if jax.process_index():
                return Answer(None)
            return Answer(result, lambda: report.show([result], folder, options.config))
        runs = [_config(options, overrides, f"method={m}") for m in config.compare]
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

    if options.methods is not None:
        return _compare(options, overrides)
    for name in ("backbone", "classes"):
        if options[name].value is not None:
            raise ConfigError(f"--{name} goes with --methods; a config has its own")
    result = plan.run(_config(options, overrides), options.topology)
    return Answer(result, lambda: plan.show(result), code=0 if result["fits"] is not False else 2)


def _compare(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import compare

    given = [f"--{name}" for name in ("config", "topology") if options[name].value]
    for other in given + overrides:
        raise ConfigError(f"--methods compares default settings; it takes no {other}")
    classes = 10 if options.classes is None else options.classes
    result = compare.run(options.backbone or "vit_b16", options.methods, classes)
    return Answer(result, lambda: compare.show(result))


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


def _convert_options(options: flags.FlagValues) -> None:
    text = "layout to write: safetensors (our own), timm, hf, meta, microsoft, google, …; peft: "
    text += "the LoRA or DoRA of a run alone, as a folder"
    flags.DEFINE_string("to", "safetensors", text, flag_values=options)
    text = "attention heads, where the file can't tell"
    flags.DEFINE_integer("heads", None, text, flag_values=options)
    text = "the weights that a folder of Hugging Face's peft adapts"
    flags.DEFINE_string("base", None, text, flag_values=options)
    text = "side of the images that the weights are made for, where the file can't tell"
    flags.DEFINE_integer("image_size", None, text, flag_values=options)


def _convert(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import convert

    need(options, "out")
    out = out_folder(options) if options.to == convert.PEFT else out_file(options)
    known = {k: options[k].value for k in ("heads", "image_size") if options[k].value}
    result = convert.run(need(options, "in"), out, options.to, options.base, **known)
    return Answer(result, lambda: convert.show(result))


def _weights_options(options: flags.FlagValues) -> None:
    text = "folder to bring the named weights to; nothing else is ever downloaded"
    flags.DEFINE_string("download", None, text, flag_values=options)
    text = "time forward passes of the smaller backbones here, too"
    flags.DEFINE_bool("measure", False, text, flag_values=options)
    flags.DEFINE_string("out", None, "Markdown file for the table", flag_values=options)


def _weights(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import models
    from dynadapt.bench import published
    from dynadapt.weights import catalogue

    name, out = options["name"].value, out_file(options)
    if name:
        found = catalogue.find(name)
        if options.measure or out:
            raise ConfigError(f"--measure and --out are for the whole table, without {name!r}")
        if not options.download:
            row = models.row(found)
            return Answer(row, lambda: models.show_one(row))
        result = models.download(found, need(options, "download"))
        return Answer(result, lambda: print(f"wrote {result['file']}  sha256 {result['sha256']}"))
    if options.download:
        raise ConfigError("say which weights to download: dynadapt weights NAME --download=DIR")
    table, measured = models.rows(), None
    if options.measure:
        measured = published.run(table, batch=4, rounds=5, limit=40)
        for row in table:
            row["images_per_second"] = measured["images_per_second"].get(published.label(row))
    if out:
        models.write_page(out, models.page(table, measured))
    return Answer(table, lambda: models.show(table))


def _bench_options(options: flags.FlagValues) -> None:
    text = "a Python with torch and timm to compare with; without one, ours alone"
    flags.DEFINE_string("reference", None, text, flag_values=options)
    text = "backbones of forward, or the one of step"
    flags.DEFINE_list("backbone", ["vit_b16", "swin_t"], text, flag_values=options)
    text = "methods of step; ratios are to the first"
    methods = ["adaptformer", "iconformer", "adapter_x", "vfm_adapter"]
    flags.DEFINE_list("methods", methods, text, flag_values=options)
    flags.DEFINE_integer("batch", 8, "images in a pass or a step", flag_values=options)
    flags.DEFINE_integer("rounds", 7, "readings of each", flag_values=options)
    text = "machine that isn't here, as of plan: dynamic compiles for it and times nothing"
    flags.DEFINE_string("topology", None, text, flag_values=options)


def _bench(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import bench
    from dynadapt.bench import dynamic, forward, step

    what, names = options["what"].value, options.backbone
    if what == "forward":
        result = forward.run(options.reference, names, options.batch, options.rounds)
    elif what == "dynamic":
        result = dynamic.run(options.reference, options.rounds, options.topology)
    elif what == "step":
        result = step.run(names[0], options.methods, options.batch, options.rounds)
    else:
        raise UnknownName("benchmark", str(what), ("dynamic", "forward", "step"))
    return Answer(result, lambda: bench.show(result))


COMMANDS = {
    "train": Command(
        "train an adapter and evaluate it; started again, it goes on where it was",
        "dynadapt train --config=configs/quickstart.py --workdir=runs/quickstart",
        _train,
        _train_options,
    ),
    "eval": Command(
        "evaluate a run's adapter in a fresh process",
        "dynadapt eval --workdir=runs/quickstart",
        _eval,
        _eval_options,
    ),
    "plan": Command(
        "show sites, trainable parameters, memory and FLOPs before anything runs",
        "dynadapt plan --config=configs/quickstart.py",
        _plan,
        _plan_options,
    ),
    "verify": Command(
        "compare all that a run wrote, and its backbone, with their hashes",
        "dynadapt verify --workdir=runs/quickstart",
        _verify,
        _workdir_options,
    ),
    "export": Command(
        "write the backbone of a run with method full as a weights file",
        "dynadapt export --workdir=runs/pretrain_mini --out=vit_mini.safetensors",
        _export,
        _export_options,
    ),
    "convert": Command(
        "write weights, or a run with its adapter merged, in another layout",
        "dynadapt convert mae_pretrain_vit_base.pth vit.safetensors --to=timm",
        _convert,
        _convert_options,
        ("in", "out"),
    ),
    "weights": Command(
        "list published weights, tell how to obtain and load them, or download one file",
        "dynadapt weights vit_b16_augreg_in21k --download=weights",
        _weights,
        _weights_options,
        ("name",),
    ),
    "bench": Command(
        "time forward passes, dynamic primitives or training steps, candidates in turn",
        "dynadapt bench forward --backbone=vit_b16,swin_t --batch=8",
        _bench,
        _bench_options,
        ("what",),
    ),
}
