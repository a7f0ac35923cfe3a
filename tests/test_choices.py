import hashlib
import json
import json.encoder
import math
import sys

import pytest

from dynadapt import adapters, choices, data, tasks
from dynadapt.errors import ConfigError, UnknownName

METHOD = "TRAINS = ()\n\n\ndef adapt(backbone, *, rngs, size=3):\n    pass\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with entry points: `installed(module text, group="name = module")`."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(text, name="theirs", **groups):
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        lines = [f"[dynadapt.{group}]\n{line}\n" for group, line in groups.items()]
        (info / "entry_points.txt").write_text("".join(lines))
        choices._points.cache_clear()

    yield install
    for name in ("theirs", "others"):
        sys.modules.pop(name, None)
    choices._points.cache_clear()


def test_other_packages_add_methods_tasks_and_data_sets(installed):
    text = "class Task:\n    def __init__(self, info, rate=0.5):\n        pass\n\n\n"
    text += "def source(split, side=8):\n    pass\n\n\n"
    line = "theirs = theirs"
    installed(text + METHOD, adapters=line, tasks=line, data=line)
    assert "theirs" not in sys.modules
    for package in (adapters, tasks, data):
        assert "theirs" in package.names()
    assert "theirs" not in sys.modules  # a list of names imports nothing
    assert adapters.settings("theirs") == {"size": 3, "layers": 0}
    assert tasks.settings("theirs") == {"rate": 0.5}
    assert data.settings("theirs") == {"side": 8, "balance": ""}
    with pytest.raises(UnknownName, match="'thiers'; did you mean 'theirs'"):
        adapters.module("thiers")


@pytest.mark.parametrize("group, name", [("adapters", "lora"), ("data", "loader")])
def test_another_package_takes_no_name_that_is_there(installed, group, name):
    installed(METHOD, **{group: f"{name} = theirs"})
    package = {"adapters": adapters, "data": data}[group]
    text = f"package 'theirs' adds '{name}' to dynadapt.{group}, a name that dynadapt has already"
    with pytest.raises(ConfigError, match=text):
        package.names()
    assert "theirs" not in sys.modules


def test_two_packages_do_not_share_a_name(installed):
    installed(METHOD, adapters="new = theirs")
    installed(METHOD, name="others", adapters="new = others")
    with pytest.raises(ConfigError, match="adds 'new' to dynadapt.adapters, .* has already"):
        adapters.module("new")


@pytest.mark.parametrize(
    "text, why",
    [
        ("import nowhere_at_all\n", "fails: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("x = 1\n", "has no 'adapt' in it"),
    ],
)
def test_a_module_of_another_package_that_cannot_be_used(installed, text, why):
    installed(text, adapters="theirs = theirs")
    with pytest.raises(ConfigError, match=f"method 'theirs' of the package 'theirs' {why}"):
        adapters.module("theirs")


@pytest.fixture
def nothing_given(monkeypatch):
    """A process to which no file was given."""
    monkeypatch.setattr(choices, "_given", {})


def test_a_file_is_a_module(tmp_path, monkeypatch, nothing_given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METHOD)
    assert adapters.settings("mine.py") == {"size": 3, "layers": 0}
    assert adapters.module("mine.py") is adapters.module(str(tmp_path / "mine.py"))
    recorded = choices.record("mine.py")
    digest = hashlib.sha256(METHOD.encode()).hexdigest()
    assert recorded == f"{tmp_path / 'mine.py'}#sha256={digest}"
    assert choices.title(recorded) == choices.title("mine.py") == "mine"
    assert choices.record(recorded) == recorded and choices.record("lora") == "lora"
    (tmp_path / "mine.py").unlink()  # what was given stays given
    assert adapters.module(recorded).TRAINS == ()


def test_the_code_of_a_record_never_runs(tmp_path, nothing_given):
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{METHOD}")
    recorded = choices.record(str(file))
    with pytest.raises(ConfigError, match="evil.py' .* is still there; .* give its file: --method"):
        adapters.module(recorded)
    file.write_text(METHOD)
    with pytest.raises(ConfigError, match="which was changed since; .* give its file: --method"):
        adapters.module(recorded)
    adapters.module(str(file))
    with pytest.raises(ConfigError, match="which was changed since; no file that was given has"):
        adapters.module(recorded)
    file.unlink()
    with pytest.raises(ConfigError, match="which is not there; no file that was given has"):
        adapters.module(recorded)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text, why",
    [
        (None, "there is no file .*mine.py'; did you mean .*mime.py'"),
        ("x = 1\n", "mine.py is no method: it has no 'adapt'"),
        ("def f(:\n", "mine.py, line 1: invalid syntax"),
        ("x = 1\nx / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')\n", "mine.py, line 1: SystemExit: bye"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, nothing_given, text, why):
    (tmp_path / "mime.py").write_text(METHOD)
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=why):
        adapters.module(str(tmp_path / "mine.py"))
    assert choices._given == {}


def test_names_are_modules():
    assert choices.names(json) == ["decoder", "encoder", "scanner", "tool"]
    assert choices.names(json, skip=("tool",)) == ["decoder", "encoder", "scanner"]


def test_a_module_is_found_by_name():
    assert choices.module(json, "encoder", "part") is json.encoder


def test_a_wrong_name_tells_the_nearest():
    with pytest.raises(UnknownName, match="unknown part 'encodr'; did you mean 'encoder'"):
        choices.module(json, "encodr", "part")
    with pytest.raises(UnknownName, match="choose one of decoder, encoder, scanner"):
        choices.module(json, "tool", "part", skip=("tool",))


def test_a_name_is_no_path():
    with pytest.raises(UnknownName):
        choices.module(json, "encoder.JSONEncoder", "part")


def test_settings_are_keywords_and_defaults():
    def make(host, *, rngs, rank=8, act="relu"):
        pass

    assert choices.settings(make, skip=("host", "rngs")) == {"rank": 8, "act": "relu"}


def test_settings_are_checked():
    choices.check_settings("method 'x'", ["rank"], {"rank": 8})
    with pytest.raises(UnknownName, match="setting of method 'x' 'rnak'; did you .* 'rank'"):
        choices.check_settings("method 'x'", ["rank", "rnak"], {"rank": 8})


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("(0, inf)", (1e-9, 3, 1e300), (0, -1, math.inf, math.nan), "above 0"),
        ("[1, inf)", (1, 2.5), (0, 0.99, math.inf), "at least 1"),
        ("[0, 1)", (0, 0.5), (-1e-9, 1, math.nan), "in [0, 1)"),
        ("(0, 1]", (1, 0.5), (0, 1.01), "in (0, 1]"),
        ("(-inf, inf)", (-1e300, 0, 1e300), (math.inf, -math.inf, math.nan), "finite"),
    ],
)
def test_intervals(interval, inside, outside, words):
    assert all(choices.inside(v, interval) for v in inside)
    assert not any(choices.inside(v, interval) for v in (*outside, "0.5", None, True, (1,)))
    assert choices.words(interval) == words
