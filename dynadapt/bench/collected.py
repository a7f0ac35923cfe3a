"""Several benchmarks of one machine, as `--json` wrote them, in one file and one page."""

import re
from pathlib import Path
from typing import Any

import jax

from dynadapt import files
from dynadapt.bench import lines, machine
from dynadapt.errors import DataError
from dynadapt.runs import product
from dynadapt.runs.journal import markdown_table


def run(folder: Path, out: Path) -> dict[str, Any]:
    """Writes `DEVICE.json` and `DEVICE.md` of all `*.json` of a folder, in order of their names.

    Args:
        folder: of answers of `bench … --json`, each under the name of its heading.
        out: folder of both files.

    Returns:
        `machine`, and `rows`: a benchmark each with its `rows` and `file`.

    Raises:
        DataError: there is none, or one is no answer of `bench`.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        given = files.read_json(path)
        rows = given.get("rows")
        whole = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if not whole or not isinstance(given.get("machine"), str):
            raise DataError(f"{path} is no answer of 'dynadapt bench … --json'")
        found[path.stem] = given
    if not found:
        raise DataError(f"there is no *.json in {folder}; write them with 'bench … --json'")
    kind = jax.devices()[0].device_kind
    name = out / re.sub("[^a-z0-9]+", "_", kind.lower()).strip("_")
    document = dict(device=kind, versions=product.versions(), benchmarks=found)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    files.write_json(name.with_suffix(".json"), document)
    files.write_bytes(name.with_suffix(".md"), page(document).encode())
    rows = [dict(benchmark=k, rows=len(v["rows"]), file=f"{name}.json") for k, v in found.items()]
    return dict(machine=machine(), rows=rows)


def page(document: dict[str, Any]) -> str:
    """The document as Markdown, a table a benchmark."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    parts = [f"# Benchmarks: {document['device']}", f"With {versions}."]
    for name, found in document["benchmarks"].items():
        columns, *rows = lines(found["rows"])
        parts += [f"## {name}", found["machine"], markdown_table(columns, rows).rstrip()]
    return "\n\n".join(parts) + "\n"
