"""Config files: what they may return, how their faults are told, what the command line changes."""

from pathlib import Path

import pytest

from dynadapt.commands import config_file
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.main import main

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")

BROKEN_FILES = {
    "syntax": ("def get_config(arg=None:\n    pass\n", "broken.py, line 1"),
    "nothing": ("x = 1\n", "get_config"),
    "exception": ("def get_config(arg=None):\n    return 1 / 0\n", "broken.py, line 2",
    "division by zero"),
    "import": ("import dynadaptt\n", "broken.py, line 1", "dynadaptt"),
    "field": (
        "from dynadapt import config\n\n\ndef get_config(arg=None):\n"
        "    c = config.default()\n    c.optim.lrr = 0.1\n    return c\n",
        "'optim.lrr'", "'optim.lr'",
    ),
    "type": (
        "from dynadapt import config\n\n\ndef get_config(arg=None):\n"
        "    c = config.default()\n    c.optim.lr = 'fast'\n    return c\n",
        "broken.py, line 6", "lr",
    ),
    "other value": ("def get_config(arg=None):\n    return dict(a=1)\n", "get_config"),
    "end": ("import sys\nsys.exit(0)\n", "broken.py, line 2", "SystemExit: 0"),
    "end in get_config": (
        "def get_config(arg=None):\n    raise SystemExit('bye')\n", "line 2", "bye",
    ),
    "error that says nothing": (
        "class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E\n", "line 4",
    ),
    "no function": ("get_config = 5\n", "broken.py", "not callable"),
    "bytes": ("x = 1\0\n", "broken.py", "null bytes"),
    "value of no form": (
        "from dynadapt import config\n\n\ndef get_config(arg=None):\n"
        "    c = config.default()\n    c.trainable = (b'norm',)\n    return c\n",
        "trainable in", "neither number, text nor list",
    ),
    "config in itself": (
        "from dynadapt import config\n\n\ndef get_config(arg=None):\n    c = config.default()\n"
        "    with c.unlocked():\n        c.optim = c\n    return c\n",
        "get_config in", "recursion",
    ),
    "value to come": (
        "from dynadapt import config\nfrom ml_collections import config_dict\n\n\n"
        "def get_config(arg=None):\n    c = config.default()\n    with c.unlocked():\n"
        "        c.seed = config_dict.required_placeholder(int)\n    return c\n",
        "get_config in",
    ),
    "incomplete": (
        "from ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n"
        "    return ConfigDict(dict(seed=1))\n",
        "config.default",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_config_files(name, capsys, tmp_path):
    text, *parts = BROKEN_FILES[name]
    file = tmp_path / "broken.py"
    file.write_text(text)
    work = tmp_path / "run"
    assert main(["train", f"--config={file}", f"--workdir={work}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dynadapt: ") and err.count("\n") == 1
    for part in parts:
        assert part in err
    assert not work.exists()


def test_overrides_change_the_values_of_their_types():
    overrides = [
        "--config.optim.lr=0.5",
        "--config.backbone.scan",
        "--config.trainable=('backbone/norm/.*',)",
        "--config.seed=7",
    ]
    config = config_file.load(TINY, overrides)
    assert (config.optim.lr, config.backbone.scan, config.seed) == (0.5, True, 7)
    assert config.trainable == ("backbone/norm/.*",)
    plain = config_file.load(TINY, [])
    assert plain.optim.lr != 0.5 and not plain.backbone.scan


def test_a_config_of_the_package_is_found_by_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "segment", "vtab"} <= set(config_file.names())
    found = config_file.load("quickstart:method=lora", ["--config.seed=3"])
    assert (found.adapter.name, found.data.name, found.seed) == ("lora", "digits", 3)
    assert config_file.load("depth", []).task.name == "depth"  # it reads another one beside it
    (tmp_path / "quickstart").write_text(Path(TINY).read_text())
    assert config_file.load("quickstart:steps=5", []).optim.steps == 5  # a file wins


def test_a_config_that_cannot_change_is_changed(tmp_path):
    file = tmp_path / "frozen.py"
    file.write_text(
        "from ml_collections import FrozenConfigDict\nfrom dynadapt import config\n\n\n"
        "def get_config(arg=None):\n    return FrozenConfigDict(config.default())\n"
    )
    assert config_file.load(str(file), ["--config.seed=5"]).seed == 5


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), (".5", 0.5), ("+3.", 3.0), ("7", 7.0)])
def test_forms_of_numbers(text, value):
    assert config_file.load(TINY, [f"--config.optim.lr={text}"]).optim.lr == value


def test_the_last_of_two_overrides_holds():
    assert config_file.load(TINY, ["--config.seed=1", "--config.seed=2"]).seed == 2


def test_a_given_method_replaces_the_files():
    own = config_file.load(f"{TINY}:method=linear", [])
    other = config_file.load(f"{TINY}:method=linear,steps=3", [], "method=lora")
    assert (own.adapter.name, other.adapter.name, other.optim.steps) == ("linear", "lora", 3)
    assert "rank" in other.adapter and "rank" not in own.adapter


@pytest.mark.parametrize(
    "given, overrides, text",
    [
        (None, [], "give a config"),
        ("", [], "give a config"),
        (TINY.replace("configs", "confgs"), [], "no config file .* did you mean .*configs_tiny.py"),
        ("nowhere/at/all.py", [], "none of that name; choose one of depth, .*, quickstart, "),
        ("quikstart", [], "no config file 'quikstart', .* did you mean 'quickstart'"),
        ("recipes/vtab.py", [], "did you mean 'vtab'"),
        ("quickstart:method=lorra", [], "unknown method 'lorra'; did you mean 'lora'"),
        (TINY, ["--config.adapter.rnk=4"], "'adapter.rnk'"),
        (TINY, ["--config.lr=4"], "did you mean 'optim.lr'"),
        (TINY, ["--config.seed=many"], "cannot set the config: .*seed"),
        (TINY, ["--config.optim=4"], "'optim' is no field but a section"),
        (TINY, ["--config.optim=4", "--config.optim.steps=3"], "is no field but a section"),
        (TINY, ["--config.optim.steps=3", "--config.optim=4"], "is no field but a section"),
        (TINY, ["--config.optim.steps=1e30"], "steps=1e30 must be a whole number"),
        (TINY, ["--config.optim.steps="], "steps= must be a whole number"),
        (TINY, ["--config.optim.steps=" + 20 * "9"], "whole number of at most 18 digits"),
        (TINY, ["--config.optim.steps=1_0"], "must be a whole number"),
        (TINY, ["--config.optim.steps=\uff11"], "must be a whole number"),
        (TINY, ["--config.optim.lr=0x1"], "lr=0x1 must be a number"),
        (TINY, ["--config.backbone.scan=perhaps"], "must be true or false"),
        (TINY, ["--config.=4"], "unknown config field ''"),
    ],
)
def test_mistakes(given, overrides, text):
    with pytest.raises(ConfigError, match=text) as caught:
        config_file.load(given, overrides)
    assert "\n" not in str(caught.value)


def test_a_files_own_errors_pass_through(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from dynadapt.errors import UnknownName\n\n\ndef get_config(arg=None):\n"
        "    raise UnknownName('recipe', 'fst', ['fast'])\n"
    )
    with pytest.raises(UnknownName, match="unknown recipe 'fst'; did you mean 'fast'"):
        config_file.load(str(file), [])


def test_what_a_file_is_asked_for(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def get_config(arg='nothing'):\n    raise RuntimeError(f'asked {arg}!')\n")
    for given, arg, asked in (
        ("", None, "nothing"),
        (":steps=3", None, "steps=3"),
        (":method=linear,steps=3", "method=lora", "steps=3,method=lora"),
        ("", "method=lora", "method=lora"),
    ):
        with pytest.raises(ConfigError, match=f"line 2: RuntimeError: asked {asked}!"):
            config_file.load(f"{file}{given}", [], arg)
