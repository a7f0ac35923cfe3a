"""Tables of many runs, their data, and speed."""

import shutil
import sys

from absl import flags

from dynadapt.commands.base import Answer, Command, counts, need, only, out_file
from dynadapt.errors import ConfigError, UnknownName


def _vtab_options(options: flags.FlagValues) -> None:
    text = "NAME:ARG or FILE.py:ARG, protocols and grids; override fields with --config.a.b=value"
    flags.DEFINE_string("config", "vtab", text, flag_values=options)
    flags.DEFINE_string("workdir", None, "folder of the results", flag_values=options)
    text = "methods to run, variants such as iconformer:kernels=static, or all"
    flags.DEFINE_list("methods", None, text, flag_values=options)
    text = "tasks, groups such as natural, all, or here: those whose data is here"
    flags.DEFINE_list("tasks", ["all"], text, flag_values=options)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the final runs", flag_values=options)
    flags.DEFINE_string("suite", "vtab", "vtab or offline", flag_values=options)
    flags.DEFINE_string("form", "", "of vtab's data: tfds or folder", flag_values=options)
    flags.DEFINE_string("path", "", "where the data lies", flag_values=options)
    flags.DEFINE_string("backbone", "vit_b16", "backbone", flag_values=options)
    text = "its weights: a file, the name of shipped ones, or random"
    flags.DEFINE_string("weights", None, text, flag_values=options)
    text = "cells of one task that are trained together in one program"
    flags.DEFINE_integer("population", 1, text, flag_values=options)
    text = "list cells, FLOPs and a time estimate, and run nothing"
    flags.DEFINE_bool("dry_run", False, text, flag_values=options)
    text = "report what is there, with tasks missing"
    flags.DEFINE_bool("partial", False, text, flag_values=options)
    text = "report differences to this method, on the same tasks and seeds, with intervals"
    flags.DEFINE_string("against", "", text, flag_values=options)
    text = "file of the report: .md, .csv, .tex, or .png, .svg, .pdf for plots"
    flags.DEFINE_string("out", None, text, flag_values=options)


REPORTED = ("partial", "against", "out")


def _vtab(options: flags.FlagValues, overrides: list[str]) -> Answer:
    what = options["what"].value
    if what == "report":
        only(options, "vtab report", "workdir", "partial", "against", "out")
        if overrides:
            raise ConfigError(f"vtab report takes no config: {overrides[0]} would change nothing")
        return _report(options)
    if what != "run":
        raise UnknownName("part of vtab", str(what), ("run", "report"))
    counts(options, "population")
    only(options, "vtab run", *(name for name in options if name not in REPORTED))
    from dynadapt.commands import config_file
    from dynadapt.sweep import estimate, protocol, suites, sweep

    config = config_file.load(options.config, overrides, problems=protocol.field_problems)
    if options.weights is None and not options.dry_run:
        raise ConfigError("give --weights=FILE, or --weights=random for a backbone without any")
    suite, form = options.suite, suites.form_of(options.suite, options.form)
    given = sweep.Sweep(
        config=config,
        suite=suite,
        form=form,
        path=options.path,
        tasks=_tasks(suite, form, options.path, options.tasks),
        methods=protocol.chosen_methods(config, options.methods or [], options.backbone),
        seeds=protocol.chosen_seeds(options.seeds),
        backbone=options.backbone,
        weights="" if options.weights in (None, "random") else options.weights,
        population=options.population,
    )
    if options.dry_run:
        result = estimate.run(given)
        return Answer(result, lambda: estimate.show(result))
    folder = need(options, "workdir")
    result = sweep.run(given, folder)
    return Answer(result, lambda: sweep.show(result))


def _tasks(suite: str, form: str, path: str, given: list[str]) -> list[str]:
    from dynadapt.sweep import protocol, suites

    if given != ["here"]:
        return protocol.chosen_tasks(suite, given)
    found, known = suites.here(suite, form, path), suites.find(suite).tasks
    obtain = f"`dynadapt data status {suite}` says how to obtain it"
    if not found:
        raise ConfigError(f"no data of {suite} is here; {obtain}")
    if missing := [name for name in known if name not in found]:
        print(f"dynadapt: no data of {', '.join(missing)}; {obtain}", file=sys.stderr)
    return found


def _report(options: flags.FlagValues) -> Answer:
    from dynadapt.sweep import report

    result = report.make(need(options, "workdir"), options.partial, against=options.against)
    if out := out_file(options):
        report.write(result, out)
    return Answer(result, lambda: report.show(result))


def _data_options(options: flags.FlagValues) -> None:
    flags.DEFINE_string("form", "", "of vtab: tfds or folder", flag_values=options)
    text = "where the data lies, or is to be built"
    flags.DEFINE_string("path", "", text, flag_values=options)
    flags.DEFINE_list("tasks", [], "tasks; all where none are given", flag_values=options)


def _data(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.sweep import suites

    what, suite = options["what"].value, options["suite"].value
    if suite is None:
        raise ConfigError("name a suite: dynadapt data status vtab")
    if what == "status":
        only(options, "data status", "form", "path", "tasks")
        rows = suites.status(suite, options.form, options.path, options.tasks)
    elif what == "prepare":
        only(options, "data prepare", "path", "tasks")
        rows = suites.prepare(suite, options.tasks, options.path)
    else:
        raise UnknownName("part of data", str(what), ("status", "prepare"))
    return Answer(rows, lambda: suites.show(rows))


def _bench_options(options: flags.FlagValues) -> None:
    text = "a Python with torch and timm to compare with; without one, ours alone"
    flags.DEFINE_string("reference", None, text, flag_values=options)
    text = "backbones of forward, or the one of the others"
    flags.DEFINE_list("backbone", ["vit_b16", "swin_t"], text, flag_values=options)
    text = "methods of step, bank, population, detection and multitask, or all; step's ratios are "
    text += "to the first"
    methods = ["adaptformer", "iconformer", "adapter_x", "vfm_adapter"]
    flags.DEFINE_list("methods", methods, text, flag_values=options)
    text = (
        "images in a pass or a step; with --topology of step, over all chips, of detection and "
        "multitask on one"
    )
    flags.DEFINE_integer("batch", 8, text, flag_values=options)
    flags.DEFINE_integer("rounds", 7, "readings of each", flag_values=options)
    text = "machine that isn't here, as of plan: dynamic, population, step, detection and "
    text += "multitask then compile for it and time nothing"
    flags.DEFINE_string("topology", None, text, flag_values=options)
    text = "of collect: folder of answers of others with --json"
    flags.DEFINE_string("folder", None, text, flag_values=options)
    text = "of collect: folder of the page and of the file that holds them all"
    flags.DEFINE_string("out", None, text, flag_values=options)


# What is timed, and the options that it looks at.
_MODELS = ("backbone", "methods", "batch", "rounds")
BENCHMARKS = {
    "bank": _MODELS,
    "collect": ("folder", "out"),
    "detection": ("backbone", "methods", "batch", "topology"),
    "dynamic": ("reference", "rounds", "topology"),
    "forward": ("reference", "backbone", "batch", "rounds"),
    "multitask": ("backbone", "methods", "batch", "topology"),
    "points": ("rounds",),
    "population": (*_MODELS, "topology"),
    "step": (*_MODELS, "topology", "reference"),
}


def _bench(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import backbones, bench
    from dynadapt.bench import (
        against,
        bank,
        collected,
        detection,
        dynamic,
        forward,
        multitask,
        points,
        population,
        step,
    )

    what, names = options["what"].value, options.backbone
    if what not in BENCHMARKS:
        raise UnknownName("benchmark", str(what), BENCHMARKS)
    only(options, f"bench {what}", *BENCHMARKS[what])
    counts(options, "batch", "rounds")
    for option in ("backbone", "methods"):
        if not options[option].value:
            raise ConfigError(f"give --{option}=…")
    if options.reference and not shutil.which(options.reference):
        raise ConfigError(f"cannot run {options.reference!r}: there is no such program")
    for name in names:
        if name not in backbones.names():
            raise UnknownName("backbone", name, backbones.names())
    if what != "forward" and options["backbone"].present and len(names) > 1:
        raise ConfigError(f"bench {what} is of one backbone, not of {', '.join(names)}")
    given = names[0], options.methods, options.batch
    if what == "collect":
        result = collected.run(need(options, "folder"), need(options, "out"))
    elif what == "forward":
        result = forward.run(options.reference, names, options.batch, options.rounds)
    elif what == "dynamic":
        result = dynamic.run(options.reference, options.rounds, options.topology)
    elif what == "points":
        result = points.run(options.rounds)
    elif what == "bank":
        result = bank.run(*given, options.rounds)
    elif what in ("detection", "multitask"):
        counted = {"detection": detection, "multitask": multitask}[what]
        result = counted.run(*given, options.topology)
    elif what == "step" and options.reference:
        if options.topology:
            raise ConfigError("bench step takes --reference or --topology, not both")
        result = against.run(options.reference, *given, options.rounds)
    else:
        job, topology = {"population": population, "step": step}[what], options.topology
        result = job.ahead(*given, topology) if topology else job.run(*given, options.rounds)
    return Answer(result, lambda: bench.show(result))


COMMANDS = {
    "vtab": Command(
        "run VTAB-1K, every cell once, or report it as a table",
        "dynadapt vtab run --methods=lora --suite=offline --backbone=vit_mini --weights=vit_mini "
        "--workdir=runs/offline",
        _vtab,
        _vtab_options,
        ("what",),
    ),
    "data": Command(
        "tell what of a benchmark's data is here, or build it",
        "dynadapt data status vtab --form=tfds",
        _data,
        _data_options,
        ("what", "suite"),
    ),
    "bench": Command(
        "time forward passes, dynamic primitives, points, training steps, banks or populations; "
        "count what detection or several tasks cost",
        "dynadapt bench forward --backbone=vit_b16,swin_t --batch=8",
        _bench,
        _bench_options,
        ("what",),
    ),
}
