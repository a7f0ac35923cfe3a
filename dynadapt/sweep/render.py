"""A report as text: tables for the terminal and Markdown, CSV, LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from dynadapt.runs.journal import markdown_table

Rows = list[list[Any]]

_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})


def number(value: dict[str, Any] | None, plus_minus: str, sign: str = "") -> str:
    """`71.23±0.12`, without ± where there is one seed, empty where there is nothing."""
    if value is None:
        return ""
    text = f"{value['mean']:{sign}.2f}"
    return text if value["std"] is None else f"{text}{plus_minus}{value['std']:.2f}"


def labels(result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the columns of groups, and of the two means: how many tasks each is over."""

    def count(tasks: list[dict[str, Any]]) -> str:
        used = sum(task["common"] for task in tasks)
        return f"{used}" if used == len(tasks) else f"{used} of {len(tasks)}"

    of = {g: count([t for t in result["tasks"] if t["group"] == g]) for g in result["groups"]}
    groups = [f"{group} ({tasks})" for group, tasks in of.items()]
    means = [f"mean of {len(of)} groups", f"mean of {count(result['tasks'])} tasks"]
    return groups, means


def _sections(result: dict[str, Any]) -> list[tuple[list[dict[str, Any]], str]]:
    """Ours, published rows and differences, each with the sign of its numbers."""
    printed = [{**row, "method": f"{row['method']} (published)"} for row in result["published"]]
    found = ((result["rows"], ""), (printed, ""), (result["differences"], "+"))
    return [(rows, sign) for rows, sign in found if rows]


def _last(row: dict[str, Any]) -> list[str]:
    """Trained parameters, exact for ours and in millions as published, and the rank."""
    trained, rank = row.get("trained"), row.get("rank")
    if trained is None:
        text = ""
    else:
        text = f"{trained / 1e6:.2f} M" if not row["seeds"] else f"{trained:,}"
    return [text, "" if rank is None else f"{rank:.2f}"]


def tables(result: dict[str, Any], plus_minus: str) -> list[tuple[str, list[str], Rows]]:
    """Title, columns and rows of the means, then of the tasks of each group."""
    groups, means = labels(result)
    columns = ["method", *groups, *means, "trained", "rank"]
    found: list[tuple[str, list[str], Rows]] = [("means", columns, [])]
    tasks = {g: [t for t in result["tasks"] if t["group"] == g] for g in result["groups"]}
    for group, own in tasks.items():
        found.append((group, ["method", *(task["title"] for task in own)], []))
    for rows, sign in _sections(result):
        for row in rows:
            values = [*row["groups"].values(), row["mean_of_groups"], row["mean_of_tasks"]]
            texts = [number(v, plus_minus, sign) for v in values]
            found[0][2].append([row["method"], *texts, *_last(row)])
            for (_, _, lines), own in zip(found[1:], tasks.values(), strict=True):
                cells = [number(row["tasks"][task["name"]], plus_minus, sign) for task in own]
                lines.append([row["method"], *cells])
    if result["paired"]:
        columns = ["method", "difference", "95 % interval", "wins"]
        title = f"against {result['paired'][0]['against']}, over tasks"
        found.append((title, columns, [_paired(row) for row in result["paired"]]))
    return found


def _paired(row: dict[str, Any]) -> list[str]:
    known = row["low"] is not None
    between = f"{row['low']:+.2f} to {row['high']:+.2f}" if known else ""
    return [row["method"], f"{row['mean']:+.2f}", between, f"{row['wins']} of {row['tasks']}"]


def markdown(result: dict[str, Any]) -> str:
    """The tables of the terminal, for Markdown."""
    lines = [f"**{result['title']}**", ""]
    for title, columns, rows in tables(result, plus_minus=" ± "):
        lines += [f"{title}:", "", markdown_table(columns, rows)]
    lines += [f"- {line}" for line in (*result["gaps"], *result["notes"])]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(result: dict[str, Any]) -> str:
    """A line for each method, with means and deviations in columns of their own."""
    same = {k: result[k] for k in ("suite", "form", "protocol", "protocol_digest")}
    same.update({k: result[k] for k in ("backbone", "weights", "weights_sha256")})
    same["partial"] = "; ".join(result["gaps"])
    lines = []
    for kind in ("rows", "published", "differences"):
        for row in result[kind]:
            line = {"kind": "ours" if kind == "rows" else kind, "method": row["method"]}
            for name in ("trained", "trained_with_head", "rank"):
                line[name] = row.get(name)
            line["seeds"] = " ".join(map(str, row.get("seeds", ())))
            means = {k: row[k] for k in ("mean_of_groups", "mean_of_tasks")}
            for name, value in {**row["tasks"], **row["groups"], **means}.items():
                line[name] = None if value is None else round(value["mean"], 4)
                std = None if value is None else value["std"]
                line[f"{name}_std"] = None if std is None else round(std, 4)
            found = next((p for p in result["paired"] if p["method"] == row["method"]), {})
            for name in ("against", "mean", "low", "high", "wins") if result["paired"] else ():
                line[f"paired_{name}"] = found.get(name)
            lines.append({**line, **same})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def latex(result: dict[str, Any]) -> str:
    """One table with upright columns for means and turned heads for tasks."""
    groups, means = labels(result)
    tasks = [task for g in result["groups"] for task in result["tasks"] if task["group"] == g]
    heads = ["method", *(t["title"] for t in tasks), *groups, *means, "trained", "rank"]
    turned = [heads[0], *(rf"\rotatebox{{90}}{{{_escaped(h)}}}" for h in heads[1:])]
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        *(f"% {line}" for line in (*result["gaps"], *result["notes"])),
        "\\begin{table}",
        f"\\caption{{{_escaped(result['title'])}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        " & ".join(turned) + r" \\",
    ]
    for rows, sign in _sections(result):
        lines.append("\\midrule")
        for row in rows:
            values = [row["tasks"][t["name"]] for t in tasks]
            values += [*row["groups"].values(), row["mean_of_groups"], row["mean_of_tasks"]]
            cells = [_escaped(row["method"]), *(_math(v, sign) for v in values), *_last(row)]
            lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    if result["paired"]:
        lines += booktabs(*tables(result, r" \pm ")[-1])
    return "\n".join(lines) + "\n"


def booktabs(title: str, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a LaTeX table whose first column is text."""
    return [
        "\\begin{table}",
        f"\\caption{{{_escaped(title)}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        "\\toprule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in (columns, *rows)),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]


def _math(value: dict[str, Any] | None, sign: str) -> str:
    text = number(value, r" \pm ", sign)
    return f"${text}$" if text else ""


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES).replace("±", r"$\pm$")
