import json
import json.encoder
import math

import pytest

from dynadapt import choices
from dynadapt.errors import UnknownName


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
