"""Configs: complete, round trips, hashes, the files in configs/."""

import itertools
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dynadapt import adapters, backbones, config, data, tasks
from dynadapt.commands.config_file import read_config
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.sweep import protocol

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = ("offline", "vtab")
FILES = sorted(f for f in (ROOT / "configs").glob("*.py") if f.stem not in SWEEPS)


def arguments(file):
    """All values that the documented arguments of a config file name: `[{name: value}, ...]`.

    A docstring says `Arguments: method (one of METHODS, or all), data, ...`; an argument without
    a list of choices keeps its default.
    """
    names = read_names(file)
    text = re.search(r"Arguments:(.*?)\.?$", names["get_config"].__doc__ or "", re.S)
    choices = {}
    for name, more in re.findall(r"(\w+)(?: \(([^)]*)\))?(?:,|$|\.)", text[1] if text else ""):
        if found := re.search(r"one of ([A-Z]+)", more):
            choices[name] = [*names[found[1]], *re.findall(r"or (\w+)", more)]
        elif "`dynadapt.adapters`" in more:
            choices[name] = adapters.names()
    keys = list(choices)
    return [dict(zip(keys, v, strict=True)) for v in itertools.product(*choices.values())]


def read_names(file):
    import runpy

    return runpy.run_path(str(file))


CASES = [(f, given) for f in FILES for given in arguments(f)]


@pytest.mark.parametrize(
    ("file", "given"), CASES, ids=[f"{f.stem}:{','.join(g.values())}" for f, g in CASES]
)
def test_config_files_build(file, given):
    built = read_config(str(file), ",".join(f"{k}={v}" for k, v in given.items()))
    assert config.field_problems(built) == []
    assert built.adapter.name in adapters.names()
    if given.get("method") in adapters.names():
        assert built.adapter.name == given["method"]
    if built.data.name == "digits":  # the others need data that must be fetched
        config.check(built)


PROTOCOLS = ("vtab", "noah", "ssf", "unit", "official")


@pytest.mark.parametrize(
    ("stem", "given"),
    [("offline", ""), ("vtab", ""), *(("vtab", f"protocol={p}") for p in PROTOCOLS)],
)
def test_sweeps_build(stem, given):
    built = read_config(str(ROOT / "configs" / f"{stem}.py"), given)
    assert protocol.field_problems(built) == []
    protocol.check(built)
    assert f"protocol={built.protocol.name}" in (given or "protocol=vtab protocol=offline")
    named = [pattern.split("/")[0] for pattern, _ in built.grids]
    for method in [m for m in named if m in adapters.names()]:
        points = protocol.grid(built, method, "digits")
        made = protocol.training_config(built, method, "offline", "vit_mini", "vit_mini")
        assert points and made.adapter.name == method


def test_quickstart_documents_its_methods():
    assert {g["method"] for f, g in CASES if f.stem == "quickstart"} >= {"iconformer", "full"}


@pytest.mark.parametrize("method", adapters.names())
@pytest.mark.parametrize("task", tasks.names())
def test_plain_and_back(method, task):
    before = config.default(method=method, task=task, data_set="digits", backbone="vit_mini")
    plain = config.plain(before)
    after = config.from_plain(plain)
    assert isinstance(after, ConfigDict)
    assert after.to_dict() == before.to_dict()
    assert config.plain(after) == plain
    assert config.digest(after) == config.digest(before) == config.digest(plain)


def test_defaults_of_every_data_set_and_backbone_are_complete():
    for name in data.names():
        assert config.field_problems(config.default(data_set=name)) == []
    for name in backbones.names():
        config.check(config.default(backbone=name, data_set="digits"))


@pytest.mark.parametrize("nested", [(), (("head/.*", 0.1), ("backbone/norm/.*", 0.0))])
def test_tuples_survive(nested):
    before = config.default(data_set="digits")
    before.optim.lr_mults = nested
    after = config.from_plain(config.plain(before))
    assert after.optim.lr_mults == nested
    assert isinstance(after.optim.lr_mults, tuple)
    assert all(isinstance(pair, tuple) for pair in after.optim.lr_mults)


def other(value):
    """A value that differs, of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else (*value, "x")


FREE = ("save_every", "eval_every", "input.threads", "input.eval_batch_size", "optim.bad_steps")
FREE += ("backbone.scan", "backbone.remat")


def test_the_digest_sees_every_field_that_touches_the_result():
    before = config.default(data_set="digits")
    sections = [f for f in before if hasattr(before[f], "items")]
    names = [f for f in config.fields(before) if f not in sections]
    assert len(names) > 50
    for name in names:
        after = config.from_plain(config.plain(before))
        section, _, field = name.rpartition(".")
        place = after[section] if section else after
        with place.unlocked():
            place[field] = other(place[field])
        free = section in ("mesh", "log") or name in FREE
        assert (config.digest(after) == config.digest(before)) == free, name
        changed = config.differences(config.plain(before), config.plain(after))
        assert list(changed) == ([] if free else [name])


def test_check_lists_every_problem():
    c = config.default(data_set="digits", backbone="vit_mini")
    c.optim.lr = 0.0
    c.optim.warmup = 1.0
    c.input.batch_size = 0
    c.compute.dtype = "float64"
    c.log.sinks = ("mlflow", "wandp")
    with pytest.raises(ConfigError) as caught:
        config.check(c)
    assert len(caught.value.problems) == 5
    for part in ("optim.lr", "optim.warmup", "batch_size", "float64", "log.sinks 'wandp'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        *("optim.lr=inf", "optim.lr=nan", "optim.clip_norm=-1.0", "optim.beta2=2.0"),
        *("optim.weight_decay=inf", "optim.momentum=1.0", "optim.bad_steps=0"),
        *("seed=4294967296", "input.threads=-2", "eval_every=-1", "optim.steps=2147483648"),
        *("input.batch_size=10000000", "input.eval_batch_size=10000000", "optim.epochs=inf"),
    ],
)
def test_numbers_out_of_their_range(given):
    name, value = given.split("=")
    c = config.default(data_set="digits", backbone="vit_mini")
    section, _, field = name.rpartition(".")
    (c[section] if section else c)[field] = (
        int(value) if value.lstrip("-").isdigit() else float(value)
    )
    with pytest.raises(ConfigError, match=f"^{name} must be .*, not {value}$"):
        config.check(c)


def test_check_finds_settings_of_another_module():
    c = config.default(method="lora", data_set="digits", backbone="vit_mini")
    c.adapter.name = "adaptformer"
    with pytest.raises(ConfigError, match="adapter.targets"):
        config.check(c)
    c = config.default(method="lora", data_set="digits", backbone="vit_mini")
    c.backbone.dimm = 64
    with pytest.raises(ConfigError, match="'dimm'.*'dim'"):
        config.check(c)


@pytest.mark.parametrize(
    ("text", "message"),
    [("rank=8,methd=lora", "'methd'"), ("rank=many", "must be int"), ("rank", "rank=…")],
)
def test_parse_arg_refuses(text, message):
    with pytest.raises(ConfigError, match=message):
        config.parse_arg(text, method="lora", rank=4)


def test_parse_arg_reads():
    read = config.parse_arg("rank=8,lr=0.5,scan=True", method="lora", rank=4, lr=1.0, scan=False)
    assert read.to_dict() == dict(method="lora", rank=8, lr=0.5, scan=True)
    assert config.parse_arg(None, rank=4).rank == 4
    with pytest.raises(ConfigError, match="must be int"):
        config.parse_arg("rank=8.5", rank=4)
    with pytest.raises(ConfigError, match="must be bool"):
        config.parse_arg("scan=0.5", scan=False)


def test_config_files_name_the_exact_command(capsys):
    for file in FILES:
        text = read_names(file)["__doc__"]
        assert f"--config=configs/{file.name}" in text
    assert main(["train", "--help"]) == 0
    assert "--config" in capsys.readouterr().out


def test_a_younger_field_counts_only_where_it_is_used():
    c = config.default()
    old = config.plain(c)
    del old["adapter"]["layers"], old["input"]["keep_prefix"]
    assert config.differences(old, config.plain(c)) == {}
    assert config.digest(old) == config.digest(c)
    c.adapter.layers = 3
    assert config.differences(old, config.plain(c)) == {"adapter.layers": (None, 3)}
    assert config.digest(old) != config.digest(c)


def test_remat_was_true_or_false_once():
    for value, wanted in ((True, "full"), (False, "none"), ("True", "full"), ("cheap", "cheap")):
        given = config.default(data_set="digits")
        given.backbone.remat = value
        config.check(given)
        assert config.resolve(given).backbone.remat == wanted
        assert config.resolve(config.completed(config.plain(given))).backbone.remat == wanted
        assert backbones.config("vit_mini", remat=value).remat == wanted
    given.backbone.remat = "chaep"
    with pytest.raises(TypeError):  # no other field takes any type
        given.backbone.weights = 5
    with pytest.raises(ConfigError, match="(?s)unknown remat 'chaep'; did you mean 'cheap'"):
        config.check(given)


def test_the_frozen_half_may_be_in_few_bits_and_activations_may_not():
    given = config.default(data_set="digits")
    given.compute.frozen_dtype = "nf4"
    config.check(given)
    given.compute.dtype = given.compute.frozen_dtype = "int4"
    with pytest.raises(ConfigError, match="(?s)unknown compute.dtype.*frozen_dtype 'int4'.*int8"):
        config.check(given)
