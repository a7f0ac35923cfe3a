"""Dashboards: what they are told, a run that goes on, what they may break, and what is missing."""

import json
import sys

import pytest

from dynadapt import config as configs
from dynadapt.errors import MachineError
from dynadapt.runs import sinks
from dynadapt.runs.journal import Journal
from tests import dashboards

CONFIG = {"optim": {"lr": 0.1}, "seed": 0}


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    return dashboards.install(tmp_path / "site", monkeypatch)


def journal(folder, resumed=0, to=configs.SINKS, **more):
    return Journal(folder, 10, to=to, config=CONFIG, resumed=resumed, **more)


def test_every_sink_of_a_config_can_be_opened():
    assert sorted(sinks.OPEN) == list(configs.SINKS)


def test_they_get_the_numbers(libraries, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    with journal(folder) as told:
        told.record("train", 2, {"loss": 1.5})
        told.record("eval", 2, {"top1": 50.0, "by class": {"a": {"top1": 50.0}}})
    wandb, mlflow = (library.told for library in libraries)
    begun = dict(project="dynadapt", name="run", resume="allow", config=CONFIG)
    ids = json.loads((folder / sinks.FILE).read_text())
    assert ids["mlflow"] == "0123abcd"
    logged = [("log", 2, {"train/loss": 1.5}), ("log", 2, {"eval/top1": 50.0})]
    assert wandb == [("init", begun | {"id": ids["wandb"]}), *logged, ("finish", 0)]
    flat = {"optim.lr": 0.1, "seed": 0}
    assert mlflow == [("start", None, "run"), ("params", flat), *logged, ("end", "FINISHED")]


def test_a_run_that_goes_on_is_the_same_one_there(libraries, tmp_path):
    for resumed in (0, 4):
        with pytest.raises(MemoryError), journal(tmp_path, resumed) as told:
            told.record("train", resumed + 1, {"loss": 1.5})
            raise MemoryError
    wandb, mlflow = (library.told for library in libraries)
    assert wandb[0] == wandb[3] and wandb[2] == wandb[5] == ("finish", 1)
    starts = [row for row in mlflow if row[0] in ("start", "params", "end")]
    assert [row[:2] for row in starts[:3]] == [
        ("start", None), ("params", configs.flat(CONFIG)), ("end", "FAILED"),
    ]  # fmt: skip
    assert starts[3:] == [("start", "0123abcd", None), ("end", "FAILED")]


def test_other_processes_tell_nothing(libraries, tmp_path):
    with journal(tmp_path, silent=True) as told:
        told.record("train", 2, {"loss": 1.5})
    assert [library.told for library in libraries] == [[], []]
    assert list(tmp_path.iterdir()) == [tmp_path / "site"]


def test_one_that_is_away_ends_no_run(libraries, tmp_path, monkeypatch, capsys):
    def away(*_, **__):
        raise ConnectionError("no answer from the server")

    monkeypatch.setattr(libraries[1], "log_metrics", away)
    monkeypatch.setattr(libraries[0].Run, "__exit__", away)
    with journal(tmp_path) as told:
        for step in (1, 2):
            told.record("train", step, {"loss": 1.5})
    err = capsys.readouterr().err
    assert err.count("warning: mlflow gets no more numbers of this run: no answer") == 1
    assert err.count("warning: log.sinks: no answer from the server") == 1
    assert err.count("warning") == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert [row[1] for row in libraries[0].told if row[0] == "log"] == [1, 2]


def test_one_that_does_not_start_is_told_before_anything_is_trained(
    libraries, tmp_path, monkeypatch
):
    def refused(**_):
        raise ValueError("api_key not configured")

    monkeypatch.setattr(libraries[0], "init", refused)
    with pytest.raises(MachineError, match="wandb does not start: api_key not configured"):
        journal(tmp_path)
    assert libraries[1].told[-1] == ("end", "FAILED")  # it was open by then


@pytest.mark.parametrize("name", configs.SINKS)
def test_a_missing_library_names_its_extra(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()  # what an earlier run left there is no library
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MachineError, match=rf"pip install 'dynadapt\[{name}\]'"):
        sinks.check([name])
