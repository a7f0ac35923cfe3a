"""Reports of any runs: what is averaged, what is compared, what never stands in one row."""

import csv
import json
from pathlib import Path

import pytest

from dynadapt import config as configs
from dynadapt import files
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.main import main
from dynadapt.sweep import cells, paired, tables
from tests.sweep import fake_runs

# By method, of folds 0, 1 and 2. Differences to linear: 2, 3, 7 and -1, 1, 0.
SCORES = {"linear": (50.0, 60.0, 40.0), "lora": (52.0, 63.0, 47.0), "ssf": (49.0, 61.0, 40.0)}


def made(method="lora", **fields):
    c = configs.default(backbone="vit_mini", method=method, data_set="digits")
    for name, value in fields.items():
        section, field = name.split("__") if "__" in name else ("", name)
        (c[section] if section else c)[field] = value
    return c


def fold(c, i, k=3):
    c.input.train_split, c.input.eval_split = f"train|rest({i}, {k})", f"train|fold({i}, {k})"
    return c


@pytest.fixture
def folds(tmp_path):
    """Runs of three methods on three folds, as single runs."""
    for method, scores in SCORES.items():
        for i, score in enumerate(scores):
            fake_runs.leave(tmp_path / "folds" / method / str(i), fold(made(method), i), score)
    return tmp_path / "folds"


def test_means_deviations_and_paired_differences(folds):
    result = tables.make([folds], "linear")
    (part,) = result["tests"]
    assert part["title"] == "digits train|fold(*, 3) after train|rest(*, 3), classification"
    assert [row["method"] for row in part["rows"]] == ["lora", "linear", "ssf"]
    rows = {row["method"]: row for row in part["rows"]}
    assert rows["lora"]["score"] == {"mean": 54.0, "std": pytest.approx(8.1853528)}
    assert rows["lora"]["runs"] == 3 and rows["lora"]["scores"] == [52.0, 63.0, 47.0]
    lora, ssf = part["paired"]
    assert (lora["method"], lora["mean"], lora["wins"], lora["tasks"]) == ("lora", 4.0, 3, 3)
    half = 4.302652730 * 7**0.5 / 3**0.5  # Student's, two degrees of freedom
    assert lora["low"] == pytest.approx(4 - half) and lora["high"] == pytest.approx(4 + half)
    assert (ssf["mean"], ssf["over"]) == (0.0, "draws")
    assert result["notes"] == []


def test_seeds_within_folds_are_averaged_before_they_are_compared(folds):
    for method, scores in SCORES.items():
        for i, score in enumerate(scores):
            c = fold(made(method, seed=1), i)
            fake_runs.leave(folds / method / f"again{i}", c, score + 2 * (method == "lora"))
    (part,) = tables.make([folds], "linear")["tests"]
    assert part["rows"][0]["runs"] == 6 and part["paired"][0]["mean"] == 5.0
    expected = paired.interval([3.0, 4.0, 8.0])
    assert (part["paired"][0]["low"], part["paired"][0]["high"]) == pytest.approx(expected)


def test_without_folds_seeds_are_the_sample(tmp_path):
    for method, scores in SCORES.items():
        for seed, score in enumerate(scores):
            fake_runs.leave(tmp_path / f"{method}{seed}", made(method, seed=seed), score)
    (part,) = tables.make([tmp_path / f"{m}{s}" for m in SCORES for s in range(3)], "ssf")["tests"]
    assert {row["over"] for row in part["paired"]} == {"seeds"}
    assert part["paired"][0]["mean"] == 4.0


def test_a_lower_metric_is_better_where_it_says_so(tmp_path):
    for method, score in (("lora", 0.2), ("linear", 0.3)):
        more = dict(headline="abs_rel", better="lower", abs_rel=score)
        fake_runs.leave(tmp_path / method, made(method), 0.0, **more)
    result = tables.make([tmp_path], "linear")
    (part,) = result["tests"]
    assert [row["method"] for row in part["rows"]] == ["lora", "linear"]
    assert part["paired"][0]["mean"] == pytest.approx(0.1)


def test_other_tests_have_parts_of_their_own(tmp_path):
    c = made()
    fake_runs.leave(tmp_path / "a", c, 50.0)
    fake_runs.leave(tmp_path / "b", made(input__eval_split="test[:40]"), 60.0)
    fake_runs.leave(tmp_path / "c", made(input__train_split="train|shots(4, 0)"), 70.0)
    fake_runs.leave(tmp_path / "d", made(input__train_split="train|shots(4, 1)", seed=1), 80.0)
    fake_runs.leave(tmp_path / "e", made(seed=1), 90.0, eval_data="b" * 64)
    fake_runs.leave(tmp_path / "f", made(task__pool="cls"), 90.0)
    result = tables.make([tmp_path])
    scores = {part["title"]: [row["scores"] for row in part["rows"]] for part in result["tests"]}
    assert len(result["tests"]) == 5
    assert [[70.0, 80.0]] in scores.values()
    assert "digits (bbbbbbbb) test, classification" in scores
    assert result["notes"] == [
        "the runs are of 5 tests, whose data, tasks or training data differ: each has a part of "
        "its own"
    ]


def test_settings_that_differ_are_two_methods(tmp_path):
    for seed in (0, 1):
        fake_runs.leave(tmp_path / f"a{seed}", made(seed=seed), 50.0 + seed)
        fake_runs.leave(tmp_path / f"b{seed}", made(seed=seed, adapter__rank=4), 60.0 + seed)
    (part,) = tables.make([tmp_path])["tests"]
    rows = {row["method"]: row["scores"] for row in part["rows"]}
    assert rows == {"lora adapter.rank=8": [50.0, 51.0], "lora adapter.rank=4": [60.0, 61.0]}


def test_a_run_counts_once(folds):
    with pytest.raises(ConfigError, match="linear with fold 0, seed 0 is there twice: .*linear/0"):
        tables.make([folds, folds / "linear" / "0"])


def test_what_is_not_finished_or_collapsed_is_told(folds):
    (folds / "ssf" / "2" / "result.json").unlink()
    fake_runs.leave(folds / "lora" / "2", fold(made("lora"), 2), 40.0, collapsed=True)
    result = tables.make([folds], "linear")
    assert result["notes"] == [
        f"{folds / 'ssf' / '2'} is not finished, and left out",
        "1 of 3 runs of lora collapsed",
    ]
    rows = {row["method"]: row["runs"] for row in result["tests"][0]["rows"]}
    assert rows == {"linear": 3, "lora": 3, "ssf": 2}


def sweep(folder, failed=""):
    """A sweep of one row: rates that were chosen differ from seed to seed."""
    lines = []
    for seed, rate in enumerate((1e-2, 1e-3, 1e-2)):
        c = made(seed=seed, optim__lr=rate)
        line = {
            **dict(cell=f"c{seed}", row="mine", method="lora", draw="", stage="final", seed=seed),
            **dict(hyper={"optim.lr": rate}, folder=f"runs/{seed}", failed=""),
        }
        fake_runs.leave(folder / line["folder"], c, 50.0 + seed)
        if failed and seed == 2:
            (folder / line["folder"] / "result.json").unlink()
            line["failed"] = failed
        lines += [line, {**line, "cell": f"t{seed}", "stage": "tune", "folder": "runs/none"}]
    files.write_json(folder / "sweep.json", {"suite": cells.KIND})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_sweep_is_its_final_runs_whatever_was_chosen(tmp_path):
    fake_runs.leave(tmp_path / "one", made(optim__lr=1e-2), 70.0)
    (part,) = tables.make([sweep(tmp_path / "sweep")])["tests"]
    assert part["title"] == "mine: digits test, classification"
    assert [row["scores"] for row in part["rows"]] == [[50.0, 51.0, 52.0]]
    (part,) = tables.make([tmp_path / "sweep", tmp_path / "one"])["tests"]
    rows = {row["method"]: row["runs"] for row in part["rows"]}
    assert rows == {"lora optim.lr chosen": 3, "lora optim.lr=0.01": 1}


def test_failed_runs_of_a_sweep_are_told(tmp_path):
    result = tables.make([sweep(tmp_path / "sweep", "not finite")])
    assert result["tests"][0]["rows"][0]["runs"] == 2
    assert result["notes"] == ["1 of 3 runs of lora failed: not finite"]


def test_mistakes(folds, tmp_path):
    with pytest.raises(UnknownName, match="unknown baseline 'lnear'; did you mean 'linear'"):
        tables.make([folds], "lnear")
    with pytest.raises(ConfigError, match="there is no folder"):
        tables.make([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there is no finished run in"):
        tables.make([tmp_path / "empty"])
    files.write_json(tmp_path / "sweep.json", {"suite": "vtab"})
    with pytest.raises(ConfigError, match="vtab report"):
        tables.make([tmp_path])


def test_what_is_written(folds, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["report", str(folds), "--baseline=linear", f"--out={out}"]) == 0
    shown = capsys.readouterr().out
    assert "54.00±8.19" in shown and "+4.00" in shown and "-2.57 to +10.57" in shown
    assert {path.name for path in out.iterdir()} == {
        *("report.csv", "runs.csv", "report.tex", "report.png")
    }
    rows = list(csv.DictReader((out / "report.csv").read_text().splitlines()))
    assert [(row["method"], row["mean"], row["paired_wins"]) for row in rows] == [
        ("lora", "54.0", "3"), ("linear", "50.0", ""), ("ssf", "50.0", "1"),
    ]  # fmt: skip
    assert len(list(csv.DictReader((out / "runs.csv").read_text().splitlines()))) == 9
    tex = (out / "report.tex").read_text()
    assert r"lora & 54.00 $\pm$ 8.19 & 3 &" in tex and tex.count(r"\begin{tabular}") == 1
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_shots_are_a_curve(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for count in (4, 16):  # by name, 16 comes before 4
        for seed in (0, 1):
            c = made(seed=seed, input__train_split=f"train|shots({count}, {seed})")
            fake_runs.leave(tmp_path / "runs" / f"{count}-{seed}", c, 50.0 + count + seed)
    figures = []
    monkeypatch.setattr(tables, "write_figure", lambda figure, path: figures.append((path, figure)))
    result = tables.make([tmp_path / "runs"])
    assert [part["shots"] for part in result["tests"]] == [4, 16]
    tables.write(result, tmp_path / "out")
    assert [path.name for path, _ in figures] == ["report.png", "shots.png"]
    (axes,) = figures[1][1].axes
    assert axes.get_lines()[0].get_xydata().tolist() == [[4.0, 54.5], [16.0, 66.5]]


def test_json_answers_and_words_are_folders(folds, capsys):
    argv = ["report", str(folds / "lora"), str(Path(folds) / "ssf"), "--json"]
    assert main(argv) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in answer["tests"][0]["rows"]] == ["lora", "ssf"]
    assert main(["report", f"--runs={folds / 'lora'},{folds / 'ssf'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
