"""Answers of several benchmarks as one file and one page."""

import json

import pytest

from dynadapt import files
from dynadapt.main import main


def answer(*rows):
    return json.dumps(dict(machine="1 x GPU; CPU, 2 cores", rows=rows))


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    ratio = dict(ratio=0.5, lowest=0.4, highest=0.6, minima=0.45)
    lora, dapt = dict(method="lora", ms=1.5, over_first=ratio), dict(method="dapt", reason="why")
    (folder / "step.json").write_text(answer(lora, dapt))
    (folder / "bank.json").write_text(answer(dict(method="lora", equal=True)))
    return folder


def test_one_file_and_one_page(answers, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["bench", "collect", f"--folder={answers}", f"--out={out}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["benchmark"], row["rows"]) for row in said] == [("bank", 1), ("step", 2)]
    whole = files.read_json(out / "cpu.json")
    assert whole["device"] == "cpu" and "jax" in whole["versions"]
    assert whole["benchmarks"]["step"] == json.loads((answers / "step.json").read_text())
    page = (out / "cpu.md").read_text()
    assert page.index("## bank") < page.index("## step") and "1 x GPU" in page
    assert "| method | ms | over_first | reason |" in page
    assert "| lora | 1.5 | 0.5 (0.4..0.6; 0.45) |  |\n| dapt |  |  | why |" in page


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"rows": [{"a": 1}]}', "is no answer of 'dynadapt bench"),
        ("x.json", '{"machine": "m", "rows": 3}', "is no answer of 'dynadapt bench"),
        ("x.json", '{"machine": "m", "rows": [3]}', "is no answer of 'dynadapt bench"),
        ("x.txt", "", "no *.json in"),
    ],
)
def test_what_is_no_answer(name, text, said, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    argv = ["bench", "collect", f"--folder={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert main(argv) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_both_folders_are_asked_for(tmp_path, capsys):
    assert main(["bench", "collect", f"--folder={tmp_path}"]) == 2
    assert "give --out=…" in capsys.readouterr().err
    assert main(["bench", "collect", "--rounds=3", "--folder=a", "--out=b"]) == 2
    assert "bench collect takes no --rounds" in capsys.readouterr().err
