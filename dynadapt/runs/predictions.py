"""Records of an evaluation in a folder: a table, the files that a task writes, some pictures.

predictions.csv        one line an example, in the order of the split
metrics.json           what was found, by class too where the task has them
<results>              where the task has such a file: the results of all examples, a JSON list
<name><suffix>         what the task writes of an example, such as a label map; of several tasks
                       each has a folder: <task>/<name><suffix>
pictures.png           the first examples with their answers
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynadapt import files, pictures, processes
from dynadapt.data.decode import decode

TABLE, METRICS, SHEET = "predictions.csv", "metrics.json", "pictures.png"
RESULTS = "results"  # of a record: what goes into the task's file of results, not into the table
PICTURES = 12


class Predictions:
    """Collects the records of a task; `finish` writes the table and the results, whole.

    Args:
        folder: where files go; made at the first file.
        task: whose answers these are.
        source: of the examples, for pictures.
        about: what is known of each example by its index, as `loader.Batches` has it.
    """

    def __init__(self, folder: Path, task: Any, source: Any, about: dict[int, dict[str, Any]]):
        self.folder, self.task, self.source, self.about = folder, task, source, about
        self._rows: dict[int, dict[str, Any]] = {}
        self._answers: dict[int, tuple[Mapping[str, np.ndarray], dict[str, Any]]] = {}
        self._stems: set[str] = set()

    def add(self, answer: Mapping[str, np.ndarray], row: dict[str, Any]) -> None:
        """Keeps what the task records of one answer, to a row of a batch, and writes its files."""
        index = int(row["index"])
        example = {**row, **self.about.pop(index)}
        values, found = self.task.record(answer, example)
        stem = Path(example["name"]).stem
        if stem in self._stems:
            stem = f"{stem}-{index}"
        self._stems.add(stem)
        for suffix, content in found.items():
            with files.writing(self.folder):
                path = self.folder / place(stem, suffix)
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, content)
        self._rows[index] = values
        if index < PICTURES:
            self._answers[index] = answer, example

    def finish(self, values: Mapping[str, Any]) -> None:
        """Writes the metrics, and the records of all processes; all of them must ask."""
        every = processes.gather_bytes(json.dumps(self._rows).encode())
        if jax.process_index():
            return
        rows = {int(k): v for part in every for k, v in json.loads(part).items()}
        drawn = [self._drawn(index) for index in sorted(self._answers)]
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_records(self.folder, self.task, [rows[index] for index in sorted(rows)])
            files.write_json(self.folder / METRICS, values)
            if drawn:
                pictures.write(self.folder / SHEET, pictures.sheet(drawn))

    def _drawn(self, index: int) -> np.ndarray:
        return self.task.draw(shown(self.source[index]), *self._answers[index])


def place(stem: str, suffix: str) -> str:
    """Where what a task writes of an example lies: `stem` and the suffix, in the suffix's folder,
    if it names one."""
    folder, slash, end = suffix.rpartition("/")
    return f"{folder}{slash}{stem}{end}"


def shown(given: Mapping[str, Any]) -> np.ndarray:
    """What an example of a source is a picture of: its image `h w 3`, or its points `n 3`."""
    if "image" not in given:
        return given["points"]
    return decode(given["image"], given["name"], given.get("orient", False))


def write_records(folder: Path, task: Any, records: list[dict[str, Any]]) -> None:
    """Writes the table of records in their order, and the task's results, if it has such a file.

    That file is one JSON list with a result a line.
    """
    table = [{k: v for k, v in record.items() if k != RESULTS} for record in records]
    write_table(folder / TABLE, table)
    if name := getattr(task, "results", ""):
        lines = ",\n".join(json.dumps(x) for r in records for x in r.get(RESULTS, ()))
        files.write_bytes(folder / name, f"[{lines}]\n".encode())


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a CSV file, one line a row; its columns are those of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with files.whole(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
