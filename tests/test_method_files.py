"""A method in a file of the user's own: trained, recorded with its hash, run only where given."""

import json

import pytest

from dynadapt import choices, files
from dynadapt.main import main
from tests.test_docs import GUIDE, blocks
from tests.test_predict import TINY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_compiling")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, fast_compiling):
    """A run of the guide's method in a file, and that file."""
    folder = tmp_path_factory.mktemp("own")
    file = folder / "mine.py"
    file.write_text(blocks(GUIDE, "python")[0])
    argv = ["train", f"--config={TINY}:method={file},steps=3", f"--workdir={folder / 'run'}"]
    assert main(argv) == 0
    return argv, folder / "run", file


@pytest.fixture
def fresh(monkeypatch):
    """As in a process to which no file was given."""
    monkeypatch.setattr(choices, "_given", {})


def test_a_run_records_its_file(run, fresh, capsys):
    argv, folder, file = run
    recorded = f"{file}#sha256={files.sha256(file)}"
    for path in ("config.json", "adapter/adapter.json"):
        assert json.loads((folder / path).read_text())["config"]["adapter"]["name"] == recorded
    assert json.loads((folder / "result.json").read_text())["method"] == "mine"
    assert main(argv) == 0  # started again, it is complete
    assert f" eval --workdir={folder} --method={file}\n" in capsys.readouterr().out


def test_an_adapter_runs_its_file_only_where_it_is_given(run, fresh, capsys):
    _, folder, file = run
    evaluate = ["eval", f"--workdir={folder}", "--json"]
    assert main(evaluate) == 2
    assert f"the method is code in the file '{file}'" in capsys.readouterr().err
    assert choices._given == {}
    assert main([*evaluate, f"--method={file}"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics = json.loads((folder / "adapter" / "adapter.json").read_text())["metrics"]
    assert found["method"] == "mine" and found["top1"] == metrics["top1"]


def test_a_changed_file_is_another_method(run, fresh, tmp_path, capsys):
    argv, folder, file = run
    text = file.read_text()
    try:
        file.write_text(text.replace("gamma - 1", "gamma - 0.9"))
        assert main(["eval", f"--workdir={folder}", f"--method={file}"]) == 2
        err = capsys.readouterr().err
        assert "was changed since; no file that was given has this hash" in err
        assert err.count("\n") == 1
        assert main(argv) == 2
        assert "adapter.name" in capsys.readouterr().err
    finally:
        file.write_text(text)


@pytest.mark.parametrize("given", ["lora", "{file}#sha256=" + 64 * "0"])
def test_what_is_no_file_is_refused(run, capsys, given):
    _, folder, file = run
    given = given.format(file=file)
    assert main(["eval", f"--workdir={folder}", f"--method={given}"]) == 2
    assert "must be a file with the ending .py" in capsys.readouterr().err


def test_a_file_stands_in_lists_of_methods(run, tmp_path, capsys):
    _, _, file = run
    config, work = f"--config={TINY}:steps=3", tmp_path / "work"
    listed = f"--methods=linear,{file}"
    assert main(["plan", config, listed, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [row["method"] for row in rows] == ["linear", "mine"]
    assert main(["train", config, listed, f"--workdir={work}"]) == 0
    assert sorted(folder.name for folder in work.iterdir()) == ["linear", "mine"]
    capsys.readouterr()
    variants = f"{listed},{file}:dropout=0.1"
    assert main(["sweep", "run", config, variants, "--dry_run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["linear", "mine", "mine:dropout=0.1"]


def test_a_list_has_each_title_once_and_suites_have_names(run, tmp_path, capsys):
    _, _, file = run
    other = tmp_path / "linear.py"
    other.write_text(file.read_text())
    assert main(["sweep", "run", f"--config={TINY}", f"--methods=linear,{other}", "--dry_run"]) == 2
    assert f"linear and {other} are called the same" in capsys.readouterr().err
    suite = ["--config=offline", "--suite=offline", "--backbone=vit_mini", "--weights=vit_mini"]
    assert main(["vtab", "run", *suite, f"--methods={file}", f"--workdir={tmp_path}"]) == 2
    assert f"takes methods by name, not the file '{file}'" in capsys.readouterr().err
