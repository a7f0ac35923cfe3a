"""What the cells of a sweep are: protocol, grid, settings, from a config as `configs/vtab.py`.

A method is a name, or a variant of one, `iconformer:kernels=static:prefix=drop`: its settings, with
these in the place of the config's, and its grid. A variant's row in a table has this whole name.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dynadapt import adapters, backbones, choices, tree
from dynadapt import config as configs
from dynadapt.data import transforms
from dynadapt.errors import ConfigError, UnknownName, suggest
from dynadapt.plans import compare
from dynadapt.sweep import suites

HYPER = {  # of a grid, and where they must lie
    "lr": "(0, inf)",
    "weight_decay": "[0, inf)",
    "drop_path": "[0, 1)",
    "scale": "(-inf, inf)",
}
SELECTIONS = ("val", "first")
FIELDS = ("protocol", "grids", "settings", "eval_batch_size", "save_seconds", "compute")
PROTOCOL = (
    *("name", "transform", "normalise", "pool", "batch_size", "epochs", "steps", "optimizer"),
    *("momentum", "schedule", "warmup", "select", "tuning_seeds"),
)
TRAINED, BOTH = 800, 1000


def chosen_tasks(suite: str, given: Sequence[str]) -> list[str]:
    """Tasks of a suite by name, by group, or all of them, in the suite's order."""
    known = suites.find(suite).tasks
    groups = dict.fromkeys(t.group for t in known.values())
    found = set()
    for word in given:
        own = [t.name for t in known.values() if word in ("all", t.group, t.name)]
        if not own:
            raise UnknownName(f"task of {suite}", word, [*known, *groups, "all", "here"])
        found.update(own)
    if not found:
        raise ConfigError(f"give tasks of {suite}: all, groups such as natural, or names")
    return [task for task in known if task in found]


def chosen_methods(config: ConfigDict, given: Sequence[str], backbone: str) -> list[str]:
    """Methods by name, variants, or all that serve the backbone with the config's settings."""
    if list(given) == ["all"]:
        settings = {m: config.settings.get(m, {}) for m in adapters.names()}
        refused = compare.refusals(backbone, settings)
        return [m for m in settings if m not in refused]
    if file := next((word for word in given if choices.is_file(method_of(word))), ""):
        raise ConfigError(
            f"a suite takes methods by name, not the file {file!r}; an entry point of the group "
            "dynadapt.adapters gives it a name, and `dynadapt sweep run` takes files"
        )
    compare.chosen([method_of(word) for word in given])
    return list(dict.fromkeys(given))


def method_of(variant: str) -> str:
    """The method of a variant."""
    return variant.partition(":")[0]


def settings_of(config: ConfigDict, variant: str) -> dict[str, Any]:
    """The settings of a variant that differ from its method's defaults."""
    name, _, text = variant.partition(":")
    known, given = adapters.settings(name), dict(config.settings.get(name, {}))
    own = [item for item in text.split(":") if item]
    names = [item.partition("=")[0] for item in own]
    if strange := [k for k in (*given, *names) if k not in known]:
        raise ConfigError(f"{name} has no setting {strange[0]!r}; {suggest(strange[0], known)}")
    return given | {k: configs.parse_arg(i, **known)[k] for k, i in zip(names, own, strict=True)}


def check_variant(config: ConfigDict, variant: str, backbone: str) -> None:
    """Raises a ConfigError for settings that the backbone can't be adapted with."""
    name = method_of(variant)
    if reason := compare.refusals(backbone, {name: settings_of(config, variant)}).get(name):
        raise ConfigError(f"{variant}: {reason}")


def chosen_seeds(given: Sequence[str]) -> list[int]:
    """Seeds as numbers, each once."""
    wrong = [text for text in given if not text.strip().isdecimal() or len(text) > 18]
    if wrong or not given:
        raise ConfigError(
            f"seeds must be whole numbers such as 0,1,2, not {','.join(given)[:40]!r}"
        )
    seeds, known = list(dict.fromkeys(map(int, given))), configs.RANGES["seed"]
    if strange := [seed for seed in seeds if not choices.inside(seed, known)]:
        raise ConfigError(f"seeds must be in {known}, not {strange[0]}")
    return seeds


def field_problems(config: ConfigDict) -> list[str]:
    """Fields that a sweep's config lacks, and strangers."""
    sections = ((config, FIELDS, ""), (config.get("protocol", {}), PROTOCOL, "protocol."))
    problems = []
    for section, known, lead in sections:
        problems += [f"the config has no {lead}{f}" for f in known if f not in section]
        strange = [f for f in section if f not in known]
        problems += [f"unknown config field {lead}{f}; {suggest(f, known)}" for f in strange]
    return problems


def check(config: ConfigDict) -> None:
    """Raises a ConfigError that lists all that is wrong with a sweep's config."""
    problems, p = [], config.protocol
    if p.select not in SELECTIONS:
        problems.append(f"unknown protocol.select {p.select!r}; {suggest(p.select, SELECTIONS)}")
    if transforms.pipeline(transform(config, 32)).random:
        problems.append(
            f"protocol.transform {p.transform!r} draws at random; a sweep decodes images once"
        )
    if not 1 <= p.batch_size <= TRAINED:
        problems.append(f"protocol.batch_size must be from 1 to {TRAINED}, not {p.batch_size}")
    if p.select == "val" and not p.tuning_seeds:
        problems.append("protocol.tuning_seeds must name a seed, such as (0,)")
    for method in config.settings:
        if method not in adapters.names():
            problems.append(
                f"settings of an unknown method {method!r}; {suggest(method, adapters.names())}"
            )
    if problems:
        raise ConfigError(*problems)


def transform(config: ConfigDict, size: int) -> str:
    """The protocol's transforms for images of that side."""
    try:
        return config.protocol.transform.format(size=size)
    except (KeyError, IndexError, ValueError):
        raise ConfigError(
            f"protocol.transform {config.protocol.transform!r} may have {{size}} in braces, and "
            "nothing else"
        ) from None


def digest(config: ConfigDict) -> str:
    """SHA-256 of the protocol and of the precision of the arithmetic."""
    values = {"protocol": config.protocol.to_dict(), "compute": config.compute.to_dict()}
    return hashlib.sha256(_text(values).encode()).hexdigest()


def grid(config: ConfigDict, method: str, task: str) -> list[dict[str, float]]:
    """The values to choose among for a method on a task, in the order of the config."""
    rules = [(pattern, values) for pattern, values in config.grids]
    name = f"{method_of(method)}/{task}"
    try:
        found = next((values for pattern, values in rules if tree.matches(pattern, name)), None)
    except re.error as error:
        raise ConfigError(f"a pattern of grids is no regular expression: {error}") from None
    if found is None:
        raise ConfigError(f"no pattern of grids matches {name}; end them with ('.*', …)")
    if strange := [k for k in found if k not in HYPER]:
        raise ConfigError(f"unknown value {strange[0]!r} in grids; {suggest(strange[0], HYPER)}")
    names = [n for n in HYPER if n != "scale" or has_scale(method, config)]
    if missing := [n for n in names if n not in found]:
        raise ConfigError(f"the grid of {name} has no {missing[0]}")
    for value in names:
        _check_values(value, found[value], name)
    return [
        dict(zip(names, map(float, values), strict=True))
        for values in itertools.product(*(found[n] for n in names))
    ]


def _check_values(value: str, given: Any, name: str) -> None:
    """Raises a ConfigError unless what a grid gives for a value is a row of fitting numbers."""
    row = given if isinstance(given, tuple | list) else ()
    if not row or not all(choices.inside(v, HYPER[value]) for v in row):
        wanted = f"a row of numbers, each {choices.words(HYPER[value])}"
        raise ConfigError(f"{value} in the grid of {name} must be {wanted}, not {given!r}")


def has_scale(method: str, config: ConfigDict) -> bool:
    """Whether the method has a fixed scale s that a run may choose."""
    own = {**adapters.settings(method_of(method)), **settings_of(config, method)}
    return "scale" in own and not own.get("learn_scale")


def training_config(
    config: ConfigDict, method: str, suite: str, backbone: str, weights: str
) -> ConfigDict:
    """The config of a run of one cell, checked; its seed and grid values are yet to come."""
    p = config.protocol
    c = configs.default(backbone=backbone, method=method_of(method), data_set=suite)
    c.backbone.weights = weights
    c.adapter.update(settings_of(config, method))
    size = getattr(backbones.config(backbone), "image_size", None)
    if size is None:
        raise ConfigError(f"the backbone {backbone!r} takes point clouds, not images")
    c.task.pool = p.pool
    c.input.train = c.input.eval = transform(config, size)
    c.input.normalise, c.input.batch_size = p.normalise, p.batch_size
    c.input.eval_batch_size = config.eval_batch_size
    o = c.optim
    o.name, o.momentum, o.schedule, o.warmup = p.optimizer, p.momentum, p.schedule, p.warmup
    o.epochs, o.steps = p.epochs, p.steps
    c.compute.update(config.compute)
    configs.check(c)
    return c


def steps(config: ConfigDict, examples: int) -> int:
    """Number of optimizer steps of a run on so many examples."""
    p = config.protocol
    return p.steps or max(round(p.epochs * examples / p.batch_size), 1)


def identity(cell: Mapping[str, Any]) -> str:
    """The name of a cell: 16 digits of the SHA-256 of all that its result depends on."""
    return hashlib.sha256(_text(cell).encode()).hexdigest()[:16]


def cells(
    common: Mapping[str, Any],
    stage: str,
    points: Iterable[Mapping[str, float]],
    seeds: Iterable[int],
) -> list[dict[str, Any]]:
    """The cells of one method on one task: every point of the grid with every seed."""
    made = [{**common, "stage": stage, "hyper": dict(h), "seed": s} for h in points for s in seeds]
    return [{"cell": identity(cell), **cell} for cell in made]


def best(
    points: Sequence[dict[str, float]], results: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The point with the best mean score on val200; of equals, the first.

    A run that met a loss that was not finite takes its point out, unless all did.
    """

    def score(point: dict[str, float]) -> tuple[bool, float]:
        own = [r for r in results if r["hyper"] == point]
        sign = 1 if own[0]["better"] == "higher" else -1
        return not any(r["diverged"] for r in own), sign * sum(r["score"] for r in own) / len(own)

    return max(points, key=score)


def _text(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=list)
