"""The report: its arithmetic by hand, what it refuses, and what it looks like."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import pytest

from dynadapt.data import vtab
from dynadapt.errors import ConfigError, DataError, MachineError, UnknownName
from dynadapt.sweep import published, report


def task(group, title):
    return SimpleNamespace(group=group, title=title)


TASKS = {
    "pets": task("natural", "Pets"),
    "svhn": task("natural", "SVHN"),
    "eurosat": task("specialized", "EuroSAT"),
}

# top1 by method, task and seed (0, 1, 2). By hand: lora's natural mean is 76, 77, 81 by seed, its
# mean of groups 83, 83, 88, its mean of tasks 242/3, 243/3, 257/3.
TOP1 = {
    "lora": {"pets": (80, 82, 84), "svhn": (72, 72, 78), "eurosat": (90, 89, 95)},
    "linear": {"pets": (70, 71, 72), "svhn": (74, 74, 74), "eurosat": (90, 90, 94)},
}
TRAINED = {"lora": 294912, "linear": 0}


def line(method="lora", task="pets", seed=0, score=50.0, **changes):
    values = {
        "cell": f"{method}{task}{seed}",
        **dict(suite="vtab", form="tfds", protocol="vtab", protocol_digest="a" * 64),
        **dict(backbone="vit_b16", weights="vit_b16_augreg_in21k", weights_sha256="b" * 64),
        **dict(method=method, settings={"rank": 8} if method == "lora" else {}, task=task),
        **dict(stage="final", split="test", seed=seed, hyper={"lr": 0.001}, score=score),
        **dict(metric="top1", better="higher"),
        **dict(trained=TRAINED.get(method, 0), trained_with_head=TRAINED.get(method, 0) + 7690),
        **dict(backbone_parameters=85798656, data_fingerprint=f"of {task}"),
    }
    return {**values, **changes}


def lines(top1=TOP1, **changes):
    return [
        line(method, name, seed, value, **changes)
        for method, own in top1.items()
        for name, values in own.items()
        for seed, value in enumerate(values)
    ]


def written(folder, found, end=""):
    text = "".join(json.dumps(value, sort_keys=True) + "\n" for value in found)
    (folder / "results.jsonl").write_text(text + end)
    return folder


@pytest.fixture
def result(tmp_path):
    tuned = line("lora", "pets", 0, 1.0, stage="tune", split="val200", hyper={"lr": 1.0})
    return report.make(written(tmp_path, [tuned, *lines()]), tasks=TASKS)


def make(folder, found, partial=False, tasks=TASKS):
    return report.make(written(folder, found), partial, tasks)


def approx(mean, std):
    return pytest.approx({"mean": mean, "std": std}, abs=1e-9)


def test_means_by_hand(result):
    lora, linear = result["rows"]
    assert [lora["method"], linear["method"]] == ["lora", "linear"]
    assert lora["tasks"]["pets"] == approx(82, 2)  # deviations -2, 0, 2: sqrt(8 / 2)
    assert lora["tasks"]["svhn"] == approx(74, 12**0.5)  # -2, -2, 4: sqrt(24 / 2)
    assert lora["groups"]["natural"] == approx(78, 7**0.5)  # -2, -1, 3: sqrt(14 / 2)
    assert lora["groups"]["specialized"] == approx(274 / 3, (31 / 3) ** 0.5)
    assert lora["mean_of_groups"] == approx(254 / 3, (25 / 3) ** 0.5)  # 83, 83, 88
    # 242, 243 and 257 thirds: deviations of -16, -13 and 29 ninths
    assert lora["mean_of_tasks"] == approx(742 / 9, ((256 + 169 + 841) / 81 / 2) ** 0.5)
    assert linear["tasks"]["svhn"] == approx(74, 0)
    # 81, 81.25 and 83.5: deviations of -11, -8 and 19 twelfths
    assert linear["mean_of_groups"] == approx(983 / 12, (546 / 144 / 2) ** 0.5)
    assert (lora["trained"], lora["trained_with_head"]) == (294912, 302602)
    assert lora["seeds"] == [0, 1, 2] and lora["settings"] == {"rank": 8}


def test_ranks_share_ties(result):
    # pets: 1 and 2. svhn: 74 each. eurosat: 274/3 each, from other seeds.
    assert [row["rank"] for row in result["rows"]] == pytest.approx([4 / 3, 5 / 3])


def test_ranks_of_three():
    rows = [{"tasks": {"a": {"mean": value}}} for value in (50.0, 70.0, 50.0)]
    assert report.ranks(rows, ["a"]) == [2.5, 1.0, 2.5]
    assert report.ranks(rows, []) == [None] * 3


def named(result, method):
    return next(row for row in result["rows"] if row["method"] == method)


def test_the_best_rank_comes_first(result):
    ranks = [row["rank"] for row in result["rows"]]
    assert ranks == sorted(ranks) and len(set(ranks)) > 1


def test_title_and_facts(result):
    assert result["title"] == (
        "VTAB-1K from tfds, protocol vtab (aaaaaaaa), vit_b16 (vit_b16_augreg_in21k), "
        "3 seeds, mean ± std"
    )
    assert not result["partial"] and result["gaps"] == []
    assert json.loads(json.dumps(result)) == result


def test_one_seed_has_no_deviation(tmp_path):
    result = make(tmp_path, [found for found in lines() if found["seed"] == 1])
    row = named(result, "lora")
    assert row["tasks"]["pets"] == {"mean": 82, "std": None}
    assert row["mean_of_groups"] == {"mean": 83, "std": None}
    assert "±" not in report.render.markdown(result) and result["title"].endswith(", 1 seed")


# What keeps a table from being full.


def test_missing_tasks_are_refused(tmp_path):
    found = [v for v in lines() if (v["method"], v["task"]) != ("lora", "svhn")]
    with pytest.raises(ConfigError, match="lora has no test result for 1 of 3 tasks: svhn; --part"):
        make(tmp_path, found)
    result = make(tmp_path, found, partial=True)
    assert result["title"].startswith("PARTIAL, means over 2 of 3 tasks: VTAB-1K")
    lora, linear = result["rows"]
    assert lora["tasks"]["svhn"] is None and linear["tasks"]["svhn"] == approx(74, 0)
    # Means of both are over the tasks that both have.
    assert linear["groups"]["natural"] == approx(71, 1)
    assert linear["mean_of_tasks"]["mean"] == pytest.approx((71 + 274 / 3) / 2)
    assert [t["common"] for t in result["tasks"]] == [True, False, True]
    text = report.render.markdown(result)
    assert "natural (1 of 2)" in text and "mean of 2 of 3 tasks" in text
    assert "- lora has no test result for 1 of 3 tasks: svhn" in text


def test_a_group_without_tasks_has_no_mean(tmp_path):
    result = make(tmp_path, [v for v in lines() if v["task"] != "eurosat"], partial=True)
    row = result["rows"][0]
    assert row["groups"]["specialized"] is None and row["mean_of_groups"] is None
    assert row["mean_of_tasks"]["mean"] == pytest.approx(78)


def test_methods_that_share_no_task(tmp_path):
    found = [line("lora", "pets"), line("linear", "svhn")]
    result = make(tmp_path, found, partial=True)
    for row in result["rows"]:
        assert row["rank"] is row["mean_of_tasks"] is row["mean_of_groups"] is None
    report.show(result)
    for suffix in ("md", "csv", "tex"):
        report.write(result, tmp_path / f"table.{suffix}")


def test_uneven_seeds_are_refused(tmp_path):
    found = [v for v in lines() if (v["method"], v["task"], v["seed"]) != ("lora", "svhn", 2)]
    with pytest.raises(ConfigError, match="seeds are uneven: lora on svhn has no seed 2; --part"):
        make(tmp_path, found)
    result = make(tmp_path, found, partial=True)
    assert result["title"].startswith("PARTIAL, means over 3 of 3 tasks, uneven seeds: ")
    lora = named(result, "lora")
    assert lora["tasks"]["svhn"] == approx(72, 0)
    assert lora["groups"]["natural"] == {"mean": 77, "std": None}


def test_uneven_seeds_between_methods_are_refused(tmp_path):
    found = [v for v in lines() if (v["method"], v["seed"]) != ("linear", 0)]
    match = "uneven: linear on pets and 2 more has no seed 0"
    with pytest.raises(ConfigError, match=match):
        make(tmp_path, found)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"protocol_digest": "c" * 64}, "2 protocols, vtab aaaaaaaaaaaa and vtab cccccccccccc"),
        ({"protocol": "noah"}, "2 protocols, vtab .* and noah"),
        ({"backbone": "vit_l16"}, "2 backbones, vit_b16 and vit_l16"),
        ({"weights_sha256": "c" * 64}, "2 weights, "),
        ({"suite": "offline"}, "2 suites, vtab and offline"),
        ({"form": "folder"}, "2 forms of the data, tfds and folder"),
        ({"settings": {"rank": 4}}, 'settings of lora, {"rank": 8} and {"rank": 4}'),
        ({"trained": 5}, "2 counts of trained parameters of lora, 294912 and 5"),
        ({"hyper": {"lr": 0.1}}, "2 hyper-parameters of lora on eurosat"),
        ({"data_fingerprint": "x"}, "2 versions of the data of eurosat"),
        ({"split_fingerprint": "x"}, "2 versions of the test data of eurosat"),
        ({"seed": 0}, "lora on eurosat with seed 0 is there twice"),
    ],
)
def test_results_that_do_not_belong_together(changes, match, tmp_path):
    found = lines()
    place = [(v["method"], v["task"], v["seed"]) for v in found].index(("lora", "eurosat", 2))
    found[place].update(changes)
    for partial in (False, True):
        with pytest.raises(ConfigError, match=match) as caught:
            make(tmp_path, found, partial)
        assert "\n" not in str(caught.value)


def test_tuning_under_another_protocol_is_refused(tmp_path):
    stranger = line(stage="tune", protocol_digest="c" * 64)
    with pytest.raises(ConfigError, match="2 protocols"):
        make(tmp_path, [*lines(), stranger])


# Files that can't be read.


def test_a_line_that_was_cut_is_named(tmp_path):
    half = json.dumps(line())[:50]
    folder = written(tmp_path, lines(), end=half)
    with pytest.raises(DataError, match=r"line 19 of .*results\.jsonl was not written to its end"):
        report.make(folder, tasks=TASKS)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"cell": \n', "line 19 of .* is broken"),
        ("[1]\n", "line 19 of .* is not a result"),
        ("\n", "line 19 of .* is broken"),
        ("{}\n", "line 19 of .* has no field 'suite'"),
        (json.dumps(line(score="high")) + "\n", "line 19 of .* has score='high'"),
        (json.dumps(line(score=True)) + "\n", "line 19 of .* has score=True"),
    ],
)
def test_broken_lines_are_named(text, match, tmp_path):
    with pytest.raises(DataError, match=match):
        report.make(written(tmp_path, lines(), end=text), tasks=TASKS)


def test_no_results(tmp_path):
    with pytest.raises(ConfigError, match="there is no .*results.jsonl; `dynadapt vtab run"):
        report.make(tmp_path)
    with pytest.raises(ConfigError, match="no cell is finished"):
        make(tmp_path, [])
    with pytest.raises(ConfigError, match="all 1 results are of the tuning stage"):
        make(tmp_path, [line(stage="tune")])


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownName, match="unknown task 'pest'; did you mean 'pets'"):
        make(tmp_path, [line(task="pest")])
    with pytest.raises(UnknownName, match="unknown suite 'vtap'; did you mean 'vtab'"):
        make(tmp_path, [line(suite="vtap")], tasks=None)


# Published rows.

LORA = next(row for row in published.ROWS if row.title == "LoRA-8")


def whole_suite(method="lora", add=1.0, **changes):
    settings = {"rank": 8, "targets": ["q", "v"]}
    base = dict(settings=settings, protocol="noah", form="folder")
    rows = LORA.top1.items()
    return [line(method, t, 0, value + add, **{**base, **changes}) for t, value in rows]


def test_published_rows_of_the_same_protocol(tmp_path):
    result = make(tmp_path, whole_suite(), tasks=vtab.TASKS)
    titles = [row["method"] for row in result["published"]]
    assert len(titles) == 7 and "SSF" not in titles and "Full" not in titles
    lora = result["published"][titles.index("LoRA-8")]
    assert lora["tasks"]["svhn"] == {"mean": 85.3, "std": None} and lora["trained"] == 290000
    assert lora["mean_of_tasks"]["mean"] == pytest.approx(72.25, abs=0.01)
    assert lora["mean_of_groups"]["mean"] == pytest.approx(74.60, abs=0.01)
    (difference,) = result["differences"]
    assert difference["method"] == "lora - LoRA-8"
    assert all(v["mean"] == pytest.approx(1) for v in difference["tasks"].values())
    assert difference["mean_of_groups"]["mean"] == pytest.approx(1)
    notes = "\n".join(result["notes"])
    assert "not compared, of protocol ssf: SSF" in notes
    assert "of protocol vpt: Full, Linear, BitFit, VPT-Shallow, VPT-Deep" in notes
    assert "best epoch on the test set" in notes and "shared folder" not in notes
    text = report.render.markdown(result)
    assert (
        "| LoRA-8 (published) | 79.49 |" in text
        and "| 0.29 M |  |" in text
        and "| lora - LoRA-8 | +1.00 |" in text
    )


def test_published_rows_over_the_tasks_that_are_there(tmp_path):
    result = make(tmp_path, whole_suite()[:2], True, vtab.TASKS)
    lora = next(row for row in result["published"] if row["method"] == "LoRA-8")
    assert lora["mean_of_tasks"]["mean"] == pytest.approx((67.1 + 91.4) / 2)
    assert lora["mean_of_groups"] is None
    assert result["differences"][0]["mean_of_tasks"]["mean"] == pytest.approx(1)
    assert result["differences"][0]["tasks"]["dtd"] is None


def test_other_settings_have_no_difference(tmp_path):
    settings = {"rank": 4, "targets": ["q", "v"]}
    result = make(tmp_path, whole_suite(settings=settings), tasks=vtab.TASKS)
    assert result["differences"] == [] and len(result["published"]) == 7
    assert "lora has no difference to LoRA-8: rank is 8 there, 4 here" in result["notes"]


def test_images_of_another_form_are_told(tmp_path):
    result = make(tmp_path, whole_suite(form="tfds"), tasks=vtab.TASKS)
    assert "published rows read the shared folder, not the images of tfds" in result["notes"]


def test_our_protocol_has_no_published_rows(tmp_path):
    result = make(tmp_path, whole_suite(protocol="vtab"), tasks=vtab.TASKS)
    assert result["published"] == result["differences"] == []
    told = [note for note in result["notes"] if note.startswith("not compared, of protocol ")]
    assert len(told) == 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"backbone": "vit_l16"}, "so not compared with vit_l16 with vit_b16_augreg_in21k"),
        ({"weights": ""}, "so not compared with vit_b16 with random weights"),
        ({"weights": "vit_b16_mae"}, "so not compared with vit_b16 with vit_b16_mae"),
    ],
)
def test_published_rows_of_another_backbone(changes, match, tmp_path):
    result = make(tmp_path, whole_suite(**changes), tasks=vtab.TASKS)
    assert result["published"] == [] and match in result["notes"][0]


def test_the_offline_suite_has_no_published_rows(tmp_path):
    result = make(tmp_path, [line(suite="offline", task=name) for name in TASKS])
    assert result["published"] == result["notes"] == []
    assert result["title"].startswith("offline suite, protocol")


# What it looks like.

MARKDOWN = """\
**VTAB-1K from tfds, protocol vtab (aaaaaaaa), vit_b16 (), 3 seeds, mean ± std**

means:

| method | natural (2) | specialized (1) | mean of 2 groups | mean of 3 tasks | trained | rank |
| --- | --- | --- | --- | --- | --- | --- |
| lora | 78.00 ± 2.65 | 91.33 ± 3.21 | 84.67 ± 2.89 | 82.44 ± 2.80 | 294,912 | 1.33 |
| linear | 72.50 ± 0.50 | 91.33 ± 2.31 | 81.92 ± 1.38 | 78.78 ± 1.07 | 0 | 1.67 |

natural:

| method | Pets | SVHN |
| --- | --- | --- |
| lora | 82.00 ± 2.00 | 74.00 ± 3.46 |
| linear | 71.00 ± 1.00 | 74.00 ± 0.00 |

specialized:

| method | EuroSAT |
| --- | --- |
| lora | 91.33 ± 3.21 |
| linear | 91.33 ± 2.31 |
"""


def test_markdown(result, tmp_path):
    report.write(result, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    assert (
        text.split("\n- ")[0].rstrip() == MARKDOWN.replace("()", "(vit_b16_augreg_in21k)").rstrip()
    )
    assert len(text.split("\n- ")) == 4  # one for each protocol of the published rows


def test_csv(result, tmp_path):
    report.write(result, tmp_path / "table.CSV")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.CSV").read_text())))
    assert [(r["kind"], r["method"], r["trained"]) for r in rows] == [
        ("ours", "lora", "294912"),
        ("ours", "linear", "0"),
    ]
    assert rows[0]["svhn"] == "74.0" and rows[0]["svhn_std"] == "3.4641"
    assert rows[0]["mean_of_groups"] == "84.6667" and rows[0]["seeds"] == "0 1 2"
    assert rows[0]["protocol_digest"] == "a" * 64 and rows[0]["partial"] == ""


def test_csv_of_published_rows(tmp_path):
    text = report.render.comma_separated(make(tmp_path, whole_suite(), tasks=vtab.TASKS))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["kind"] for row in rows] == ["ours", *["published"] * 7, "differences"]
    assert rows[-1]["svhn"] == "1.0" and rows[0]["svhn_std"] == ""


LATEX = r"""
\midrule
lora & $82.00 \pm 2.00$ & $74.00 \pm 3.46$ & $91.33 \pm 3.21$ & $78.00 \pm 2.65$ &
 $91.33 \pm 3.21$ & $84.67 \pm 2.89$ & $82.44 \pm 2.80$ & 294,912 & 1.33 \\
"""


def test_latex(result, tmp_path):
    report.write(result, tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    assert LATEX.replace("&\n", "&") in text
    assert r"vit\_b16 (vit\_b16\_augreg\_in21k), 3 seeds, mean $\pm$ std}" in text
    begins = [name for name in ("table", "tabular") if f"\\begin{{{name}}}" in text]
    assert begins == ["table", "tabular"] and text.count("\\end{") == 2
    columns = text.split("\\begin{tabular}{")[1].split("}")[0]
    for row in text.split("\\\\\n")[:-1]:
        assert row.count("&") == len(columns) - 1


def test_show(result, capsys):
    report.show(result)
    out = capsys.readouterr().out
    assert out.startswith("VTAB-1K from tfds, protocol vtab")
    assert "82.44±2.80" in out and "EuroSAT" in out and "- not compared, of protocol vpt" in out


def test_unknown_suffix(result, tmp_path):
    with pytest.raises(UnknownName, match="unknown suffix of --out '.mkd'; did you mean '.md'"):
        report.write(result, tmp_path / "table.mkd")
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl"}


def test_plots_without_matplotlib(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MachineError, match=r"plots need matplotlib: pip install 'dynadapt\[viz\]'"):
        report.write(result, tmp_path / "table.png")
    assert not (tmp_path / "table.png").exists()


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_plots(suffix, start, result, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra [viz]")
    report.write(result, tmp_path / f"table.{suffix}")
    assert (tmp_path / f"table.{suffix}").read_bytes().startswith(start)


# Paired differences, and runs that failed.


@pytest.mark.parametrize("suffix", [".md", ".csv", ".tex", ".png"])
def test_differences_stand_in_every_form(suffix, tmp_path, capsys):
    found = report.make(written(tmp_path, lines()), tasks=TASKS, against="linear")
    # By task lora is ahead by 11, 0 and 0; Student's t of 2 degrees is 4.303.
    [row] = found["paired"]
    assert (row["method"], row["wins"], row["tasks"]) == ("lora", 1, 3)
    assert row["mean"] == pytest.approx(11 / 3) and row["low"] < 0 < row["high"]
    report.show(found)
    assert "against linear" in capsys.readouterr().out
    out = tmp_path / f"table{suffix}"
    report.write(found, out)
    if suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
        assert [r["paired_mean"] for r in rows] == [str(row["mean"]), ""]
    elif suffix != ".png":
        assert "+3.67" in out.read_text() and "1 of 3" in out.read_text()


def test_runs_that_failed_are_named(tmp_path):
    found = lines()
    found[0]["collapsed"] = found[3]["collapsed"] = True
    found[1]["diverged"] = 7
    notes = report.make(written(tmp_path, found), tasks=TASKS)["notes"]
    assert "2 of 9 runs of lora collapsed, on pets, svhn" in notes
    assert "1 of 9 runs of lora diverged, on pets" in notes
