"""Records of an evaluation: a table in the order of the split, files beside it, some pictures."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import labelled
from dynadapt.runs import predictions
from dynadapt.runs.predictions import Predictions, write_table


class Task:
    """Records the number that it is given, and a file for even ones; it draws a square."""

    def record(self, answer, example):
        number = int(answer["number"])
        files = {} if number % 2 else {".txt": str(number).encode()}
        more = {} if number % 2 else {"even": "yes"}
        return {"file": example["name"], "number": number, **more, "frame": example["frame"]}, files

    def draw(self, image, answer, example):
        return np.full_like(image, int(answer["number"]))


class Source:
    """Pictures of one colour."""

    info = labelled("test", "ab", size=(8, 8))

    def __getitem__(self, index):
        return {"image": np.full((8, 8, 3), 200, np.uint8), "label": 0, "name": f"{index}.png"}


def collected(folder, count, names=None, order=None):
    names = names or [f"images/{i:02}.png" for i in range(count)]
    about = {i: {"name": names[i], "size": (8, 8), "frame": f"f{i}"} for i in range(count)}
    records = Predictions(folder, Task(), Source(), about)
    for i in range(count) if order is None else order:
        records.add({"number": np.int32(i)}, {"index": np.int32(i), "mask": np.float32(1)})
    assert about == {}  # what was told of an example is held no longer than needed
    return records


def read(folder):
    with open(folder / predictions.TABLE, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_in_the_order_of_the_split(tmp_path):
    records = collected(tmp_path / "out", 5, order=[3, 0, 4, 2, 1])
    records.finish({"loss": 0.5, "classes": {"a": {"iou": 1.0}}})
    rows = read(tmp_path / "out")
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[1] == {"file": "images/01.png", "number": "1", "even": "", "frame": "f1"}
    assert [row["even"] for row in rows] == ["yes", "", "yes", "", "yes"]


def test_files_are_named_after_the_examples(tmp_path):
    out = tmp_path / "out"
    records = collected(out, 4)
    assert sorted(p.name for p in out.iterdir()) == ["00.txt", "02.txt"]
    assert (out / "02.txt").read_text() == "2"
    records.finish({"loss": 0.5, "classes": {"a": {"iou": 1.0}}})
    assert sorted(p.name for p in out.iterdir()) == [
        *("00.txt", "02.txt", "metrics.json", "pictures.png", "predictions.csv"),
    ]


def test_two_examples_of_one_name_have_a_file_each(tmp_path):
    collected(tmp_path, 3, names=["a/x.png", "b/y.png", "c/x.jpg"])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x.txt": "0", "x-2.txt": "2"}


@pytest.mark.parametrize("count", [1, 5, 30])
def test_the_first_examples_are_drawn(count, tmp_path):
    collected(tmp_path, count, order=reversed(range(count))).finish(
        {"loss": 0.5, "classes": {"a": {"iou": 1.0}}}
    )
    sheet = np.asarray(Image.open(tmp_path / predictions.SHEET))
    drawn = min(count, predictions.PICTURES)
    side = sheet.shape[1] // min(drawn, 4)
    assert sheet.shape[0] == -(-drawn // 4) * side
    corners = [sheet[i // 4 * side + 4, i % 4 * side + 4, 0] for i in range(drawn)]
    assert corners == list(range(drawn))


def test_nothing_is_written_before_there_is_something(tmp_path):
    collected(tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_a_table_is_whole_or_not_there(tmp_path, monkeypatch):
    rows = [{"file": "a, b", "top": 'say "x"'}, {"file": "é", "more": 3}]
    write_table(tmp_path / "t.csv", rows)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"file": "a, b", "top": 'say "x"', "more": ""},
            {"file": "é", "top": "", "more": "3"},
        ]

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError):
        write_table(tmp_path / "other.csv", rows)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


class Detecting(Task):
    """Records as many results as its number says."""

    results = "found.json"

    def record(self, answer, example):
        values, files = super().record(answer, example)
        number = values["number"]
        results = [{"image_id": example["name"], "score": i / 4} for i in range(number)]
        return {**values, "results": results}, files


def test_results_are_one_list_in_the_order_of_the_split(tmp_path, monkeypatch):
    """Also those of other processes, and not in the table."""
    parts = []
    for own in ([3, 0], [2, 1]):  # of two processes
        about = {i: {"name": f"{i}.png", "size": (8, 8), "frame": ""} for i in own}
        records = Predictions(tmp_path / "out", Detecting(), Source(), about)
        for i in own:
            records.add({"number": np.int32(i)}, {"index": np.int32(i)})
        parts.append(records)
    told = [json.dumps(part._rows).encode() for part in parts]
    monkeypatch.setattr(predictions.processes, "gather_bytes", lambda own: told)
    parts[0].finish({"loss": 0.5})
    text = (tmp_path / "out" / "found.json").read_text()
    assert [(r["image_id"], r["score"]) for r in json.loads(text)] == [
        *[("1.png", 0.0), ("2.png", 0.0), ("2.png", 0.25)],
        *[("3.png", 0.0), ("3.png", 0.25), ("3.png", 0.5)],
    ]
    assert len(text.splitlines()) == 6  # one a line
    columns = {tuple(row) for row in read(tmp_path / "out")}
    assert columns == {("file", "number", "even", "frame")}


@pytest.mark.parametrize("found", [[], [{"score": 1}]])
def test_a_file_of_results_is_whole_json(found, tmp_path):
    predictions.write_records(tmp_path, Detecting(), [{"file": "a", "results": found}])
    assert json.loads((tmp_path / "found.json").read_text()) == found
