"""What each command is given: arguments, options, help."""

import json

import numpy as np
import pytest
from absl import flags

from dynadapt import files
from dynadapt.commands import COMMANDS
from dynadapt.main import dispatch, main
from dynadapt.weights import catalogue


def options_of(name):
    """The names of a command's own options and arguments."""
    values = flags.FlagValues()
    COMMANDS[name].define(values)
    return set(values) | set(COMMANDS[name].arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_example_and_options_are_told(name):
    command = COMMANDS[name]
    assert command.help[0].islower() and not command.help.endswith(".")
    assert command.example.startswith(f"dynadapt {name} ") and "\n" not in command.example
    given = [w.split("=")[0][2:] for w in command.example.split() if w.startswith("--")]
    assert set(given) <= options_of(name) and len(given) == len(set(given))
    words = [w for w in command.example.split()[2:] if not w.startswith("-")]
    assert command.several or len(words) <= len(command.arguments)
    values = flags.FlagValues()
    command.define(values)
    assert all(values[option].help for option in values)
    assert not set(values) & {"json", "debug", "help", *command.arguments}


@pytest.fixture
def vit(tmp_path):
    """A small file in timm's layout."""
    rng = np.random.default_rng(0)
    d, block = 8, "blocks.0."
    shapes = {
        **{"cls_token": (1, 1, d), "pos_embed": (1, 5, d), "patch_embed.proj.bias": (d,)},
        **{"patch_embed.proj.weight": (d, 3, 4, 4), "norm.weight": (d,), "norm.bias": (d,)},
        **{f"{block}norm{n}.{part}": (d,) for n in (1, 2) for part in ("weight", "bias")},
        **{f"{block}attn.qkv.weight": (3 * d, d), f"{block}attn.qkv.bias": (3 * d,)},
        **{f"{block}attn.proj.weight": (d, d), f"{block}attn.proj.bias": (d,)},
        **{f"{block}mlp.fc1.weight": (2 * d, d), f"{block}mlp.fc1.bias": (2 * d,)},
        **{f"{block}mlp.fc2.weight": (d, 2 * d), f"{block}mlp.fc2.bias": (d,)},
    }
    tensors = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    files.write_tensors(tmp_path / "vit.safetensors", tensors)
    return tmp_path / "vit.safetensors"


def test_arguments_may_be_words_or_options(vit, tmp_path, capsys):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert dispatch(["convert", str(vit), str(one), "--heads=2"]) == 0
    assert dispatch(["convert", f"--out={two}", "--heads=2", f"--in={vit}"]) == 0
    assert one.read_bytes() == two.read_bytes()
    assert capsys.readouterr().out.count("wrote ") == 2


def test_convert_options(vit, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(vit), str(out), "--heads=2", "--to=hf", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(out) and answer["family"] == "vit"
    held = files.read_tensors(out / "model.safetensors")
    assert any(n.endswith("layer.0.attention.attention.query.weight") for n in held)
    again = tmp_path / "again.safetensors"
    argv = ["convert", str(vit), str(again), "--heads=2", "--image_size=16"]
    assert main(argv) == 0
    told = json.loads(files.read_metadata(again)["dynadapt"])["config"]
    assert told["heads"] == 2 and told["image_size"] == 16


MISTAKES = {
    "no input": (["convert"], "--out="),
    "no output": (["convert", "IN"], "--out="),
    "three words": (["convert", "IN", "OUT", "more"], "unknown option 'more'"),
    "no heads": (["convert", "IN", "OUT"], "say heads="),
    "heads of text": (["convert", "IN", "OUT", "--heads=two"], "heads"),
    "layout": (["convert", "IN", "OUT", "--heads=2", "--to=tim"], "did you mean 'timm'"),
    "no layout for it": (["convert", "IN", "OUT", "--heads=2", "--to=microsoft"], "of a vit"),
    "input": (["convert", "none.pth", "OUT"], "none.pth"),
    "folder of output": (["convert", "IN", "nowhere/out.safetensors"], "folder that exists"),
    "published name": (["weights", "dinov2_b13"], "did you mean 'dinov2_b14'"),
    "nothing to download": (["weights", "--download=OUT"], "dynadapt weights NAME"),
    "download folder": (["weights", "sam_b16", "--download=IN"], "a folder, not a file"),
    "one row's page": (["weights", "sam_b16", "--out=OUT"], "without 'sam_b16'"),
    "one row's speed": (["weights", "sam_b16", "--measure"], "without 'sam_b16'"),
    "two names": (["weights", "sam_b16", "sam_l16"], "unknown option 'sam_l16'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, vit, tmp_path, capsys):
    given, part = MISTAKES[name]
    out = tmp_path / "out.safetensors"
    argv = [w.replace("IN", str(vit)).replace("OUT", str(out)) for w in given]
    before = sorted(tmp_path.iterdir())
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and part in shown.err
    assert sorted(tmp_path.iterdir()) == before


def test_weights_tells_one_row(capsys):
    assert main(["weights", "deit_b16_384_in1k", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 86_090_496 and row["fields"] == {"image_size": 384}
    assert row["digest"] == "sha256:8de9b5d1" and row["url"].endswith(row["file"])
    assert main(["weights", "--name=deit_b16_384_in1k"]) == 0
    out = capsys.readouterr().out
    assert "--config.backbone.name=vit_b16" in out and "--config.backbone.image_size=384" in out
    assert "--download=DIR" in out and row["url"] in out and "Apache-2.0" in out


def test_weights_lists_all_rows_and_writes_the_page(tmp_path, monkeypatch, capsys):
    few = tuple(catalogue.find(n) for n in ("deit_ti16_in1k", "vit_s32_augreg_in21k"))
    monkeypatch.setattr("dynadapt.plans.weights_table.PUBLISHED", few)
    page = tmp_path / "models.md"
    assert main(["weights", "--json", f"--out={page}"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == [p.name for p in few]
    text = page.read_text()
    assert all(f"| `{p.name}` |" in text and f"]({p.url})" in text for p in few)
    assert "## Speed" not in text
    assert main(["weights"]) == 0
    shown = capsys.readouterr().out
    assert "deit_ti16_in1k" in shown and "inputs/s" not in shown
