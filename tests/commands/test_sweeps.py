"""The commands `sweep` and `report`: what they are told, the rows of a file, one sentence each."""

import json
import re
from pathlib import Path

import pytest

from dynadapt import files
from dynadapt.commands import config_file
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.sweep import estimate
from tests.data import cloud_layouts

pytestmark = pytest.mark.usefixtures("fast_compiling")

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "configs_tiny.py")
SUITE = str(ROOT / "configs" / "points_suite.py")
RUN = ["sweep", "run", f"--config={TINY}", "--workdir=W"]
# The rows with a backbone and clouds that take no time.
SMALL = f"""
import runpy

SUITE = runpy.run_path({SUITE!r})
get_rows = SUITE["get_rows"]


def get_config(arg=None):
    c = SUITE["get_config"](arg)
    c.backbone.update(dict(dim=16, heads=2, depth=2, groups=6, group_size=8, embed=4))
    c.task.points, c.optim.steps, c.input.batch_size = 32, 2, 3
    return c
"""

MISTAKES = {
    "no part": (["sweep"], "unknown part of sweep 'None'; choose one of run"),
    "another part": (["sweep", "report"], "unknown part of sweep 'report'"),
    "no config": (["sweep", "run", "--workdir=W"], "give a config"),
    "no workdir": (RUN[:3], "give --workdir="),
    "method": ([*RUN, "--methods=lorra"], "'lora'"),
    "variant": ([*RUN, "--methods=lora:rnk=2"], "'adapter.rank'"),
    "grid": ([*RUN, "--grid=optim.lr"], "must be such as --grid=optim.lr=1e-3,1e-2"),
    "a method's field": (
        [*RUN, "--methods=lora,linear", "--grid=adapter.rank=2,4"],
        "linear: unknown config field",
    ),
    "field of the grid": ([*RUN, "--grid=lr=1,2"], "did you mean 'optim.lr'"),
    "value of the grid": ([*RUN, "--grid=optim.lr=1e-3,fast"], "lr=fast must be a number"),
    "rate of the grid": ([*RUN, "--grid=optim.lr=1e-3,-1"], "optim.lr must be above 0, not -1"),
    "seeds": ([*RUN, "--seeds=zero"], "seeds must be whole numbers"),
    "shots": ([*RUN, "--shots=1,0"], "--shots must be whole numbers such as 1,2,4, not '0'"),
    "too few shots": (
        [*RUN, "--shots=1"],
        "give a smaller one, such as --config.input.batch_size=",
    ),
    "too many shots": ([*RUN, "--shots=200"], "fewer than 200 shots"),
    "folds and shots": ([*RUN, "--shots=2", "--folds=2"], "--folds or --shots, not both"),
    "one fold": ([*RUN, "--folds=1"], "there are 2 to 1000 folds"),
    "split": ([*RUN, "--config.input.train_split=tran"], "did you mean 'train'"),
    "no runs": (["report"], "name folders of runs"),
    "folder": (["report", "nowhere"], "there is no folder nowhere"),
    "folder of output": (["report", "T", "--out=no/where"], "in a folder that exists"),
    "option of another": (["report", "T", "--seeds=1"], "unknown option '--seeds=1'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, capsys, tmp_path):
    argv, text = MISTAKES[name]
    work = tmp_path / "work"
    assert main([a.replace("=W", f"={work}") for a in argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and text in shown.err and shown.err.count("\n") == 1, shown.err
    assert not work.exists()


def test_several_processes_of_one_job_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DISTRIBUTED", "1")
    assert main([*RUN[:3], f"--workdir={tmp_path}"]) == 2
    assert "without DYNADAPT_DISTRIBUTED" in capsys.readouterr().err


def test_a_file_offers_rows(tmp_path):
    file = tmp_path / "rows.py"
    file.write_text("def get_rows(arg):\n    return {'one': ['a=1'], 'two': [f'a={arg}', 'a=3']}\n")
    assert config_file.rows(f"{file}:2") == {
        "one": [f"{file}:a=1"],
        "two": [f"{file}:a=2", f"{file}:a=3"],
    }
    assert config_file.rows(f"{TINY}:steps=3") == {"": [f"{TINY}:steps=3"]}
    for wrong in ("return {}", "return ['a=1']", "return {'one': []}", "return {'one': [1]}"):
        file.write_text(f"def get_rows(arg):\n    {wrong}\n")
        with pytest.raises(ConfigError, match="get_rows in .* must return"):
            config_file.rows(str(file))
    file.write_text("def get_rows(arg):\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match="rows.py, line 2: ZeroDivisionError"):
        config_file.rows(str(file))


def test_the_3d_rows():
    rows = config_file.rows(f"{SUITE}:scanobjectnn=s,modelnet40=m")
    assert list(rows) == [
        *("OBJ-BG", "OBJ-ONLY", "PB-T50-RS", "ModelNet40"),
        *("5w10s", "5w20s", "10w10s", "10w20s"),
    ]
    assert [len(specs) for specs in rows.values()] == [1] * 4 + [10] * 4
    variants = [config_file.load(rows[r][0], []).data for r in list(rows)[:3]]
    assert [data.variant for data in variants] == ["obj_bg", "obj_only", "pb_t50_rs"]
    assert {data.path for data in variants} == {"s"}
    few = [config_file.load(spec, [], "method=linear") for spec in rows["10w20s"]]
    assert [c.data.fold for c in few] == list(range(10))
    assert {(c.data.ways, c.data.shots, c.data.path) for c in few} == {(10, 20, "m")}
    assert {c.adapter.name for c in few} == {"linear"}
    assert list(config_file.rows(f"{SUITE}:row=5w20s")) == ["5w20s"]
    with pytest.raises(ConfigError, match="unknown row 'PB'"):
        config_file.rows(f"{SUITE}:row=PB")


def test_the_3d_rows_are_planned_without_data(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "device_rate", lambda: 1e9)
    monkeypatch.chdir(tmp_path)
    argv = ["sweep", "run", f"--config={SUITE}", "--methods=dapt,linear", "--seeds=0"]
    assert main([*argv, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("88 cells") and "10w20s" in out
    shown = re.sub(r"\s+", " ", out)
    assert "OBJ-BG, OBJ-ONLY, PB-T50-RS: there is no folder ''; ask for h5_files.zip" in shown
    assert "ModelNet40, 5w10s, 5w20s, 10w10s, 10w20s: there is no folder ''; unpack" in shown
    assert main([*argv, "--workdir=work"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("dynadapt: OBJ-BG: there is no folder ''; ask for h5_files.zip")
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_3d_row_is_run_and_shown_plain_and_by_vote(capsys, tmp_path):
    cloud_layouts.scanobjectnn(tmp_path)
    work, file = tmp_path / "work", tmp_path / "small.py"
    file.write_text(SMALL)
    spec = f"{file}:row=OBJ-BG,scanobjectnn={tmp_path}"
    argv = ["sweep", "run", f"--config={spec}", "--methods=linear", "--seeds=0"]
    assert main([*argv, f"--workdir={work}"]) == 0
    (line,) = map(json.loads, (work / "results.jsonl").read_text().splitlines())
    assert (line["row"], line["metric"]) == ("OBJ-BG", "plain")
    result = files.read_json(work / line["folder"] / "result.json")
    assert line["metrics"] == {"vote@10": result["vote@10"]}
    capsys.readouterr()
    assert main(["report", str(work)]) == 0
    shown = capsys.readouterr().out
    assert "OBJ-BG: scanobjectnn test, points" in shown
    assert "┃ method ┃ plain" in shown and "┃ vote@10" in shown
    assert f"{result['vote@10']:.2f}" in shown and f"{result['plain']:.2f}" in shown
