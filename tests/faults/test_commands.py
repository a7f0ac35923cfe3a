"""Each kind of fault with each command: exit code 2, one line, and nothing written."""

import os
import sys

import pytest
from absl import flags

from dynadapt.commands import COMMANDS
from dynadapt.main import main

# What else a command must be told, so that it comes to look at an option.
GIVEN = {
    "bench": ["step"],
    "convert": ["in.safetensors", "out.safetensors"],
    "data": ["status", "offline"],
    "plan": ["--methods=lora"],
    "hub": ["push"],
    "predict": ["--workdir=run"],
    "sweep": ["run"],
    "vtab": ["run"],
}


def options_of(name, kind):
    """The options of a command whose values are of a kind, as absl names it."""
    values = flags.FlagValues()
    COMMANDS[name].define(values)
    for argument in COMMANDS[name].arguments:
        flags.DEFINE_string(argument, None, "", flag_values=values)
    return [option for option in values if values[option].flag_type() == kind]


def each(kind, *values):
    """Command lines with each option of a kind and each value."""
    return lambda name: [
        [name, *GIVEN.get(name, []), f"--{option}={value}"]
        for option in options_of(name, kind)
        for value in values
    ]


def with_more(*words):
    return lambda name: [[name, *GIVEN.get(name, []), *words]]


KINDS = {
    "an unknown option": with_more("--nope"),
    "an unknown option with a value": with_more("--nope=1"),
    "a word too many": with_more("one", "two", "three"),
    "an option cut short": with_more("--"),
    "an option without a name": with_more("--=3"),
    "a file of options": with_more("--flagfile=none"),
    "options of no command": with_more("--undefok=nope", "--nope=1"),
    "a byte of nothing": with_more("--json", "--workdir=a\0b"),
    "bytes that are no text": with_more("--json", "--workdir=a\udcffb"),
    "texts without a letter": each("string", ""),
    "lists of nothing": each("comma separated list of strings", ""),
    "flags that are neither": each("bool", "", "perhaps", "2"),
    "counts of nothing": each("int", "0", "-1"),
    "counts of too many": each("int", str(10**9), "9" * 30),
    "counts that are no number": each("int", "", "1.5", "1e3", "many", "nan"),
    "an override of no field": lambda name: [[name, *GIVEN.get(name, []), "--config.nope=1"]],
}


def assert_one_sentence(code, capfd, code_wanted=2):
    out, err = capfd.readouterr()
    assert (code, out) == (code_wanted, ""), err
    assert err.startswith("dynadapt: ") and err.count("\n") == 1, err


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_one_sentence(kind, name, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in KINDS[kind](name):
        assert_one_sentence(main(argv), capfd)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)])
@pytest.mark.parametrize("how", ["full", "closed", "not read"])
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /dev/full")
def test_help_that_cannot_be_written(how, argv, capfd, monkeypatch):
    if how == "closed":
        monkeypatch.setattr(sys, "stdout", None)
        return assert_one_sentence(main(argv), capfd)
    if how == "full":
        out = open("/dev/full", "w")
    else:
        gone, left = os.pipe()
        os.close(gone)
        out = os.fdopen(left, "w")
    with out:
        monkeypatch.setattr(sys, "stdout", out)
        code = main(argv)
    if how == "full":
        assert_one_sentence(code, capfd)
    else:
        assert code == 141 and capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /dev/full")
def test_an_error_that_cannot_be_told_is_one_still(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["plan"]) == 2
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.parametrize("name", ["verify", "eval"])
def test_what_the_system_refuses_is_one_sentence(name, capfd):
    assert_one_sentence(main([name, f"--workdir={'x' * 5000}"]), capfd)
