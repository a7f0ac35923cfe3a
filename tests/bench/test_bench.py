import subprocess
import sys

import pytest

from dynadapt import bench
from dynadapt.bench import dynamic, forward
from dynadapt.errors import ConfigError, MachineError


def test_interleaved_asks_in_turn_and_turns_round():
    asked = []

    def ask(name):
        return lambda: asked.append(name) or float(len(asked))

    readings = bench.interleaved([ask("a"), ask("b")], 3)
    assert asked == list("baabba")
    assert readings == [[2.0, 3.0, 6.0], [1.0, 4.0, 5.0]]


def test_ratio():
    found = bench.ratio([1.0, 4.0, 3.0], [2.0, 2.0, 2.0])
    assert found == dict(ratio=1.5, lowest=0.5, highest=2.0, minima=0.5)
    assert bench.milliseconds([0.001, 0.5, 0.002]) == 2.0


def test_a_worker_answers_whenever_it_is_asked():
    worker = bench.Worker(sys.executable, "from dynadapt_bench import answer\nanswer(lambda: 0)")
    try:
        assert all(0 <= worker.ask() < 5 for _ in range(3))
        assert 0 <= worker.first < 5 and worker.peak() > 2**20
    finally:
        worker.stop()
    assert worker.process.returncode is not None


def test_a_worker_that_cannot_start():
    with pytest.raises(ConfigError, match="cannot run '/none/python': No such file"):
        bench.Worker("/none/python", "")
    with pytest.raises(
        MachineError, match="process ended: ModuleNotFoundError: No module.*'nowhere'"
    ):
        bench.Worker(sys.executable, "import nowhere")


@pytest.mark.slow
def test_forward_of_ours_alone(capsys):
    result = forward.run(None, ["vit_mini"], 2, 2)
    (row,) = result["rows"]
    assert row["backbone"] == "vit_mini" and row["images_per_second"] > 0
    bench.show(result)
    assert "vit_mini" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is no reference of 'vit_mini'"):
        forward.run(sys.executable, ["vit_mini"], 2, 2)


@pytest.mark.slow
def test_dynamic_forms_are_timed_and_counted(monkeypatch, capsys):
    monkeypatch.setattr(
        dynamic, "cases", lambda: [("depthwise", (2, 5, 4, 3)), ("full", (2, 5, 4, 3))]
    )
    result = dynamic.run(None, 2)
    forms = [(r["kind"], r["dtype"], r["form"]) for r in result["rows"]]
    assert ("depthwise", "float32", "definition") in forms and (
        "full",
        "bfloat16",
        "in use",
    ) in forms
    assert all(r["mflop"] >= 0 and r["ms"] > 0 for r in result["rows"])
    bench.show(result)
    assert "definition" in capsys.readouterr().out


def test_many_columns_are_shown_as_lines(capsys):
    rows = [{f"column{i}": 10 * r + i for i in range(bench.WIDEST + 1)} for r in range(2)]
    bench.show(dict(machine="here", rows=rows))
    lines = capsys.readouterr().out.splitlines()
    assert any("column3" in line and " 3 " in line and " 13 " in line for line in lines)


@pytest.mark.slow
def test_the_command_names_the_benchmarks():
    done = subprocess.run(
        [sys.executable, "-m", "dynadapt", "bench", "forwards"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "did you mean 'forward'" in done.stderr
