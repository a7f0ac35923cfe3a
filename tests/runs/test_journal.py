"""Records: whole lines, each once, across resumes; tables; sizes for people."""

import builtins
import io
import json
import sys
import types

import pytest
from PIL import Image

from dynadapt.errors import MachineError
from dynadapt.runs.journal import Journal, show_table, size_text


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_record(tmp_path):
    with Journal(tmp_path, 10) as journal:
        journal.record("train", 1, {"loss": 2.5})
        assert lines(tmp_path)[0]["loss"] == 2.5  # at once, not when the file is closed
        journal.progress(2, {"loss": 1.5, "images_per_second": 3.0})
        journal.record("eval", 2, {"top1": 50.0})
    found = [(r["kind"], r["step"]) for r in lines(tmp_path)]
    assert found == [("train", 1), ("train", 2), ("eval", 2)]
    assert all(isinstance(r["time"], float) for r in lines(tmp_path))


@pytest.mark.parametrize("cut", ["", '{"kind": "tra', '{"kind": "train", "step": 4, "loss": 1}'])
def test_a_resumed_run_drops_what_comes_again(cut, tmp_path):
    with Journal(tmp_path, 10) as journal:
        for step in (2, 4, 6):
            journal.record("train", step, {"loss": float(step)})
            journal.record("eval", step, {"top1": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(cut)
    with Journal(tmp_path, 10, resumed=4) as journal:
        journal.record("train", 6, {"loss": 60.0})
    found = [(r["kind"], r["step"]) for r in lines(tmp_path)]
    again = [("train", 4)] if cut.endswith("}") else []
    assert found == [("train", 2), ("eval", 2), ("train", 4), *again, ("train", 6)]


def test_a_run_from_the_start_begins_anew(tmp_path):
    with Journal(tmp_path, 10) as journal:
        journal.record("train", 2, {})
    with Journal(tmp_path, 10):
        pass
    assert lines(tmp_path) == []


def test_silent_writes_and_says_nothing(tmp_path, capsys):
    with Journal(tmp_path, 10, silent=True) as journal:
        journal.say("hello")
        journal.progress(1, {"loss": 1.0, "images_per_second": 3.0})
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_on_standard_error(tmp_path, capsys):
    with Journal(tmp_path, 10) as journal:
        journal.say("[bold]not markup[/bold] " + "long " * 50)
        journal.progress(1, {"loss": 1.25, "images_per_second": 3.0})
        journal.progress(5, {"loss": 1.0, "images_per_second": 3.0})
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1/10  loss 1.2500  3 images/s\n" in err
    assert "step 5/10" in err and "left" in err


def test_tensorboard_needs_its_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MachineError, match=r"dynadapt\[track\]"):
        Journal(tmp_path, 10, tensorboard=True)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the [track] extra")
    Image.new("RGB", (4, 2)).save(tmp_path / "sheet.png")
    with Journal(tmp_path, 10, tensorboard=True) as journal:
        journal.record("train", 1, {"loss": 2.5})
        journal.picture("predictions", 1, tmp_path / "sheet.png")
    assert b"predictions" in next(tmp_path.glob("events.*")).read_bytes()


def test_what_tensorboard_is_given(tmp_path, monkeypatch):
    """Also where the package isn't there: numbers but no tables, the picture that was written, and
    from where a run goes on."""
    told = []

    class SummaryWriter:
        def __init__(self, logdir, purge_step=None):
            told.append(purge_step)

        def add_scalar(self, tag, value, step):
            told.append((tag, value, step))

        def add_image(self, tag, pixels, step, dataformats):
            told.append((tag, pixels.tolist(), step, dataformats))

        def close(self):
            told.append("close")

    library = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", library)
    Image.new("RGB", (2, 1), (1, 2, 3)).save(tmp_path / "sheet.png")
    with Journal(tmp_path, 10, tensorboard=True, resumed=4) as journal:
        journal.record("eval", 5, {"top1": 2.5, "by class": {"a": {"top1": 1.0}}})
        journal.picture("predictions", 5, tmp_path / "sheet.png")
        journal.picture("none", 5, tmp_path / "missing.png")
    shown = ("predictions", [[[1, 2, 3], [1, 2, 3]]], 5, "HWC")
    assert told == [5, ("eval/top1", 2.5, 5), shown, "close"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3.5 * 2**20, "3.5 MiB"),
        (2**31, "2.00 GiB"),
    ],
)
def test_size_text(count, text):
    assert size_text(count) == text


def test_tables_keep_all_their_words():
    out = io.StringIO()
    path = "backbone/blocks/*/mlp/adapter/icon/dense/kernel"
    show_table("title", ["path", "count"], [[path, 1234567]], file=out, note="note")
    assert path in out.getvalue() and "1,234,567" in out.getvalue()
    assert "title" in out.getvalue() and "note" in out.getvalue()


def test_a_missing_number_is_an_empty_cell():
    out = io.StringIO()
    show_table("title", ["count"], [[1234567], [None]], file=out)
    assert "│ 1,234,567 │" in out.getvalue() and "│           │" in out.getvalue()
    assert "None" not in out.getvalue()
