import inspect

import pytest

from dynadapt import errors
from dynadapt.errors import ConfigError, DynadaptError, UnknownName, suggest

CLASSES = [
    c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
]


@pytest.mark.parametrize("cls", CLASSES)
def test_all_are_one_family(cls):
    assert issubclass(cls, DynadaptError)
    assert not issubclass(cls, (ValueError, OSError))


def test_one_problem_is_one_sentence():
    error = ConfigError("lr must be above 0")
    assert str(error) == "lr must be above 0"
    assert error.problems == ("lr must be above 0",)


def test_several_problems_are_listed():
    error = ConfigError("a", "b")
    assert str(error) == "2 problems:\n  - a\n  - b"
    assert error.problems == ("a", "b")


def test_an_unknown_name_is_a_config_error_with_the_nearest():
    error = UnknownName("method", "iconformr", ["lora", "iconformer", "full"])
    assert isinstance(error, ConfigError)
    assert str(error) == "unknown method 'iconformr'; did you mean 'iconformer'?"


def test_suggestions():
    assert suggest("lore", ["lora", "loro", "full"]) == "did you mean 'loro' or 'lora'?"
    assert suggest("zzz", ["b", "a"]) == "choose one of a, b"
    assert suggest("zzz", []) == "there is nothing to choose from"
    assert suggest(7, (1, 2)) == "choose one of 1, 2"
