"""What a sweep will take: its cells counted by hand, its FLOPs and its time as they add up."""

import json
from pathlib import Path

import pytest

from dynadapt.backbones import vit
from dynadapt.main import main
from dynadapt.sweep import estimate
from dynadapt.sweep.population import Population
from tests.tiny_sweep import TINY

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "tests" / "configs_sweep.py")


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.VARIANTS, "vit_tiny", TINY)
        yield


def options(work, *more, arg="lrs=3,scales=2", methods="lora,ssf"):
    return [
        *("vtab", "run", "--dry_run", f"--config={CONFIG}:{arg}", f"--workdir={work}"),
        *("--suite=offline", "--tasks=digits,count", f"--methods={methods}", "--seeds=0,1,2"),
        *("--population=2", "--backbone=vit_tiny", *more),
    ]


def planned(work, capsys, *more, **changes):
    assert main(options(work, "--json", *more, **changes)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_dry_run_runs_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Population, "__init__", None)
    monkeypatch.setattr(estimate, "device_rate", lambda: 1e9)
    work = tmp_path / "sweep"
    assert main(options(work)) == 0
    out = capsys.readouterr().out
    assert "24 cells" not in out and "30 cells" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_data(tmp_path, capsys, monkeypatch):
    """What a sweep takes is known without them; `here` leaves out what isn't there."""
    monkeypatch.setattr(estimate, "device_rate", lambda: 1e9)
    found = planned(tmp_path, capsys, f"--path={tmp_path}", "--tasks=bccd")
    assert {r["task"] for r in found["rows"]} == {"bccd"}
    assert main(options(tmp_path, f"--path={tmp_path}", "--tasks=here", "--json")) == 0
    shown = capsys.readouterr()
    drawn = {"digits", "count", "distance", "orientation", "azimuth"}
    assert {r["task"] for r in json.loads(shown.out)["rows"]} == drawn
    assert "no data of clothing10, omniglot, bccd, nuclei" in shown.err
    assert main(options(tmp_path, f"--path={tmp_path}", "--tasks=here", "--suite=vtab")) == 2
    assert "no data of vtab is here" in capsys.readouterr().err


def test_cells_steps_and_flops_add_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "device_rate", lambda: 1e9)
    found = planned(tmp_path, capsys)
    rows = {(r["method"], r["task"]): r for r in found["rows"]}
    assert set(rows) == {(m, t) for m in ("lora", "ssf") for t in ("digits", "count")}
    for (method, _), row in rows.items():
        # ssf has no scale to choose.
        assert (row["tuning"], row["final"]) == (6 if method == "lora" else 3, 3)
        assert row["steps"] == 4 * (row["tuning"] + 3)
        assert row["hours"] == pytest.approx(row["flops"] / 1e9 / 3600)
    assert found["cells"] == 30 and found["flops_per_second"] == 1e9
    assert found["flops"] == sum(r["flops"] for r in found["rows"])
    assert found["hours"] == pytest.approx(sum(r["hours"] for r in found["rows"]))
    # The tasks differ in their test images alone: 797 and 1,000 of them.
    image = (rows["ssf", "count"]["flops"] - rows["ssf", "digits"]["flops"]) / 3 / (1000 - 797)
    assert image == forward_flops() + 2 * 32 * 16


def forward_flops():
    """Matrix products of an image by hand: 16 patches and a class token, of width 32."""
    tokens, dim, patches = 17, 32, 16
    embed = 2 * patches * 4 * 4 * 3 * dim
    attention = 2 * tokens * dim * (3 * dim + dim) + 2 * 2 * tokens * tokens * dim
    mlp = 2 * 2 * tokens * dim * 4 * dim
    return embed + TINY["depth"] * (attention + mlp)


def test_length_of_training_counts_in_epochs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "device_rate", lambda: 1e9)
    more = ("--config.protocol.steps=0", "--config.protocol.epochs=2.0")
    row = planned(tmp_path, capsys, *more, methods="ssf")["rows"][0]
    assert row["steps"] == 3 * 100 + 3 * 125  # of 16 images
    first = planned(tmp_path, capsys, "--config.protocol.select=first", methods="ssf")["rows"][0]
    assert (first["tuning"], first["steps"]) == (0, 12)


def test_a_rate_is_measured_here():
    assert 1e8 < estimate.device_rate() < 1e16


def test_what_cannot_be_run_cannot_be_planned(tmp_path, capsys):
    assert main(options(tmp_path / "sweep", "--tasks=digts")) == 2
    err = capsys.readouterr().err
    assert "did you mean 'digits'" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
