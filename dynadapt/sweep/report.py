"""The table of a benchmark: a row for each method, over tasks, groups and seeds.

Accuracies are percent. A mean is over seeds; ± is the sample standard deviation over seeds (n - 1
in the denominator), and a single seed has none. Of a group, the mean over its tasks is taken within
each seed first, so its ± is the spread of that mean over seeds. Two means over tasks are printed
and named, since the literature prints either: that of the groups' means, and that of all tasks.
The rank of a method is averaged over tasks, 1 is best, ties share the mean of their places.
"""

import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from dynadapt import files
from dynadapt.data import vtab
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.runs.journal import show_table
from dynadapt.sweep import paired, plots, published, render, results, suites


def make(
    workdir: Path,
    partial: bool = False,
    tasks: dict[str, Any] | None = None,
    against: str = "",
) -> dict:
    """The report of a workdir, as JSON values.

    Args:
        workdir: folder with `results.jsonl`.
        partial: take what is there: means are then over the tasks that every method has, and the
            title says what is missing.
        tasks: by name in table order, each with `group` and `title`; by default the suite's.
        against: a method that all others are compared with, cell by cell.

    Returns:
        `title`; `suite`, `form`, `protocol`, `protocol_digest`, `backbone`, `backbone_parameters`,
        `weights`, `weights_sha256`; `metric`, `better`; `partial`, and `gaps`, a sentence each;
        `tasks` (`name`, `title`, `group`, and `common`: whether it is in the means); `groups`;
        `rows`, the best rank first: of each method `method`, `settings`, `seeds`, `tasks`,
        `groups`, `mean_of_groups`, `mean_of_tasks`, `trained`, `trained_with_head`, `rank`; a
        number is `{"mean", "std"}` or None. `published` has rows of the same protocol and
        backbone, `differences` is ours minus the published one of the same method and settings,
        `paired` is as of `paired.against`, and `notes` says what isn't compared and why, and which
        runs collapsed.

    Raises:
        ConfigError: for missing tasks or uneven seeds without `partial`, or results that can't
            stand in one table.
        DataError: for a line that is broken.
    """
    finals = results.final(results.read(workdir))
    first = finals[0]
    tasks = suites.find(first["suite"]).tasks if tasks is None else tasks
    for line in finals:
        if line["task"] not in tasks:
            raise UnknownName("task", line["task"], tasks)
    cells: dict[str, dict[str, dict[int, float]]] = {}
    for line in finals:
        own = cells.setdefault(line["method"], {}).setdefault(line["task"], {})
        own[line["seed"]] = float(line["score"])
    gaps = find_gaps(cells, tasks)
    if gaps and not partial:
        raise ConfigError(f"{gaps[0]}; --partial makes a table of what is there")
    common = [name for name in tasks if all(name in own for own in cells.values())]
    groups = by_group(tasks)
    rows = [{**_facts(m, finals), **numbers(own, groups, common)} for m, own in cells.items()]
    for row, rank in zip(rows, ranks(rows, common, first["better"]), strict=True):
        row["rank"] = rank
    rows.sort(key=lambda row: (math.inf if row["rank"] is None else row["rank"], row["method"]))
    fields = ("suite", "form", "protocol", "protocol_digest", "backbone", "backbone_parameters")
    fields = (*fields, "weights", "weights_sha256", "metric", "better")
    result = {k: first[k] for k in fields}
    result.update(partial=bool(gaps), gaps=gaps, groups=list(groups))
    result["tasks"] = [
        dict(name=name, title=t.title, group=t.group, common=name in common)
        for name, t in tasks.items()
    ]
    result["rows"] = rows
    result.update(_published(result))
    result["paired"] = paired.against(cells, against, first["better"]) if against else []
    result["notes"] += _fallen(finals)
    return {"title": _title(result), **result}


def _fallen(finals: list[dict[str, Any]]) -> list[str]:
    """A line for each method of which runs diverged, or collapsed to one answer for all images."""
    found = []
    for field in ("diverged", "collapsed"):
        for method in dict.fromkeys(line["method"] for line in finals):
            own = [line for line in finals if line["method"] == method]
            tasks = [line["task"] for line in own if line.get(field) not in (None, False)]
            if tasks:
                names = ", ".join(dict.fromkeys(tasks))
                found.append(f"{len(tasks)} of {len(own)} runs of {method} {field}, on {names}")
    return found


def find_gaps(cells: dict[str, dict[str, dict[int, float]]], tasks: dict[str, Any]) -> list[str]:
    """A sentence for each thing that keeps the results from a full table; the first says most."""
    gaps = []
    for method, own in cells.items():
        missing = [name for name in tasks if name not in own]
        if missing:
            names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            gaps.append(
                f"{method} has no test result for {len(missing)} of {len(tasks)} tasks: {names}"
            )
    seeds = sorted({seed for own in cells.values() for found in own.values() for seed in found})
    uneven = {
        f"{method} on {task}": sorted(set(seeds) - set(found))
        for method, own in cells.items()
        for task, found in own.items()
        if set(found) != set(seeds)
    }
    if uneven:
        where, lost = next(iter(uneven.items()))
        others = f" and {len(uneven) - 1} more" if len(uneven) > 1 else ""
        lost_text = ", ".join(map(str, lost))
        gaps.append(f"the seeds are uneven: {where}{others} has no seed {lost_text}")
    return gaps


def by_group(tasks: dict[str, Any]) -> dict[str, list[str]]:
    """Names of tasks by group, in table order."""
    found: dict[str, list[str]] = {}
    for name, task in tasks.items():
        found.setdefault(task.group, []).append(name)
    return found


def spread(values: list[float]) -> dict[str, float | None] | None:
    """Mean and sample standard deviation; None for no values, no deviation for one."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation}


def numbers(
    own: dict[str, dict[int, float]], groups: dict[str, list[str]], common: list[str]
) -> dict[str, Any]:
    """Tasks, groups and means of one method, from its scores by task and seed.

    Means over tasks are over the `common` ones; a group without any has none, and then there is no
    mean of groups.
    """
    kept = {group: [n for n in names if n in common] for group, names in groups.items()}
    seeds = {frozenset(own[name]) for name in common}
    if len(seeds) == 1:  # each seed gives every mean once
        samples = [{name: own[name][seed] for name in common} for seed in sorted(*seeds)]
    else:  # uneven: from the tasks' means, and the means over tasks have no deviation
        samples = [{name: statistics.fmean(own[name].values()) for name in common}]

    def over(names: list[str]) -> Any:
        return spread([statistics.fmean(s[n] for n in names) for s in samples]) if names else None

    every = None
    if all(kept.values()):
        means = [[statistics.fmean(s[n] for n in g) for g in kept.values()] for s in samples]
        every = spread([statistics.fmean(m) for m in means])
    return {
        "seeds": sorted({seed for found in own.values() for seed in found}),
        "tasks": {n: spread([*own.get(n, {}).values()]) for g in groups.values() for n in g},
        "groups": {group: over(names) for group, names in kept.items()},
        "mean_of_groups": every,
        "mean_of_tasks": over(common),
    }


def _facts(method: str, finals: list[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all lines of a method; with the head, the mean over tasks."""
    own = [line for line in finals if line["method"] == method]
    heads = statistics.fmean({line["task"]: line["trained_with_head"] for line in own}.values())
    facts = {"method": method, "settings": own[0]["settings"], "trained": own[0]["trained"]}
    return {**facts, "trained_with_head": round(heads)}


def ranks(
    rows: list[dict[str, Any]], tasks: list[str], better: str = "higher"
) -> list[float | None]:
    """The place of each row, averaged over tasks; ties share the mean of their places."""
    sign = 1 if better == "higher" else -1
    if not tasks:
        return [None] * len(rows)
    sums = [0.0] * len(rows)
    for name in tasks:
        # Rounded, since equal accuracies may differ in the last bit of their mean.
        values = [round(sign * row["tasks"][name]["mean"], 9) for row in rows]
        for i, value in enumerate(values):
            ahead, equal = sum(v > value for v in values), values.count(value)
            sums[i] += ahead + (equal + 1) / 2
    return [s / len(tasks) for s in sums]


def _published(result: dict[str, Any]) -> dict[str, Any]:
    """Published rows that may stand beside ours, the differences, and notes on the rest."""
    nothing: dict[str, Any] = {"published": [], "differences": [], "notes": []}
    if result["suite"] != "vtab":
        return nothing
    if result["backbone"] != published.BACKBONE or not published.pretrained(result["weights"]):
        what = f"{published.BACKBONE} with {published.PRETRAINING} weights"
        used = f"{result['backbone']} with {result['weights'] or 'random weights'}"
        return {**nothing, "notes": [f"published rows are of {what}, so not compared with {used}"]}
    same = [row for row in published.ROWS if row.protocol == result["protocol"]]
    notes = []
    strangers: dict[str, list[str]] = {}
    for row in published.ROWS:
        if row not in same:
            strangers.setdefault(row.protocol, []).append(row.title)
    for protocol, titles in strangers.items():
        notes.append(f"not compared, of protocol {protocol}: {', '.join(titles)}")
    if same:
        notes.append("published rows report the best epoch on the test set, as their code does")
        if result["form"] != "folder":
            notes.append(
                f"published rows read the shared folder, not the images of {result['form']}"
            )
    for source in dict.fromkeys(row.source for row in same):
        titles = ", ".join(row.title for row in same if row.source == source)
        notes.append(f"{titles}: from the {source}")
    ours = {row["method"]: row for row in result["rows"]}
    common = [t["name"] for t in result["tasks"] if t["common"]]
    differences = []
    for row in same:
        if row.method not in ours:
            continue
        own = ours[row.method]
        other = {k: own["settings"].get(k) for k in row.settings if _other(own["settings"], row, k)}
        if other:
            told = ", ".join(f"{k} is {row.settings[k]} there, {v} here" for k, v in other.items())
            notes.append(f"{row.method} has no difference to {row.title}: {told}")
            continue
        differences.append(_difference(own, _printed(row, common), row))
    return {
        "published": [_printed(r, common) for r in same],
        "differences": differences,
        "notes": notes,
    }


def _other(settings: dict[str, Any], row: published.Row, name: str) -> bool:
    return json.dumps(settings.get(name)) != json.dumps(row.settings[name])


def _printed(row: published.Row, common: list[str]) -> dict[str, Any]:
    """A published row in the shape of ours; its means are computed here, over the same tasks."""
    own = {name: {0: top1} for name, top1 in row.top1.items()}
    values = numbers(own, by_group(vtab.TASKS), [n for n in common if n in own])
    trained = None if row.trained is None else round(row.trained * 1e6)
    return {**values, "method": row.title, "trained": trained, "seeds": []}


def _difference(own: dict, other: dict, row: published.Row) -> dict[str, Any]:
    """Ours minus the published numbers, wherever both are."""

    def minus(a: Any, b: Any) -> Any:
        return None if a is None or b is None else {"mean": a["mean"] - b["mean"], "std": None}

    found = {k: minus(own[k], other[k]) for k in ("mean_of_groups", "mean_of_tasks")}
    for k in ("tasks", "groups"):
        found[k] = {name: minus(own[k][name], other[k].get(name)) for name in own[k]}
    return {"method": f"{own['method']} - {row.title}", **found}


def _title(result: dict[str, Any]) -> str:
    """What the table is of, and whatever is missing in it."""
    seeds = sorted({seed for row in result["rows"] for seed in row["seeds"]})
    count = f"{len(seeds)} seed" + ("s, mean ± std" if len(seeds) > 1 else "")
    suite = suites.find(result["suite"])
    source = f" from {result['form']}" if len(suite.forms) > 1 else ""
    weights = result["weights"] or "random weights"
    title = (
        f"{suite.title}{source}, protocol {result['protocol']} "
        f"({result['protocol_digest'][:8]}), {result['backbone']} ({weights}), {count}"
    )
    if not result["partial"]:
        return title
    used = sum(task["common"] for task in result["tasks"])
    uneven = ", uneven seeds" if any("uneven" in gap for gap in result["gaps"]) else ""
    return f"PARTIAL, means over {used} of {len(result['tasks'])} tasks{uneven}: {title}"


def show(result: dict[str, Any]) -> None:
    """Prints the means, then the tasks of each group."""
    print(result["title"])
    for title, columns, rows in render.tables(result, plus_minus="±"):
        show_table(title, columns, rows)
    for line in (*result["gaps"], *result["notes"]):
        print(f"- {line}")


def write(result: dict[str, Any], out: Path) -> None:
    """Writes the report; the suffix of the file says in which form.

    Raises:
        ConfigError: for a suffix of no form.
        MachineError: for a plot, without the extra `[viz]`.
    """
    form = FORMS.get(out.suffix.lower())
    if form is None:
        raise UnknownName("suffix of --out", out.suffix, FORMS)
    with files.whole(out) as partial:
        form(result, partial)


def _text(form: Any) -> Any:
    return lambda result, path: path.write_text(form(result), encoding="utf-8")


# Each writes a report to a path.
FORMS = {
    ".md": _text(render.markdown),
    ".csv": _text(render.comma_separated),
    ".tex": _text(render.latex),
    ".png": functools.partial(plots.draw, form="png"),
    ".svg": functools.partial(plots.draw, form="svg"),
    ".pdf": functools.partial(plots.draw, form="pdf"),
}
