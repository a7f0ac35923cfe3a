"""The lines of `results.jsonl`: read, and checked that they may stand in one table."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynadapt.errors import ConfigError, DataError

FILE = "results.jsonl"

# What a table needs of a line, and the types that JSON gives it.
FIELDS = {
    **dict.fromkeys(("suite", "form", "protocol", "protocol_digest", "backbone", "method"), str),
    **dict.fromkeys(("weights", "weights_sha256", "task", "stage"), str),
    **dict.fromkeys(("seed", "trained", "trained_with_head", "backbone_parameters"), int),
    **dict.fromkeys(("settings", "hyper"), dict),
    **dict.fromkeys(("metric", "better"), str),
    "score": (int, float),
}

# What all lines of a table have in common: fields, and what they are called.
COMMON = (
    (("suite",), "suites"),
    (("protocol", "protocol_digest"), "protocols"),
    (("backbone",), "backbones"),
    (("weights", "weights_sha256"), "weights"),
    (("form",), "forms of the data"),
    (("metric", "better"), "metrics"),
)


def read(workdir: Path) -> list[dict[str, Any]]:
    """All lines of `<workdir>/results.jsonl`, of a sweep of a suite.

    Raises:
        ConfigError: if there is no such file.
        DataError: for a line that is not whole, or is not a result; it names the line.
    """
    found = lines(workdir, "vtab run")
    for number, line in enumerate(found, start=1):
        _check(line, number, Path(workdir) / FILE)
    return found


def lines(workdir: Path, writer: str) -> list[dict[str, Any]]:
    """All lines of `<workdir>/results.jsonl`, which that command writes; raises as `read` does."""
    path = Path(workdir) / FILE
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; `dynadapt {writer} --workdir={workdir}` writes it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not text:
        raise ConfigError(f"{path} is empty: no cell is finished yet")
    lines = text.split("\n")
    if lines[-1]:
        raise DataError(f"line {len(lines)} of {path} was not written to its end")
    return [_parsed(line, number, path) for number, line in enumerate(lines[:-1], start=1)]


def _parsed(text: str, number: int, path: Path) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        raise DataError(f"line {number} of {path} is broken: {text[:60]!r}") from None
    if not isinstance(line, dict):
        raise DataError(f"line {number} of {path} is not a result: {text[:60]!r}")
    return with_score(line)


def _check(line: dict[str, Any], number: int, path: Path) -> None:
    """Raises a DataError for a line that is no result of a suite."""
    for name, kind in FIELDS.items():
        if name not in line:
            raise DataError(f"line {number} of {path} has no field {name!r}")
        if not isinstance(line[name], kind) or isinstance(line[name], bool):
            raise DataError(f"line {number} of {path} has {name}={line[name]!r}")


def with_score(line: dict[str, Any]) -> dict[str, Any]:
    """A result with its `score`, `metric` and `better`: the first sweeps knew top-1 alone."""
    if "score" in line or "top1" not in line:
        return line
    return {**line, "score": line["top1"], "metric": "top1", "better": "higher"}


def final(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations on test splits, the only ones that make a table.

    Raises:
        ConfigError: if there are none, or if the lines, tuning included, can't stand in one table.
    """
    for fields, what in COMMON:
        _one((tuple(line[f] for f in fields) for line in lines), what)
    finals = [line for line in lines if line["stage"] == "final"]
    if not finals:
        raise ConfigError(f"all {len(lines)} results are of the tuning stage: no test result yet")
    seen = set()
    methods = _by(finals, "method")
    for method, own in methods.items():
        _one((_text(line["settings"]) for line in own), f"settings of {method}")
        _one((str(line["trained"]) for line in own), f"counts of trained parameters of {method}")
        for task, cells in _by(own, "task").items():
            _one(
                (_text(line["hyper"]) for line in cells), f"hyper-parameters of {method} on {task}"
            )
    for line in finals:
        key = (line["method"], line["task"], line["seed"])
        if key in seen:
            raise ConfigError(f"{key[0]} on {key[1]} with seed {key[2]} is there twice")
        seen.add(key)
    for task, cells in _by(finals, "task").items():
        for field, what in (("data_fingerprint", "data"), ("split_fingerprint", "test data")):
            _one((line.get(field, "") for line in cells), f"versions of the {what} of {task}")
    return finals


def _by(lines: list[dict[str, Any]], field: str) -> dict[str, list[dict[str, Any]]]:
    """The lines by the values of a field, in order of their first appearance."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line[field], []).append(line)
    return found


def _text(values: Any) -> str:
    return json.dumps(values, sort_keys=True)


def _one(values: Iterable[Any], what: str) -> None:
    """Raises a ConfigError if there are several values."""
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        shown = " and ".join(_shown(v) for v in found[:2])
        raise ConfigError(f"the results are of {len(found)} {what}, {shown}: not for one table")


def _shown(value: Any) -> str:
    """A value in one line; of hashes the first digits."""
    parts = value if isinstance(value, tuple) else (value,)
    return " ".join(p[:12] if len(p) == 64 else p or "''" for p in parts)
