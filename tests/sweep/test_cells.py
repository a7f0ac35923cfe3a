"""Sweeps of training runs: each run once, chosen without the test split, whatever happens."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dynadapt import files, train
from dynadapt.errors import TrainingError
from dynadapt.main import main
from dynadapt.sweep import cells, estimate, results
from tests.sweep import fake_runs

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")
RATES = {1e-2: 3.0, 1e-3: 5.0, 1e-1: 4.0}
RUN = [
    *("sweep", "run", f"--config={TINY}:steps=2", "--methods=lora,linear"),
    *("--grid=optim.lr=1e-2,1e-3,1e-1", "--config.input.train_split=train[:200]"),
]


@pytest.fixture
def runs(monkeypatch):
    """Runs that are faked; the list holds the config of each. The rate 0.001 is the best."""
    taken = []

    def run(config, folder):
        taken.append(config)
        fold = 10 * ("fold(1, 2)" in config.input.eval_split)
        score = 50 + fold + RATES[config.optim.lr] * (1 + config.seed)
        return fake_runs.leave(folder, config, score + (config.adapter.name == "lora"))

    monkeypatch.setattr(train, "run", run)
    return taken


def start(work, *more):
    return main([*RUN, f"--workdir={work}", *more])


def lines(work):
    drop = ("seconds",)
    return [{k: v for k, v in line.items() if k not in drop} for line in results.lines(work, "sweep run")]


def one_error(capsys):
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dynadapt: ")]
    assert len(said) == 1
    return said[0]


def test_the_best_point_is_trained_with_every_seed(runs, tmp_path):
    assert start(tmp_path / "work", "--seeds=0,1") == 0
    found = lines(tmp_path / "work")
    assert len(runs) == len(found) == 2 * (3 + 2)
    for method in ("lora", "linear"):
        own = [line for line in found if line["method"] == method]
        tuning = [line for line in own if line["stage"] == "tune"]
        final = [line for line in own if line["stage"] == "final"]
        assert {line["hyper"]["optim.lr"] for line in tuning} == set(RATES)
        assert {line["split"] for line in tuning} == {"train[:200]|fold(0, 5)"}
        assert {line["train_split"] for line in tuning} == {"train[:200]|rest(0, 5)"}
        assert [line["hyper"] for line in final] == [{"optim.lr": 1e-3}] * 2
        assert sorted(line["seed"] for line in final) == [0, 1]
        assert {line["split"] for line in final} == {"test[:40]"}
        assert {line["train_split"] for line in final} == {"train[:200]"}
    for config in runs:  # a run's folder says what it was trained on
        (line,) = [x for x in found if x["folder"].endswith(x["cell"])
                   and files.read_json(tmp_path / "work" / x["folder"] / "config.json")["config"]
                   == json.loads(config.to_json())]  # fmt: skip
        assert config.input.train_split == line["train_split"] and config.seed == line["seed"]


def test_a_point_is_chosen_for_each_fold_and_the_test_split_stays_closed(runs, tmp_path):
    assert start(tmp_path, "--folds=2") == 0
    found = lines(tmp_path)
    assert len(found) == 2 * 2 * (3 + 1) and {line["seed"] for line in found} == {0}
    assert not any("test" in line["split"] for line in found)
    finals = [line for line in found if line["stage"] == "final" and line["method"] == "lora"]
    assert [line["score"] for line in sorted(finals, key=lambda x: x["draw"])] == [56.0, 66.0]
    # One program serves all evaluations: 100 examples of a fold, 20 held out of the other.
    assert {config.input.eval_batch_size for config in runs} == {20}
    judged = {line["draw"]: line["split"] for line in finals}
    assert judged == {f"fold {i} of 2": f"train[:200]|fold({i}, 2)" for i in range(2)}


def test_shots_follow_the_seed(runs, tmp_path):
    more = "--shots=1,2", "--seeds=3,4", "--config.input.batch_size=8", "--grid=optim.lr=1e-3"
    assert start(tmp_path, *more) == 0
    finals = [line for line in lines(tmp_path) if line["stage"] == "final"]
    assert {line["train_split"] for line in finals} == {
        f"train[:200]|shots({n}, {seed})" for n in (1, 2) for seed in (3, 4)
    }


def test_without_a_choice_nothing_is_held_out(runs, tmp_path):
    argv = [a for a in RUN if not a.startswith("--grid")]
    assert main([*argv, f"--workdir={tmp_path}", "--seeds=7"]) == 0
    (one, other) = lines(tmp_path)
    assert one["stage"] == other["stage"] == "final" and one["hyper"] == {}
    assert one["train_split"] == "train[:200]"


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_sweep_ends_as_one_that_was_not(after, runs, tmp_path, monkeypatch):
    assert start(tmp_path / "whole", "--folds=2") == 0
    real, left = train.run, [after]

    def run(config, folder):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(config, folder)

    with monkeypatch.context() as patch:
        patch.setattr(train, "run", run)
        assert start(tmp_path / "cut", "--folds=2") == 130
    assert len(lines(tmp_path / "cut")) == after
    runs.clear()
    assert start(tmp_path / "cut", "--folds=2") == 0
    assert len(runs) == 16 - after and lines(tmp_path / "cut") == lines(tmp_path / "whole")
    runs.clear()
    assert start(tmp_path / "cut", "--folds=2") == 0 and not runs
    assert not list((tmp_path / "cut" / "claims").iterdir())


def test_two_processes_share_the_cells(runs, tmp_path, monkeypatch):
    """While the first run goes on, another sweep of the same folder does all the others."""
    monkeypatch.setattr(cells, "POLL", 0.05)
    first, other, real = threading.Event(), threading.Event(), train.run

    def run(config, folder):
        if not first.is_set():
            first.set()
            other.wait(20)
        elif len(list((tmp_path / "cells").glob("*.json"))) == 2:
            other.set()  # the grid's other points are done, so this one is waited for
        return real(config, folder)

    monkeypatch.setattr(train, "run", run)
    one = threading.Thread(target=start, args=(tmp_path, "--methods=lora"))
    one.start()
    assert first.wait(20)
    assert start(tmp_path, "--methods=lora,linear") == 0
    one.join(20)
    assert not one.is_alive()
    names = [line["cell"] for line in lines(tmp_path)]
    assert len(names) == len(set(names)) == len(runs) == 2 * (3 + 3)


def test_a_run_that_fails_is_recorded_and_takes_its_point_out(runs, tmp_path, monkeypatch, capsys):
    real = train.run

    def run(config, folder):
        result = real(config, folder)
        if config.optim.lr == 1e-3 or config.adapter.name == "linear":
            (folder / "result.json").unlink()
            raise TrainingError("the loss is not finite at step 1")
        return result

    monkeypatch.setattr(train, "run", run)
    assert start(tmp_path, "--seeds=0") == 0
    capsys.readouterr()
    finals = [line for line in lines(tmp_path) if line["stage"] == "final"]
    # The second-best rate; of `linear` no point is left to go on with.
    assert [(line["method"], line["hyper"]["optim.lr"]) for line in finals] == [("lora", 1e-1)]
    failed = [line for line in lines(tmp_path) if line["failed"]]
    assert len(failed) == 4 and {line["score"] for line in failed} == {None}
    runs.clear()
    assert start(tmp_path, "--seeds=0", "--json") == 0 and not runs
    assert len(json.loads(capsys.readouterr().out)["failed"]) == 4


def test_more_seeds_and_methods_go_on_and_another_grid_does_not(runs, tmp_path, capsys):
    assert start(tmp_path, "--methods=lora", "--seeds=0") == 0
    runs.clear()
    assert start(tmp_path, "--seeds=0,1") == 0
    assert len(runs) == 1 + 3 + 2
    capsys.readouterr()
    assert start(tmp_path, "--grid=adapter.rank=2,4", "--methods=lora") == 2
    assert "another grid" in one_error(capsys)
    assert start(tmp_path, "--config.optim.steps=3") == 2
    assert "results of lora with other settings" in one_error(capsys)


def test_a_dry_run_writes_nothing(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "device_rate", lambda: 1e9)
    assert start(tmp_path / "work", "--folds=2", "--dry_run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cells"] == 16 and not runs and not list(tmp_path.iterdir())
    (lora, linear) = found["rows"]
    assert (lora["tuning"], lora["final"], lora["steps"]) == (6, 2, 16)
    assert lora["flops"] > linear["flops"] > 0 and found["hours"] > 0
    assert lora["judged"] == "train[:200]|rest(0, 2)|fold(0, 5), train[:200]|fold(0, 2)"


@pytest.mark.slow
def test_real_runs_are_killed_and_go_on(tmp_path):
    """Runs of `train`, with all that they leave; the sweep is killed in its second one."""
    argv = ["sweep", "run", f"--config={TINY}:steps=4,method=linear", "--seeds=0,1"]
    killed = (
        "import signal\n"
        "from dynadapt import train\n"
        "from tests import stepping\n"
        "kill = stepping.killed_at(7, signal.SIGKILL)\n"
        "train.make_step = stepping.watched(train.make_step, kill)\n"
    )
    end = "import sys\nfrom dynadapt.main import main\nsys.exit(main(sys.argv[1:]))\n"
    argv.append(f"--workdir={tmp_path / 'cut'}")
    environment = {**os.environ, "PYTHONPATH": str(Path(TINY).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", killed + end, *argv, "--config.save_every=1"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert ran.returncode == -9, ran.stderr
    assert len(list((tmp_path / "cut" / "cells").iterdir())) == 1
    assert main(argv) == 0
    argv[-1] = f"--workdir={tmp_path / 'whole'}"
    assert main(argv) == 0
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for line in lines(tmp_path / "cut"):
        left = {path.name for path in (tmp_path / "cut" / line["folder"]).iterdir()}
        assert {"adapter", "checkpoints", "config.json", "metrics.jsonl", "result.json"} <= left
