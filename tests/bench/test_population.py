"""Populations beside single runs: what is printed of time and memory."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dynadapt import bench
from dynadapt.bench import population

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two():
    return population.run("vit_mini", ["bitfit", "dapt"], 2, 2, cells=2)


@pytest.mark.slow
def test_cells_are_timed_beside_a_run(two, capsys):
    row = two["rows"][0]
    assert row["cells"] == 2 and row["cell_ms"] > 0 and row["single_ms"] > 0
    assert set(row["cell_over_single"]) == {"ratio", "lowest", "highest", "minima"}
    assert row["compile_s"] > 0 and row["with_compilation"] > 0
    bench.show(two)
    assert "temporaries" in capsys.readouterr().out


def test_one_copy_of_what_is_frozen_and_a_leaf_a_cell_of_what_trains(two):
    row = two["rows"][0]
    trained = (8704 + 128 * 10 + 10) * 4 * 2 / 2**20
    assert row["trained"] == pytest.approx(trained, abs=0.01)
    assert 2 * row["trained"] <= row["optimizer"] + 0.02 <= 2 * row["trained"] + 0.04
    assert row["frozen"] == pytest.approx((1_204_608 - 8704) * 4 / 2**20, abs=0.01)
    assert row["temporaries"] > row["single_temporaries"] > 0


def test_a_method_for_other_backbones_is_a_row_with_its_reason(two):
    row = two["rows"][1]
    assert row["method"] == "dapt" and "point clouds" in row["reason"] and "cell_ms" not in row


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'")
@pytest.mark.exhaustive
def test_cells_over_four_chips():
    """In a process of its own: libtpu stays in the process that loads it."""
    argv = ["bench", "population", "--backbone=vit_mini", "--methods=bitfit", "--batch=4"]
    command = [sys.executable, "-m", "dynadapt", *argv, "--topology=v5e:2x2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    together, alone = json.loads(done.stdout)["rows"]
    assert together["cells"] == 2 and alone["cells"] == 1
    assert together["frozen"] == alone["frozen"]
    assert together["trained"] == pytest.approx(2 * alone["trained"], abs=0.02)
    assert together["moved"] == alone["moved"] == 0
