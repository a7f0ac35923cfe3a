"""The notebooks of docs/: without output, and run from top to bottom on tiny settings."""

import json

import pytest

from tests import devices

FOLDER = devices.ROOT / "docs" / "notebooks"
# In this order: the last one goes on from a run of the one before.
NAMES = ("adapt_your_photos", "compare_methods", "read_the_kernels")
TINY = {"optim.steps": 2, "input.batch_size": 8, "backbone.scan": True}
FEW = {"input.eval_split": "test[:20]"}
GIVEN = {
    "adapt_your_photos": {"SETTINGS": TINY},
    "compare_methods": {"SETTINGS": TINY | FEW, "METHODS": ["linear", "iconformer"]},
    "read_the_kernels": {"SETTINGS": TINY | FEW},
}


def cells(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_notebooks_hold_no_output():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)
    for name in NAMES:
        code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
        assert [cell["metadata"] for cell in code].count({"tags": ["parameters"]}) == 1


@pytest.mark.exhaustive  # what they call is tested elsewhere, and this takes half a minute
def test_notebooks_run(tmp_path, monkeypatch, capsys, fast_compiling):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        names, given = {}, GIVEN[name]
        for number, cell in enumerate(cells(name)):
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            exec(compile(source, f"{name}, cell {number}", "exec"), names)
            if cell["metadata"].get("tags") == ["parameters"]:
                assert given.keys() <= names.keys()
                names |= given
    out = capsys.readouterr().out
    for text in ("135 test images are right", "True and", "iconformer  ", "with mean kernels"):
        assert text in out
    assert (tmp_path / "runs" / "iconformer" / "figures" / "kernels.png").is_file()
