import pytest

from dynadapt.bench import points
from dynadapt.main import main


@pytest.mark.slow
def test_both_choose_alike(monkeypatch, capsys):
    monkeypatch.setattr(points, "CASES", ((2, 50, 6, 5),))
    assert main(["bench", "points", "--rounds=2"]) == 0
    out = capsys.readouterr().out
    assert "farthest points" in out and "nearest points" in out and "100.00 %" in out
    rows = points.run(1)["rows"]
    assert all(row["equal"] == "100.00 %" and row["ms"] > 0 and row["numpy_ms"] > 0 for row in rows)


def test_other_options_are_refused(capsys):
    assert main(["bench", "points", "--batch=3"]) == 2
    assert "bench points" in capsys.readouterr().err
