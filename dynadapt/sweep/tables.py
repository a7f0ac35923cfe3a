"""A table of any runs: single ones, those of `train --methods`, sweeps; one part for each test.

A test is a task on test data after training on the same data; what differs in it stands in a part
of its own and is never averaged. Folds, seeds, and draws of one rule (`shots`, a data set's setting
`fold`) are repetitions. A mean is over all runs of a method in a part; ± is their sample standard
deviation. Two settings of a method are two methods, called by what differs; what a sweep chose from
its grid is none of them.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynadapt import choices, files
from dynadapt import config as configs
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.figures.canvas import write as write_figure
from dynadapt.runs.journal import show_table
from dynadapt.sweep import cells, paired, plots, render, results
from dynadapt.sweep.report import spread

DEPTH = 3  # folders in each other in which runs are looked for
# What a run is repeated with, and what the place of data or speed alone depends on.
REPEATED = ("seed", "input.train_split", "input.eval_split", "data.fold", "data.path")
SHOTS = re.compile(r"shots\((\d+), \*\)")
FIGURES = ("trained", "trained_with_head", "backbone_parameters")


def make(folders: Sequence[Path], baseline: str = "") -> dict[str, Any]:
    """The report of runs, as JSON values.

    Args:
        folders: of runs, or of folders that hold some.
        baseline: a method that the others are compared with.

    Returns:
        `tests`, each with `title`, `metric`, `better`, `beside`, `shots` (0 for all examples),
        `rows` (the best mean first: `method`, `runs`, `scores`, `score`, `beside`, `trained`,
        `trained_with_head`, `backbone_parameters`; a figure over runs is `{"mean", "std"}`) and
        `paired`, as of `paired.against`; `runs`, a row for each run; `baseline`; `notes`, a
        sentence each.

    Raises:
        ConfigError: for a folder without finished runs, or a run that is there twice.
        UnknownName: for a baseline that no run is of.
    """
    notes: list[str] = []
    runs = [run for folder in folders for run in _found(folder, notes)]
    if not runs:
        raise ConfigError(
            f"there is no finished run in {', '.join(map(str, folders))}"
            + (f": {notes[0]}" if notes else "")
        )
    tests = sorted(_by_test(runs), key=lambda own: _shots(own[0]))
    for own in tests:
        _name_methods(own)
    names = dict.fromkeys(run["label"] for run in runs)
    if baseline and baseline not in names:
        raise UnknownName("baseline", baseline, names)
    parts = [_part(own, baseline, notes) for own in tests]
    if len(parts) > 1:
        notes.append(
            f"the runs are of {len(parts)} tests, whose data, tasks or training data differ: each "
            "has a part of its own"
        )
    shown = ("label", "draw", "seed", "metric", "score", "hyper", "failed", "folder")
    table = [
        {"test": part["title"], **{k: run[k] for k in shown}}
        for part, own in zip(parts, tests, strict=True)
        for run in own
    ]
    return {"baseline": baseline, "tests": parts, "runs": table, "notes": notes}


def _by_test(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs of each test; a run that failed tells of no data, and goes with the first."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in sorted(runs, key=lambda run: not run["data"]):
        some = found.setdefault(json.dumps(run["test"]), {})
        some.setdefault(run["data"] or next(iter(some), ""), []).append(run)
    for some in found.values():
        for version, own in some.items():
            for run in own:
                run["version"] = f" ({version[:8]})" if len(some) > 1 else ""
    return [own for some in found.values() for own in some.values()]


def _found(folder: Path, notes: list[str], depth: int = 0) -> Iterator[dict[str, Any]]:
    """The runs in a folder, those of a sweep without the ones that chose."""
    if not depth and not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    if (folder / "sweep.json").is_file():
        yield from _of_sweep(folder, notes)
    elif (folder / "result.json").is_file():
        yield _of_run(folder)
    elif (folder / "config.json").is_file():
        notes.append(f"{folder} is not finished, and left out")
    elif depth < DEPTH:
        for path in sorted(p for p in folder.iterdir() if p.is_dir()):
            yield from _found(path, notes, depth + 1)


def _of_sweep(folder: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    suite = files.read_json(folder / "sweep.json").get("suite")
    if suite != cells.KIND:
        raise ConfigError(
            f"{folder} is a sweep of the suite {suite}; `dynadapt vtab report --workdir={folder}` "
            "tables it"
        )
    lines = [line for line in results.lines(folder, "sweep run") if line["stage"] == "final"]
    if not lines:
        notes.append(f"no final run of {folder} is finished")
    for line in lines:
        place = folder / line["folder"]
        run = _entry(place, line["hyper"], line["method"], line["row"])
        run |= {"draw": line["draw"], "failed": line["failed"]}
        yield run if line["failed"] else {**run, **_figures(place, run["several"])}


def _of_run(folder: Path) -> dict[str, Any]:
    run = _entry(folder)
    return {**run, **_figures(folder, run["several"])}


def _entry(
    folder: Path, hyper: Mapping[str, Any] | None = None, method: str = "", row: str = ""
) -> dict[str, Any]:
    """What the config of a run says of it."""
    plain = files.read_json(folder / "config.json")["config"]
    given = plain["input"]
    split, drawn = given["eval_split"], given["train_split"]
    place = {k: v for k, v in plain["data"].items() if k not in ("path", "balance", "fold")}
    general = _general(drawn) if "|" in drawn else drawn
    fold = re.search(r"fold\((\d+)", split)
    own = [f"fold {fold[1]}"] if fold else []
    several = bool(plain["data"].get("ways"))  # few-shot sets, which `fold` draws
    own += [f"draw {plain['data']['fold']}"] if several else []
    return {
        "folder": str(folder),
        "method": method or choices.title(plain["adapter"]["name"]),
        "row": row,
        "draw": " ".join(own),
        "several": several,
        "seed": plain["seed"],
        "hyper": dict(hyper or {}),
        "settings": {
            k: v
            for k, v in configs.counted(plain).items()
            if k not in REPEATED and k not in (hyper or {})
        },
        "test": {"data": place, "split": _general(split), "train": general, "task": plain["task"]},
        "data": "",
        "score": None,
        "metric": "",
        "failed": "",
    }


def _general(split: str) -> str:
    """A split whose number of a fold, or seed of shots, is left open."""
    split = re.sub(r"(fold|rest)\(\d+", r"\1(*", split)
    return re.sub(r"(shots\(\d+, *)\d+", r"\1*", split)


def _figures(folder: Path, several: bool) -> dict[str, Any]:
    """What a run came to; of `several` sets that a draw is one of, it is not told which."""
    found = files.read_json(folder / "result.json")
    beside = {name: found[name] for name in found.get("beside", ())}
    return {
        "metric": found["headline"],
        "better": found.get("better", "higher"),  # earlier versions didn't say
        "score": float(found[found["headline"]]),
        "beside": beside,
        "collapsed": found.get("collapsed", False),
        "data": "" if several else found.get("eval_data", ""),
        "trained": found["trained"],
        "trained_with_head": found["trained_with_head"],
        "backbone_parameters": found["backbone"],
    }


def _name_methods(runs: list[dict[str, Any]]) -> None:
    """Gives each run of a test its label: the method, with what differs from its others."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        key = json.dumps([run["settings"], sorted(run["hyper"])], sort_keys=True)
        groups.setdefault(run["method"], {}).setdefault(key, []).append(run)
    for method, own in groups.items():
        every = [some[0]["settings"] for some in own.values()]
        fields = sorted({f for one in every for f in one if any(o.get(f) != one[f] for o in every)})
        for some in own.values():
            first = some[0]
            told = [f"{f}={first['settings'][f]}" for f in fields if f in first["settings"]]
            told += [f"{f} chosen" for f in fields if f in first["hyper"]]
            for run in some:
                run["label"] = " ".join([method, *told]) if len(own) > 1 else method
    seen: dict[Any, str] = {}
    for run in runs:
        key = run["label"], run["draw"], run["seed"]
        if key in seen:
            what = f"{run['draw']}, seed {run['seed']}".removeprefix(", ")
            raise ConfigError(
                f"{run['label']} with {what} is there twice: {seen[key]} and {run['folder']}"
            )
        seen[key] = run["folder"]


def _part(runs: list[dict[str, Any]], baseline: str, notes: list[str]) -> dict[str, Any]:
    """The part of one test."""
    title = _title(runs[0])
    whole = [run for run in runs if not run["failed"]]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    for label in labels:
        own = [run for run in runs if run["label"] == label]
        for what, some in (
            ("failed", [run for run in own if run["failed"]]),
            ("collapsed", [run for run in own if run.get("collapsed")]),
        ):
            if some:
                why = f": {some[0]['failed']}" if some[0]["failed"] else ""
                notes.append(f"{len(some)} of {len(own)} runs of {label} {what}{why}")
    if not whole:
        nothing = dict(beside=[], rows=[], paired=[], shots=0)
        return dict(title=title, metric="", better="higher", **nothing)
    first = whole[0]
    sign = 1 if first["better"] == "higher" else -1
    rows = []
    for label in labels:
        own = [run for run in whole if run["label"] == label]
        if own:
            scores = [run["score"] for run in own]
            row = {"method": label, "runs": len(own), "scores": scores, "score": spread(scores)}
            row["beside"] = {n: spread([run["beside"][n] for run in own]) for n in first["beside"]}
            rows.append({**row, **{k: own[0][k] for k in FIGURES}})
    rows.sort(key=lambda row: (-sign * row["score"]["mean"], row["method"]))
    compared = _compared(whole, baseline, first["better"], title, notes) if baseline else []
    known = dict(title=title, metric=first["metric"], better=first["better"])
    known["shots"] = _shots(first)
    return {**known, "beside": list(first["beside"]), "rows": rows, "paired": compared}


def _shots(run: dict[str, Any]) -> int:
    """How many examples of each class a run was trained on; 0 for all."""
    found = SHOTS.search(run["test"]["train"])
    return int(found[1]) if found else 0


def _title(run: dict[str, Any]) -> str:
    test = run["test"]
    trained = f" after {test['train']}" if test["train"] != "train" else ""
    where = f"{test['data']['name']}{run['version']} {test['split']}{trained}"
    where = f"{where}, {test['task']['name']}"
    return f"{run['row']}: {where}" if run["row"] else where


def _compared(
    runs: list[dict[str, Any]], baseline: str, better: str, title: str, notes: list[str]
) -> list[dict[str, Any]]:
    """Differences within draws, seeds averaged; within seeds where there is one draw."""
    several = len({run["draw"] for run in runs}) > 1
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        sample = run["draw"] if several else str(run["seed"])
        scores.setdefault(run["label"], {}).setdefault(sample, {})[run["seed"]] = run["score"]
    try:
        found = paired.against(scores, baseline, better)
    except ConfigError as error:
        notes.append(f"{title}: {error}")
        return []
    return [{**row, "over": "draws" if several else "seeds"} for row in found]


def _columns(part: dict[str, Any]) -> list[str]:
    head = ["method", part["metric"], *part["beside"], "runs", "trained", "with head", "share"]
    if part["paired"]:
        base, over = part["paired"][0]["against"], part["paired"][0]["over"]
        head += [f"over {base}", "95 % interval", f"better {over}"]
    return head


def _cells(part: dict[str, Any], row: dict[str, Any], plus_minus: str) -> list[Any]:
    """A row of a table."""
    values = [row["score"], *row["beside"].values()]
    digits = _digits(part)
    share = f"{100 * row['trained'] / row['backbone_parameters']:.2f} %"
    line = [row["method"], *(_number(v, plus_minus, digits) for v in values), row["runs"]]
    line += [row["trained"], row["trained_with_head"], share]
    if part["paired"]:
        found = next((p for p in part["paired"] if p["method"] == row["method"]), None)
        line += ["", "", ""] if found is None else _gains(found, digits)
    return line


def _digits(part: dict[str, Any]) -> int:
    """Decimals of a metric: those of percents, or more where it is small."""
    return 2 if max(abs(row["score"]["mean"]) for row in part["rows"]) >= 1 else 4


def _number(value: dict[str, Any], plus_minus: str, digits: int) -> str:
    text = f"{value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text}{plus_minus}{value['std']:.{digits}f}"


def _gains(found: dict[str, Any], digits: int) -> list[str]:
    between = ""
    if found["low"] is not None:
        between = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
    wins = f"{found['wins']} of {found['tasks']}"
    return [f"{found['mean']:+.{digits}f}", between, wins]


def show(result: dict[str, Any]) -> None:
    """Prints a table for each test."""
    for part in result["tests"]:
        rows = [_cells(part, row, "±") for row in part["rows"]]
        show_table(part["title"], _columns(part), rows)
    for line in result["notes"]:
        print(f"- {line}")


def write(result: dict[str, Any], out: Path) -> None:
    """Writes `report.csv`, `runs.csv`, `report.tex` and `report.png` in a folder, and `shots.png`
    where tests differ in their counts of shots.

    Raises:
        MachineError: for a disk that is full, or without the extra `[viz]`.
    """
    with files.writing(out):
        out.mkdir(exist_ok=True)
        for name, text in (
            ("report.csv", _comma_separated(_flat_rows(result))),
            ("runs.csv", _comma_separated({**r, "hyper": json.dumps(r["hyper"])}
                                          for r in result["runs"])),
            ("report.tex", _latex(result)),
        ):  # fmt: skip
            files.write_bytes(out / name, text.encode())
    whole = [part for part in result["tests"] if part["rows"]]
    curves: dict[str, dict[int, Any]] = {}
    for part in whole:
        if part["shots"]:
            curves.setdefault(SHOTS.sub("shots", part["title"]), {})[part["shots"]] = part
    curves = {title: own for title, own in curves.items() if len(own) > 1}
    for name, drawn in (("report", plots.strips(whole)), ("shots", plots.curves(curves))):
        if drawn is not None:
            write_figure(drawn, out / f"{name}.png")


def _flat_rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each method of each test, with means and deviations in columns of their own."""
    for part in result["tests"]:
        for row in part["rows"]:
            line = {"test": part["title"], "metric": part["metric"], "method": row["method"]}
            line |= {"mean": row["score"]["mean"], "std": row["score"]["std"], "runs": row["runs"]}
            for name, value in row["beside"].items():
                line |= {name: value["mean"], f"{name}_std": value["std"]}
            line |= {name: row[name] for name in FIGURES}
            found = next((p for p in part["paired"] if p["method"] == row["method"]), {})
            names = ("against", "mean", "low", "high", "wins", "tasks", "over")
            if result["baseline"]:
                line |= {f"paired_{n}": found.get(n) for n in names}
            yield line


def _comma_separated(lines: Iterable[dict[str, Any]]) -> str:
    rows, text = list(lines), io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex(result: dict[str, Any]) -> str:
    """A table for each test."""
    lines = ["% needs \\usepackage{booktabs}", *(f"% {line}" for line in result["notes"])]
    for part in result["tests"]:
        columns = _columns(part)
        rows = [map(str, _cells(part, row, " ± ")) for row in part["rows"]]
        lines += render.booktabs(part["title"], columns, rows)
    return "\n".join(lines) + "\n"
