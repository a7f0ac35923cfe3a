"""Protocols, grids and the identity of cells: what a sweep's results depend on."""

import runpy
from pathlib import Path

import pytest

from dynadapt import adapters
from dynadapt.data import vtab
from dynadapt.errors import ConfigError, DynadaptError, UnknownName
from dynadapt.sweep import protocol, suites

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
POINT = dict(lr=(1e-3,), weight_decay=(1e-4,), drop_path=(0.0,), scale=(1.0,))


def config(name="vtab"):
    return runpy.run_path(str(CONFIGS / "vtab.py"))["get_config"](f"protocol={name}")


def with_grids(*grids):
    c = config()
    c.grids = grids
    return c


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


# Names.


@pytest.mark.parametrize("suite", ["vtab", "offline"])
def test_tasks_by_name_group_and_all_in_the_suites_order(suite):
    known = suites.find(suite).tasks
    assert protocol.chosen_tasks(suite, ["all"]) == list(known)
    first, last = list(known)[0], list(known)[-1]
    assert protocol.chosen_tasks(suite, [last, first, last]) == [first, last]
    for group in ("natural", "specialized", "structured"):
        own = [t.name for t in known.values() if t.group == group]
        assert own and protocol.chosen_tasks(suite, [group, own[0]]) == own


def test_unknown_names_name_the_nearest():
    for call, near in (
        (lambda: protocol.chosen_tasks("vtab", ["cifar"]), "'cifar100'"),
        (lambda: protocol.chosen_tasks("vtab", ["specialised"]), "'specialized'"),
        (lambda: protocol.chosen_tasks("vtabb", ["all"]), "'vtab'"),
        (lambda: protocol.chosen_methods(config(), ["lorra"], "vit_mini"), "'lora'"),
        (lambda: config("noaa"), "'noah'"),
    ):
        with pytest.raises(UnknownName) as error:
            call()
        assert near in one_sentence(error)
    for call in (
        lambda: protocol.chosen_tasks("vtab", []),
        lambda: protocol.chosen_methods(config(), [], "vit_mini"),
        lambda: protocol.chosen_seeds([]),
        lambda: protocol.chosen_seeds(["0", "one"]),
        lambda: protocol.chosen_seeds(["-1"]),
        lambda: protocol.chosen_seeds(["4294967296"]),
        lambda: protocol.chosen_seeds(["9" * 5000]),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        one_sentence(error)


def test_seeds_and_methods_are_taken_once():
    assert protocol.chosen_seeds(["2", "0", "2"]) == [2, 0]
    assert protocol.chosen_methods(config(), ["ssf", "lora", "ssf"], "vit_mini") == ["ssf", "lora"]
    every = protocol.chosen_methods(config(), ["all"], "vit_mini")
    # One is for point clouds.
    assert set(every) == set(adapters.names()) - {"dapt"}


def test_a_variant_is_its_method_with_other_settings():
    c, name = config(), "iconformer:kernels=static:rank=3"
    c.settings = dict(iconformer=dict(rank=2, act="gelu"))
    assert protocol.chosen_methods(c, [name, "lora", name], "vit_mini") == [name, "lora"]
    own = protocol.training_config(c, name, "vtab", "vit_mini", "").adapter
    found = (own.name, own.kernels, own.rank, own.act)
    assert found == ("iconformer", "static", 3, "gelu")
    assert protocol.grid(c, name, "dtd") == protocol.grid(c, "iconformer", "dtd")
    assert not protocol.has_scale("iconformer:learn_scale=True", c)
    for wrong, part in (
        ("iconformer:kernel_=3", "iconformer has no setting 'kernel_'; did you mean 'kernel' or"),
        ("iconformer:kernel=three", "'kernel' must be int"),
        ("iconforme:kernel=3", "did you mean 'iconformer'?"),
    ):
        with pytest.raises(DynadaptError) as error:
            protocol.chosen_methods(c, [wrong], "vit_mini")
            protocol.training_config(c, wrong, "vtab", "vit_mini", "")
        assert part in one_sentence(error)


def test_a_variant_that_cannot_be_built_is_refused_by_its_name():
    protocol.check_variant(config(), "iconformer:kernels=static", "vit_mini")
    with pytest.raises(ConfigError) as error:
        protocol.check_variant(config(), "iconformer:kernels=statik", "vit_mini")
    assert "iconformer:kernels=statik: unknown kind of kernels" in one_sentence(error)


# Protocols.


def test_no_two_protocols_have_one_digest():
    names = runpy.run_path(str(CONFIGS / "vtab.py"))["PROTOCOLS"]
    digests = {name: protocol.digest(config(name)) for name in names}
    assert set(names) == {"vtab", "noah", "ssf", "unit", "official"}
    assert len(set(digests.values())) == len(names)
    assert digests["vtab"] == protocol.digest(config("vtab"))


def test_each_field_of_a_protocol_is_in_its_digest():
    whole = protocol.digest(config())
    found = {whole}
    for field in protocol.PROTOCOL:
        c = config()
        value = c.protocol[field]
        with c.unlocked():
            del c.protocol[field]
            c.protocol[field] = (*value, 7) if isinstance(value, tuple) else f"{value}!"
        found.add(protocol.digest(c))
    c = config()
    c.compute.dtype = "bfloat16"
    found.add(protocol.digest(c))
    assert len(found) == len(protocol.PROTOCOL) + 2
    # What leaves the arithmetic as it is, or is told by each result, is not.
    c = config()
    c.eval_batch_size, c.save_seconds, c.grids = 7, 1.0, ((".*", POINT),)
    assert protocol.digest(c) == whole


@pytest.mark.parametrize("name", ["vtab", "noah", "ssf", "unit", "official"])
def test_protocols_can_be_run(name):
    c = config(name)
    assert protocol.field_problems(c) == []
    protocol.check(c)
    for method in ("iconformer", "lora", "ssf", "linear", "full"):
        run = protocol.training_config(c, method, "vtab", "vit_b16", "")
        assert (run.adapter.name, run.input.batch_size) == (method, c.protocol.batch_size)
        assert "224" in run.input.train and run.input.train == run.input.eval
        assert run.input.normalise == c.protocol.normalise
        for task in vtab.TASKS:
            assert protocol.grid(c, method, task)


def test_length_of_training():
    c = config()
    c.protocol.update(dict(epochs=3.0, batch_size=64))
    assert (protocol.steps(c, 800), protocol.steps(c, 1000)) == (38, 47)  # 37.5 and 46.9
    c.protocol.epochs = 0.01
    assert protocol.steps(c, 800) == 1
    assert protocol.steps(config("official"), 800) == 1000


# Grids.


def test_the_first_pattern_that_matches_is_taken():
    c = with_grids(
        ("lora/svhn", dict(POINT, lr=(0.5,))),
        ("lora/.*", dict(POINT, lr=(0.1, 0.2), scale=(1.0, 2.0))),
        (".*", dict(POINT, weight_decay=(0.0, 0.3))),
    )
    assert [p["lr"] for p in protocol.grid(c, "lora", "svhn")] == [0.5]
    points = protocol.grid(c, "lora", "dtd")
    assert [(p["lr"], p["scale"]) for p in points] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert [p["weight_decay"] for p in protocol.grid(c, "ssf", "svhn")] == [0.0, 0.3]
    # The whole name has to match.
    with pytest.raises(ConfigError, match="no pattern of grids matches lora/svhn"):
        protocol.grid(with_grids(("lora", POINT), ("svhn", POINT)), "lora", "svhn")


def test_only_a_fixed_scale_is_chosen():
    c = config()
    for method in adapters.names():
        own = adapters.settings(method)
        assert protocol.has_scale(method, c) == ("scale" in own), method
    c.settings = dict(iconformer=dict(learn_scale=True), lora=dict(scale=3.0))
    assert not protocol.has_scale("iconformer", c) and protocol.has_scale("lora", c)
    assert all("scale" not in point for point in protocol.grid(c, "iconformer", "dtd"))
    assert all("scale" in point for point in protocol.grid(c, "lora", "dtd"))
    # No scale in the grid is a fault only for a method that has one.
    c.grids = ((".*", {k: v for k, v in POINT.items() if k != "scale"}),)
    assert len(protocol.grid(c, "iconformer", "dtd")) == 1
    with pytest.raises(ConfigError, match="the grid of lora/dtd has no scale"):
        protocol.grid(c, "lora", "dtd")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (dict(lr=()), "lr in the grid of lora/dtd must be a row of numbers, each above 0, not"),
        (dict(lr=0.1), "must be a row of numbers, each above 0, not 0.1"),
        (dict(lr=(0.1, 0.0)), "above 0"),
        (dict(lr=("0.1",)), "above 0"),
        (dict(lr=(float("nan"),)), "above 0"),
        (dict(weight_decay=(-1.0,)), "numbers, each at least 0"),
        (
            dict(drop_path=(1.0,)),
            "drop_path in the grid of lora/dtd must be a row of",
        ),
        (dict(scale=(float("inf"),)), "numbers, each finite"),
        (dict(rate=(1.0,)), "unknown value 'rate' in grids"),
        (dict(weight_decy=(1.0,)), "did you mean 'weight_decay'?"),
    ],
)
def test_grids_that_cannot_be_run(change, part):
    with pytest.raises(ConfigError) as error:
        protocol.grid(with_grids((".*", {**POINT, **change})), "lora", "dtd")
    assert part in one_sentence(error)


def test_a_pattern_that_is_no_expression():
    with pytest.raises(ConfigError) as error:
        protocol.grid(with_grids(("(lora", POINT)), "lora", "dtd")
    assert "no regular expression" in one_sentence(error)


# What can't be run.


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("select", "vall", "did you mean 'val'?"),
        ("transform", "resize({size})|flip", "draws at random"),
        ("transform", "resise({size})", "did you mean 'resize'?"),
        ("transform", "resize({sise})", "may have {size} in braces"),
        ("transform", "resize({)", "may have {size} in braces"),
        ("batch_size", 801, "from 1 to 800, not 801"),
        ("batch_size", 0, "from 1 to 800"),
        ("tuning_seeds", (), "must name a seed"),
    ],
)
def test_protocols_that_cannot_be_run(field, value, part):
    c = config()
    c.protocol[field] = value
    with pytest.raises(DynadaptError) as error:
        protocol.check(c)
    assert part in one_sentence(error)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("normalise", "imagnet", "did you mean 'imagenet'?"),
        ("optimizer", "adam", "did you mean 'adamw'?"),
        ("schedule", "cosin", "did you mean 'cosine'?"),
        ("warmup", 1.0, "optim.warmup must be in [0, 1)"),
        ("epochs", 0.0, "optim.epochs or optim.steps must be above 0"),
    ],
)
def test_runs_that_cannot_be_run(field, value, part):
    c = config()
    c.protocol[field] = value
    with pytest.raises(DynadaptError) as error:
        protocol.training_config(c, "lora", "vtab", "vit_mini", "")
    assert part in one_sentence(error)


def test_settings_that_are_not_there():
    c = config()
    c.settings = dict(lorra=dict(rank=2))
    with pytest.raises(ConfigError) as error:
        protocol.check(c)
    assert "did you mean 'lora'" in one_sentence(error)
    c.settings = dict(lora=dict(rnk=2))
    with pytest.raises(ConfigError) as error:
        protocol.training_config(c, "lora", "vtab", "vit_mini", "")
    assert "lora has no setting 'rnk'; did you mean 'rank'?" in one_sentence(error)
    with pytest.raises(ConfigError) as error:
        protocol.training_config(config(), "lora", "vtab", "point_mae_s", "")
    assert "point clouds" in one_sentence(error)


def test_fields_that_are_missing_or_strange():
    c = config()
    with c.unlocked():
        del c.protocol["warmup"]
        c.protocol.warm_up = 0.1
        c.grid = c.grids
        del c["grids"]
    assert protocol.field_problems(c) == [
        "the config has no grids",
        "unknown config field grid; did you mean 'grids'?",
        "the config has no protocol.warmup",
        "unknown config field protocol.warm_up; did you mean 'warmup'?",
    ]


# Cells.


def common(**changes):
    values = dict(suite="vtab", form="tfds", protocol="vtab", protocol_digest="a", backbone="b")
    values |= dict(weights_sha256="c", method="lora", settings={"rank": 8}, task="svhn")
    return {**values, **changes}


def test_the_name_of_a_cell_is_that_of_all_that_it_depends_on():
    point = dict(lr=0.1, scale=1.0)
    [cell] = protocol.cells(common(), "final", [point], [0])
    assert len(cell["cell"]) == 16 and cell["seed"] == 0 and cell["hyper"] == point
    others = [
        protocol.cells(common(**{name: "other"}), "final", [point], [0])[0] for name in common()
    ]
    others += protocol.cells(common(), "tune", [point], [0])
    others += protocol.cells(common(), "final", [dict(point, lr=0.2)], [0])
    others += protocol.cells(common(), "final", [point], [1])
    assert len({c["cell"] for c in (cell, *others)}) == len(others) + 1
    # The order of fields, and tuples instead of lists, are no difference.
    turned = dict(reversed(common(settings={"targets": ["q", "v"]}).items()))
    straight = common(settings={"targets": ("q", "v")})
    again = [protocol.cells(c, "final", [point], [0])[0]["cell"] for c in (turned, straight)]
    assert again[0] == again[1] != cell["cell"]


def test_cells_are_every_point_with_every_seed():
    points = [dict(lr=0.1), dict(lr=0.2)]
    found = protocol.cells(common(), "tune", points, (0, 5))
    assert [(c["hyper"]["lr"], c["seed"]) for c in found] == [
        *((0.1, 0), (0.1, 5), (0.2, 0), (0.2, 5)),
    ]
    assert len({c["cell"] for c in found}) == 4


def result(lr, score, diverged=None, better="higher"):
    return dict(hyper=dict(lr=lr), score=score, better=better, diverged=diverged)


def test_the_best_point():
    points = [dict(lr=v) for v in (0.1, 0.2, 0.3)]
    rows = [result(0.1, 50), result(0.1, 52), result(0.2, 60), result(0.2, 43)]
    rows += [result(0.3, 51), result(0.3, 50.5)]
    assert protocol.best(points, rows) == dict(lr=0.2)  # 51, 51.5 and 50.75
    # The first of equals, though a later one is listed before it.
    equal = [result(0.3, 60), result(0.2, 60), result(0.1, 1)]
    assert protocol.best(points, equal) == dict(lr=0.2)
    # One that diverged is out however well it did; if all did, the best of them is in.
    away = [result(0.1, 10), result(0.2, 90, diverged=7), result(0.3, 20)]
    assert protocol.best(points, away) == dict(lr=0.3)
    lost = [result(0.1, 10, 1), result(0.2, 90, 7), result(0.3, 20, 3)]
    assert protocol.best(points, lost) == dict(lr=0.2)


def test_where_lower_is_better_the_lowest_is_taken():
    points = [dict(lr=0.1), dict(lr=0.2)]
    results = [result(0.1, 0.4, better="lower"), result(0.2, 0.3, better="lower")]
    assert protocol.best(points, results) == points[1]
