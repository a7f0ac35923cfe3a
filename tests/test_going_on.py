"""What may differ when a run goes on, and what a run tells of itself after it did."""

import json
from pathlib import Path

import pytest

from dynadapt import evaluate, files
from dynadapt.main import main

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).with_name("configs_tiny.py"))


def start(work, *more, arg="method=linear,steps=6"):
    return main(["train", f"--config={TINY}:{arg}", f"--workdir={work}", *more])


def steps(work):
    lines = (work / "metrics.jsonl").read_text().splitlines()
    return [r["step"] for r in map(json.loads, lines) if r["kind"] == "train"]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was killed in its final evaluation."""
    work = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", None)
        with pytest.raises(TypeError):
            start(work)
    assert not (work / "result.json").exists() and (work / "checkpoints" / "6").is_dir()
    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    ["input.threads=2", "save_every=3", "input.eval_batch_size=7", "backbone.scan", "eval_every=2"],
)
def test_what_does_not_touch_the_result_may_change(option, stopped, tmp_path):
    whole = tmp_path / "whole"
    assert start(whole) == 0 and start(stopped, f"--config.{option}") == 0
    name = "adapter/adapter.safetensors"
    assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_what_does_is_refused_by_name(stopped, capsys):
    assert start(stopped, "--config.optim.lr=0.5") == 2
    assert "optim.lr: 0.01 -> 0.5" in capsys.readouterr().err


def test_its_speed_is_that_of_its_steps(stopped):
    assert start(stopped) == 0
    assert files.read_json(stopped / "result.json")["images_per_second"] > 0
    assert steps(stopped)[-1] == 6


@pytest.mark.slow
def test_more_steps_where_the_schedule_allows_them(tmp_path, capsys):
    constant = ("--config.optim.schedule=constant", "--config.optim.warmup=0.0")
    work, whole = tmp_path / "run", tmp_path / "whole"
    assert start(work, *constant) == 0
    assert start(work, *constant, arg="method=linear,steps=9") == 0
    assert files.read_json(work / "result.json")["steps"] == 9
    assert start(whole, *constant, arg="method=linear,steps=9") == 0
    name = "adapter/adapter.safetensors"
    assert (work / name).read_bytes() == (whole / name).read_bytes()
    capsys.readouterr()
    assert start(work, *constant, arg="method=linear,steps=5") == 2
    assert "optim.steps 9, which can only be raised" in capsys.readouterr().err


def test_more_steps_of_a_cosine_would_change_what_is_done(tmp_path, capsys):
    work = tmp_path / "run"
    assert start(work) == 0
    capsys.readouterr()
    assert start(work, arg="method=linear,steps=9") == 2
    err = capsys.readouterr().err
    assert "9 would change the learning rate of the steps that are done" in err
    assert "cosine schedule with warmup 0.1" in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_batches_train(size, tmp_path):
    assert start(tmp_path / "run", f"--config.input.batch_size={size}") == 0


def test_half_precision_on_a_cpu_is_refused(tmp_path, capsys):
    work = tmp_path / "run"
    assert start(work, "--config.compute.dtype=float16") == 2
    assert "float32 or bfloat16" in capsys.readouterr().err and not work.exists()


def test_a_batch_larger_than_the_data(tmp_path, capsys):
    assert start(tmp_path / "run", "--config.input.train_split=train[:9]") == 2
    assert "at most 9" in capsys.readouterr().err
