"""Tables of training runs: sweeps of any config, reports of any runs."""

import itertools
from typing import Any

from absl import flags

from dynadapt import choices
from dynadapt.commands.base import (
    Answer,
    Command,
    config_options,
    counts,
    need,
    only,
    out_folder,
    workdir_options,
)
from dynadapt.errors import ConfigError, UnknownName


def _sweep_options(options: flags.FlagValues) -> None:
    config_options(options)
    workdir_options(options)
    text = "methods to train, variants such as iconformer:kernels=static, or all; the config's own "
    text += "where none are given"
    flags.DEFINE_list("methods", None, text, flag_values=options)
    text = "values to choose among, such as optim.lr=1e-3,1e-2; give it again for another field"
    flags.DEFINE_multi_string("grid", [], text, flag_values=options)
    flags.DEFINE_list("seeds", None, "seeds of the final runs; 0,1,2", flag_values=options)
    text = "parts that the training split is cut into, each of which judges once; seed 0 by default"
    flags.DEFINE_integer("folds", None, text, flag_values=options)
    text = "how many examples of each class to train on, such as 1,2,4,8,16"
    flags.DEFINE_list("shots", None, text, flag_values=options)
    text = "list runs, FLOPs and a time estimate, and run nothing"
    flags.DEFINE_bool("dry_run", False, text, flag_values=options)


def _sweep(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.sweep import cells, protocol

    what = options["what"].value
    if what != "run":
        raise UnknownName("part of sweep", str(what), ("run",))
    counts(options, "folds")
    points = _points(options.grid)
    given = cells.RunSweep(
        rows=_rows(options.config, overrides, options.methods, points),
        grid=list(points[0]),
        seeds=protocol.chosen_seeds(options.seeds or (["0"] if options.folds else ["0", "1", "2"])),
        folds=options.folds or 0,
        shots=_shots(options.shots or []),
    )
    if options.dry_run:
        result = cells.plan(given)
        return Answer(result, lambda: cells.show_plan(result))
    result = cells.run(given, need(options, "workdir"))
    return Answer(result, lambda: cells.show(result))


def _points(grid: list[str]) -> list[dict[str, str]]:
    """Every combination of the values of a grid, as text."""
    found: dict[str, list[str]] = {}
    for text in grid:
        field, _, values = text.removeprefix("--config.").removeprefix("config.").partition("=")
        found[field] = [value for value in values.split(",") if value]
        if not field or not found[field]:
            raise ConfigError(f"--grid={text} must be such as --grid=optim.lr=1e-3,1e-2")
    return [dict(zip(found, values, strict=True)) for values in itertools.product(*found.values())]


def _shots(given: list[str]) -> list[int]:
    if wrong := [text for text in given if not text.isdecimal() or not 1 <= int(text) <= 1_000_000]:
        raise ConfigError(f"--shots must be whole numbers such as 1,2,4, not {wrong[0]!r}")
    return list(dict.fromkeys(map(int, given)))


def _rows(
    spec: str | None, overrides: list[str], methods: list[str] | None, points: list[dict[str, str]]
) -> dict[str, list[dict[str, list[Any]]]]:
    """The configs of each row of a config file: of each draw, each method and each point."""
    from dynadapt.commands import config_file
    from dynadapt.commands.runs import runs_of
    from dynadapt.plans import compare

    if methods not in (None, ["all"]):  # an unknown one is answered with the nearest
        compare.chosen([method.partition(":")[0] for method in methods])
    rows: dict[str, list[dict[str, list[Any]]]] = {}
    for title, specs in config_file.rows(spec).items():
        rows[title] = []
        for own in specs:
            if methods is None:
                named = [config_file.load(own, overrides).adapter.name]
            elif methods == ["all"]:
                named = list(runs_of(methods, own, overrides))
            else:
                named = list(dict.fromkeys(methods))
            made = {_called(m): _configs(own, overrides, m, methods, points) for m in named}
            rows[title].append(made)
    return rows


def _called(variant: str) -> str:
    """What the table calls a variant: a method's file goes by its name."""
    name, colon, settings = variant.partition(":")
    return f"{choices.title(name)}{colon}{settings}"


def _configs(
    spec: str,
    overrides: list[str],
    variant: str,
    methods: list[str] | None,
    points: list[dict[str, str]],
) -> list[Any]:
    """The config of each point of the grid for a method, or a variant of one."""
    from dynadapt.commands import config_file

    name, *settings = variant.split(":")
    own = [f"--config.adapter.{setting}" for setting in settings]
    found = []
    for point in points:
        values = [f"--config.{field}={value}" for field, value in point.items()]
        arg = None if methods is None else f"method={name}"
        try:
            found.append(config_file.load(spec, [*overrides, *own, *values], arg))
        except ConfigError as error:
            if len(methods or ()) < 2 or len(error.problems) > 1:
                raise
            raise ConfigError(f"{variant}: {error}") from error
    return found


def _report_options(options: flags.FlagValues) -> None:
    text = "folders of runs, of train --methods or of sweeps"
    flags.DEFINE_list("runs", None, text, flag_values=options)
    text = "method that the others are compared with, on the same folds and seeds, with intervals"
    flags.DEFINE_string("baseline", "", text, flag_values=options)
    text = "folder for report.csv, runs.csv, report.tex and report.png"
    flags.DEFINE_string("out", None, text, flag_values=options)


def _report(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from pathlib import Path

    from dynadapt.sweep import tables

    only(options, "report", "runs", "baseline", "out")
    if not options.runs:
        raise ConfigError("name folders of runs: dynadapt report runs/one runs/two")
    out = out_folder(options) if options.out else None
    result = tables.make([Path(folder) for folder in options.runs], options.baseline)
    if out:
        tables.write(result, out)
    return Answer(result, lambda: tables.show(result))


COMMANDS = {
    "sweep": Command(
        "train methods over grids, seeds, folds or shots on any config, every run once",
        "dynadapt sweep run --config=quickstart --methods=lora,ssf "
        "--grid=optim.lr=1e-2,1e-3 --folds=5 --workdir=runs/folds",
        _sweep,
        _sweep_options,
        ("what",),
    ),
    "report": Command(
        "table any runs: means over seeds and folds, differences with intervals",
        "dynadapt report runs/folds --baseline=lora --out=runs/folds/report",
        _report,
        _report_options,
        several="runs",
    ),
}
