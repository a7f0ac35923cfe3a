"""The closing table and the commands that it names."""

import shlex
from pathlib import Path

import pytest

from dynadapt import config
from dynadapt.commands import COMMANDS
from dynadapt.errors import ConfigError
from dynadapt.runs import report


def result(method, **changes):
    return {
        "method": method,
        "headline": "top1",
        "top1": 91.234,
        "trained": 65600,
        "trained_with_head": 66890,
        "backbone": 1_200_000,
        "adapter_bytes": 270_000,
        "images_per_second": 456.7,
        "adapter": f"runs/x/{method}/adapter",
        **changes,
    }


def commands(text):
    found = (line.split("dynadapt ", 1)[1] for line in text.splitlines() if "dynadapt " in line)
    return [shlex.split(line) for line in found]


def test_one_run(capsys):
    others = "train --config=configs/quickstart.py --methods=all --workdir=runs/all"
    report.show([result("lora")], Path("runs/x"), others)
    out = capsys.readouterr().out
    for part in ("lora", "91.23", "65,600", "66,890", "5.47 %", "263.7 KiB", "457", "runs/x"):
        assert part in out
    assert commands(out) == [
        ["eval", "--workdir=runs/x"],
        shlex.split(others),
    ]


def test_several_runs(capsys):
    rows = [result("lora"), result("iconformer", top1=93.5)]
    report.show(rows, Path("runs/all"))
    out = capsys.readouterr().out
    assert "lora" in out and "iconformer" in out and "93.50" in out
    (command,) = commands(out)
    assert command == ["eval", "--workdir=runs/all/iconformer"] and command[0] in COMMANDS


def test_hints_name_the_users_command(capsys, monkeypatch):
    monkeypatch.setenv("DYNADAPT_COMMAND", "launch/local.sh")
    report.show([result("lora")], Path("runs/x"))
    assert "launch/local.sh eval --workdir=runs/x" in capsys.readouterr().out


def test_metrics(capsys):
    report.show_metrics({"method": "lora", "top1": 91.23456, "examples": 797})
    out = capsys.readouterr().out
    assert "lora" in out and "91.2346" in out and "797" in out


def test_metrics_of_classes_have_a_table(capsys):
    classes = {"sky": {"iou": 50.0, "acc": 75.5}, "road": {"iou": 12.34567}}
    report.show_metrics({"miou": 31.17, "classes": classes})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["│", "sky", "│", "50.0000", "│", "75.5000", "│"] in lines
    assert ["│", "road", "│", "12.3457", "│", "│"] in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [(96.239, "96.24"), (0.08412, "0.0841"), (0.0, "0.0000"), (3, "3"), ("a", "a")],
)
def test_numbers_are_short(value, text):
    assert report.number_text(value) == text


def test_check_all_lists_each_problem_once():
    good = config.default(backbone="vit_mini", data_set="digits")
    report.check_all([good])
    bad = config.default(backbone="vit_mini", data_set="digits")
    bad.optim.lr = -1.0
    worse = config.default(backbone="vit_mini", data_set="digits")
    worse.optim.lr = -1.0
    worse.optim.ema = 1.5
    with pytest.raises(ConfigError) as caught:
        report.check_all([good, bad, worse])
    assert len(caught.value.problems) == 2
