"""The table at the end of training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynadapt import config as configs
from dynadapt.ending import command
from dynadapt.errors import ConfigError
from dynadapt.runs.journal import show_table, size_text


def check_all(runs: list[Any]) -> None:
    """Checks several configs before the first of them runs; lists every problem once."""
    problems: dict[str, None] = {}
    for config in runs:
        try:
            configs.check(config)
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(*problems)


def show(results: list[dict[str, Any]], folder: Path, others: str = "", method: str = "") -> None:
    """Prints one row for each result, and the commands to try next.

    Args:
        results: of runs with the same task.
        folder: of the run, or of all of them.
        others: a command that compares this run with others, where there is one.
        method: the file of the run's method, where it has one.
    """
    shown = [results[0]["headline"], *results[0].get("beside", ())]
    rows = [
        [
            r["method"],
            *(number_text(r[name]) for name in shown),
            r["trained"],
            r["trained_with_head"],
            f"{100 * r['trained'] / r['backbone']:.2f} %",
            size_text(r["adapter_bytes"]),
            f"{r['images_per_second']:.0f}",
        ]
        for r in results
    ]
    columns = ["method", *shown, "trained", "with head", "of backbone", "file", "images/s"]
    show_table(f"{folder}", columns, rows)
    print(_next(results, folder, others, method))


def _next(results: list[dict[str, Any]], folder: Path, others: str, method: str) -> str:
    if len(results) > 1:
        return f"Evaluate one again: {command()} eval --workdir={folder}/{results[-1]['method']}"
    lines = [
        f"The adapter is in {results[0]['adapter']}",
        f"Evaluate it again:      {command()} eval --workdir={folder}"
        + (f" --method={method}" if method else ""),
    ]
    if others:
        lines.append(f"Compare all methods:    {command()} {others}")
    return "\n".join(lines)


def show_metrics(result: dict[str, Any]) -> None:
    """Prints what an evaluation found, and a table for what it found of each class."""
    tables = {k: v for k, v in result.items() if isinstance(v, Mapping)}
    rows = [[k, _exact(v)] for k, v in result.items() if k not in tables]
    show_table("evaluation", ["what", "value"], rows)
    for title, table in tables.items():
        columns = list(dict.fromkeys(name for row in table.values() for name in row))
        cells = [[k, *(_exact(row.get(c, "")) for c in columns)] for k, row in table.items()]
        show_table(title, ["", *columns], cells)


def _exact(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def number_text(value: Any) -> str:
    """A number with two decimals, or four where it is small; anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"
