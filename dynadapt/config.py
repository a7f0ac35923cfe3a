"""Configurations: every field with its default, and one check that lists all problems at once.

A config file has `get_config(arg)` that starts from `default(...)` and changes fields. Each value
can be overridden on the command line as `--config.optim.lr=0.01`.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from ml_collections import ConfigDict

from dynadapt import adapters, backbones, data, tasks, weights
from dynadapt.data import images, transforms
from dynadapt.errors import ConfigError, DynadaptError, suggest

DTYPES = ("float32", "bfloat16", "float16")
# What may change between two runs of one work directory: it never touches the result.
FREE = ("mesh", "log")
# Sections that hold the settings of the module that they name.
SETTINGS = ("adapter", "task", "data")


def default(
    *,
    backbone: str = "vit_b16",
    method: str = "iconformer",
    task: str = "classification",
    data_set: str = "folder",
) -> ConfigDict:
    """A complete config; `adapter`, `task` and `data` hold the settings of the chosen modules.

    Every section is a flat set of plain values. See the comments for meaning and units.
    """
    return ConfigDict(
        dict(
            seed=0,
            # Methods to run one after another, each in its own folder, for one table.
            compare=(),
            backbone=dict(
                name=backbone,
                # A file, the name of weights that come with the package, or "" for random ones.
                weights="",
                # Side that the position embeddings are made for; 0 is the variant's own.
                image_size=0,
                scan=False,
                remat=False,
            ),
            adapter=dict(name=method, **adapters.settings(method)),
            # Patterns of further parameters that train, such as "backbone/norm/.*".
            trainable=(),
            task=dict(name=task, **tasks.settings(task)),
            data=dict(name=data_set, **data.settings(data_set)),
            input=dict(
                train_split="train",
                eval_split="test",
                # Images in one optimizer step, over all devices.
                batch_size=64,
                eval_batch_size=256,
                # Transforms of `data.images`, in order; decoding comes first by itself.
                train="resize(224)",
                eval="resize(224)",
                normalise="imagenet",
                # Reading threads; -1 chooses by data set and machine.
                threads=-1,
                # What a broken image does: "stop" the run, or be skipped and counted with "skip".
                on_error="stop",
            ),
            optim=dict(
                name="adamw",
                lr=1e-3,
                # Length of training: steps, or epochs where steps is 0.
                epochs=10.0,
                steps=0,
                # Part of the steps with a rising rate; then "cosine" falls to zero, and "stairs" to
                # a tenth after 30, 60 and 90 % of the steps.
                warmup=0.1,
                schedule="cosine",
                weight_decay=1e-4,
                # Patterns that get no weight decay (norms, biases and scalars never do).
                no_decay=(),
                # Ordered (pattern, factor) pairs on the learning rate; 0 freezes. First match wins.
                lr_mults=(),
                # Factor on the rate for each block below the head; 1 is none.
                layer_decay=1.0,
                beta1=0.9,
                beta2=0.999,
                momentum=0.9,
                # Largest global norm of the trained leaves' gradient; 0 is none.
                clip_norm=0.0,
                # Parts that a batch is cut into, one after another, to save memory.
                accumulate=1,
                # Decay of a running mean of the trained leaves, which is then evaluated; 0 is none.
                ema=0.0,
                # Largest rate of dropped residual branches, linear in depth.
                drop_path=0.0,
            ),
            compute=dict(
                # Of activations. Norms, softmax, generated kernels and losses stay in float32.
                dtype="float32",
                # Of the stored frozen parameters.
                frozen_dtype="float32",
            ),
            # Devices on each axis; -1 is all that are left.
            mesh=dict(data=-1, fsdp=1),
            log=dict(every=20, tensorboard=False),
            # Steps between checkpoints and between evaluations while training; 0 is none.
            save_every=100,
            eval_every=0,
        )
    )


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Reads the part of `file.py:name=value,name=value` behind the colon.

    Args:
        arg: the text, or None.
        **defaults: allowed names and their defaults, which also give the types.

    Raises:
        ConfigError: for a name that is not allowed, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, found, text = item.partition("=")
        if name not in defaults:
            raise ConfigError(f"unknown config argument {name!r}; {suggest(name, defaults)}")
        if not found:
            raise ConfigError(f"config argument {name!r} needs a value: {name}=…")
        kind = type(defaults[name])
        try:
            value = text if kind is str else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if not _same_type(value, defaults[name]):
            raise ConfigError(f"config argument {name!r} must be {kind.__name__}, not {text!r}")
        values[name] = kind(value)
    return ConfigDict(values)


def fields(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of all sections and fields, such as `optim` and `optim.lr`."""
    names = []
    for key, value in config.items():
        names.append(f"{prefix}{key}")
        if hasattr(value, "items"):
            names += fields(value, f"{prefix}{key}.")
    return names


def field_problems(config: ConfigDict) -> list[str]:
    """Fields that `default` has and this config lacks, and strangers; settings come later."""
    chosen = {name: str(config.get(name, {}).get("name", "")) for name in SETTINGS}
    own = [f for f in fields(config) if f.partition(".")[0] not in SETTINGS]
    known = [f for f in fields(default()) if f.partition(".")[0] not in SETTINGS]
    missing = [f for f in known if f not in own] + [f"{k}.name" for k, v in chosen.items() if not v]
    problems = []
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        problems.append(f"the config has no {shown}; start it from config.default(…)")
    strange = [f for f in own if f not in known and not f.startswith("backbone.")]
    return problems + [f"unknown config field {f!r}; {suggest(f, known)}" for f in strange]


def check(config: ConfigDict) -> None:
    """Checks the whole config before anything is made.

    Raises:
        ConfigError: listing every problem found.
    """
    problems = field_problems(config)
    if problems:
        raise ConfigError(*problems)

    def attempt(fn: Any, *args: Any) -> Any:
        try:
            return fn(*args)
        except ConfigError as error:
            problems.extend(error.problems)
        except DynadaptError as error:
            problems.append(str(error))
        return None

    def need(condition: bool, problem: str) -> None:
        if not condition:
            problems.append(problem)

    # An image size of 0 is the variant's own; point clouds have none.
    unset = ("name", "weights", *(() if config.backbone.image_size else ("image_size",)))
    sizes = {k: v for k, v in config.backbone.items() if k not in unset}
    attempt(lambda: backbones.config(config.backbone.name, **sizes))
    if config.backbone.weights:
        attempt(weights.locate, config.backbone.weights)
    sections = (
        ("adapter", adapters, "method"),
        ("task", tasks, "task"),
        ("data", data, "data set"),
    )
    for name, package, kind in sections:
        known = attempt(package.settings, config[name].name)
        if known is not None:
            problems += _settings_problems(name, kind, config[name], known)
    attempt(transforms.pipeline, config.input.train)
    steady = attempt(transforms.pipeline, config.input.eval)
    need(
        steady is None or not steady.random,
        f"input.eval {config.input.eval!r} draws at random, which an evaluation must not",
    )
    for value, choices, kind in (
        (config.input.normalise, images.NORMALISATIONS, "normalisation"),
        (config.input.on_error, ("stop", "skip"), "input.on_error"),
        (config.optim.name, ("adamw", "sgd"), "optimizer"),
        (config.optim.schedule, ("cosine", "stairs"), "schedule"),
        (config.compute.dtype, DTYPES, "compute.dtype"),
        (config.compute.frozen_dtype, DTYPES, "compute.frozen_dtype"),
    ):
        need(value in choices, f"unknown {kind} {value!r}; {suggest(value, choices)}")
    i, o = config.input, config.optim
    need(i.batch_size >= 1, f"input.batch_size must be at least 1, not {i.batch_size}")
    need(
        i.eval_batch_size >= 1, f"input.eval_batch_size must be at least 1, not {i.eval_batch_size}"
    )
    need(
        not config.log.tensorboard or find_spec("tensorboardX") is not None,
        "log.tensorboard needs tensorboardX: pip install 'dynadapt[track]'",
    )
    need(config.seed >= 0, f"seed must be at least 0, not {config.seed}")
    need(o.steps >= 0, f"optim.steps must be at least 0, not {o.steps}")
    for name, patterns in (("trainable", config.trainable), ("optim.no_decay", o.no_decay)):
        problems.extend(_pattern_problems(name, patterns))
    pairs = [p for p in o.lr_mults if isinstance(p, tuple | list) and len(p) == 2]
    need(
        len(pairs) == len(o.lr_mults) and all(isinstance(f, int | float) for _, f in pairs),
        f"optim.lr_mults must be pairs such as (('head/.*', 0.1),), not {o.lr_mults!r}",
    )
    problems.extend(_pattern_problems("optim.lr_mults", [p for p, _ in pairs]))
    need(o.lr > 0, f"optim.lr must be above 0, not {o.lr}")
    need(o.steps > 0 or o.epochs > 0, "optim.epochs or optim.steps must be above 0")
    need(0 <= o.warmup < 1, f"optim.warmup must be a part in [0, 1), not {o.warmup}")
    need(o.weight_decay >= 0, f"optim.weight_decay must be at least 0, not {o.weight_decay}")
    need(0 < o.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], not {o.layer_decay}")
    need(0 <= o.ema < 1, f"optim.ema must be in [0, 1), not {o.ema}")
    need(0 <= o.drop_path < 1, f"optim.drop_path must be in [0, 1), not {o.drop_path}")
    need(o.accumulate >= 1, f"optim.accumulate must be at least 1, not {o.accumulate}")
    need(config.log.every >= 1, f"log.every must be at least 1, not {config.log.every}")
    need(config.save_every >= 0, f"save_every must be at least 0, not {config.save_every}")
    if o.accumulate >= 1 and i.batch_size >= 1:
        need(
            i.batch_size % o.accumulate == 0,
            f"input.batch_size {i.batch_size} is not divisible by optim.accumulate {o.accumulate}",
        )
    if problems:
        raise ConfigError(*problems)


def _pattern_problems(name: str, patterns: Iterable[Any]) -> list[str]:
    """Patterns that are no regular expression."""
    problems = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            problems.append(f"{name} has {pattern!r}, which is no regular expression: {error}")
    return problems


def _settings_problems(
    section: str, kind: str, given: ConfigDict, known: Mapping[str, Any]
) -> list[str]:
    """Unknown settings, settings of another type, and settings that must be given but are not."""
    problems = []
    for key, value in given.items():
        if key == "name":
            continue
        if key not in known:
            problems.append(
                f"{kind} {given.name!r} has no setting {section}.{key}; {suggest(key, known)}"
            )
        elif not _same_type(value, known[key]):
            wanted = type(known[key]).__name__
            problems.append(f"{section}.{key} must be {wanted}, not {type(value).__name__}")
    return problems


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    return isinstance(value, type(default))


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def digest(config: ConfigDict | dict[str, Any]) -> str:
    """SHA-256 of all that touches the result (not mesh and log)."""
    values = plain(config) if isinstance(config, ConfigDict) else config
    kept = {k: v for k, v in values.items() if k not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields that differ between two plain configs, as `a.b: old -> new`."""
    rows = []
    for key in sorted({*old, *new}):
        if not prefix and key in FREE:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            rows += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return rows


def from_plain(values: dict[str, Any]) -> ConfigDict:
    """A config from plain JSON values, lists as tuples."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: frozen(v) for k, v in value.items()}
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(frozen(values))
