"""Configurations: every field with its default, and one check that lists all problems at once.

A config file has `get_config(arg)` that starts from `default(...)` and changes fields. Each value
can be overridden on the command line as `--config.optim.lr=0.01`.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dynadapt import adapters, backbones, choices, data, optim, tasks, tree, weights
from dynadapt.data import images, loader, transforms
from dynadapt.errors import ConfigError, DynadaptError, suggest
from dynadapt.layers import quantised

DTYPES = ("float32", "bfloat16", "float16")
SINKS = ("mlflow", "wandb")
# What may change between two runs of one work directory: it never touches the result.
FREE = (
    *(r"mesh\..*", r"log\..*", "save_every", "eval_every", r"input\.(threads|eval_batch_size)"),
    *(r"backbone\.(scan|remat)", r"optim\.bad_steps"),
)
# Fields that are younger than runs, and what these were made with: so they count for nothing.
SINCE = {"adapter.layers": 0, "input.keep_prefix": False}
# The numbers that a config may hold; none of them is infinite.
RANGES = {
    "seed": "[0, 4294967295]",
    **dict.fromkeys(("input.batch_size", "input.eval_batch_size"), "[1, 1048576]"),
    **dict.fromkeys(("save_every", "eval_every", "optim.steps"), "[0, 2147483647]"),
    **dict.fromkeys(("log.every", "optim.accumulate", "optim.bad_steps"), "[1, 2147483647]"),
    "input.threads": "[-1, 1024]",
    "optim.lr": "(0, inf)",
    **dict.fromkeys(("optim.epochs", "optim.weight_decay", "optim.clip_norm"), "[0, inf)"),
    **dict.fromkeys(("optim.warmup", "optim.momentum", "optim.beta1", "optim.beta2"), "[0, 1)"),
    **dict.fromkeys(("optim.ema", "optim.drop_path"), "[0, 1)"),
    "optim.layer_decay": "(0, 1]",
}
# Sections that hold the settings of the module that they name.
SETTINGS = ("adapter", "task", "data")


def default(
    *,
    backbone: str = "vit_b16",
    method: str = "iconformer",
    task: str = "classification",
    data_set: str = "folder",
) -> ConfigDict:
    """A complete config: flat sections of plain values; comments tell their meaning and units."""
    return ConfigDict(
        dict(
            seed=0,
            backbone=dict(
                name=backbone,
                # A file, the name of weights that come with the package, or "" for random ones.
                weights="",
                # Side that the position embeddings are made for; 0 is the variant's own.
                image_size=0,
                scan=False,
                # What a backward pass recomputes: "none", what is "cheap", or "full".
                remat=FieldReference("none", field_type=object),  # true or false once
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
                # Transforms of `data.transforms`, in order; decoding comes first. {size} is
                # the backbone's image size; {short} 9/8 of it, for a side before a crop.
                train="resize({size})",
                eval="resize({size})",
                # "" is what the backbone's weights expect.
                normalise="",
                # Reading threads; -1 chooses by data set and machine.
                threads=-1,
                # What a broken image does: "stop" the run, or be skipped and counted with "skip".
                on_error="stop",
                # Whether what the frozen blocks below answer is kept; see `adapter.layers`.
                keep_prefix=False,
            ),
            optim=dict(
                name="adamw",
                lr=1e-3,
                # Length of training: steps, or epochs where steps is 0.
                epochs=10.0,
                steps=0,
                # Part of the steps with a rising rate; then "cosine" and "linear" fall to zero,
                # "cosine_hundredth" to a hundredth, "stairs" to a tenth after 30, 60 and 90 % of
                # the steps, and "constant" stays.
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
                # A step whose loss, gradient or update is not finite is skipped; so many end a run.
                bad_steps=5,
            ),
            compute=dict(
                # Of activations. Norms, softmax, generated kernels and losses stay in float32.
                dtype="float32",
                # Of the stored frozen parameters; with "int8" and "nf4" of their kernels.
                frozen_dtype="float32",
            ),
            # Devices on each axis; -1 is all that are left.
            mesh=dict(data=-1, fsdp=1),
            # Sinks get what TensorBoard gets: "wandb", "mlflow".
            log=dict(every=20, tensorboard=False, sinks=()),
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
        if not choices.alike(value, defaults[name]):
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


def expected(config: ConfigDict) -> tuple[int, str]:
    """Side of images and normalisation that the backbone is made for; (0, "") for points."""
    name = config.backbone.name
    own = getattr(backbones.config(name), "image_size", 0)
    return config.backbone.image_size or own, backbones.normalisation(name) if own else ""


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which all that the config leaves to the backbone is said, and where files lie.

    Raises:
        UnknownName: for a backbone that does not exist.
    """
    return _filled(config, *expected(config))


def _filled(config: ConfigDict, size: int, normalise: str) -> ConfigDict:
    made = config.copy_and_resolve_references()
    for part in ("train", "eval"):
        text = made.input[part]
        text = text.replace("{size}", str(size)).replace("{short}", str(round(size * 9 / 8)))
        made.input[part] = text if size or text == made.input[part] else ""  # clouds have no size
    made.input.normalise = made.input.normalise or normalise or "unit"
    made.backbone.weights = weights.absolute(made.backbone.weights)
    with made.ignore_type():
        made.backbone.remat = backbones.remat(made.backbone.remat)
    made.adapter.name = choices.record(made.adapter.name)
    return made


def check(config: ConfigDict) -> None:
    """Checks the whole config before anything is made.

    Raises:
        ConfigError: listing every problem found.
    """
    if problems := field_problems(config):
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
    sections = ("adapter", adapters, "method"), ("task", tasks, "task"), ("data", data, "data set")
    for name, package, kind in sections:
        known = attempt(package.settings, config[name].name)
        if known is not None:
            problems += _settings_problems(name, kind, config[name], known)
    # Of an unknown backbone nothing follows; all else is checked as for any other.
    config = attempt(resolve, config) or _filled(config, 32, "unit")
    attempt(transforms.pipeline, config.input.train)
    steady = attempt(transforms.pipeline, config.input.eval)
    need(
        steady is None or not steady.random,
        f"input.eval {config.input.eval!r} draws at random, which an evaluation must not",
    )
    for value, known, kind in (
        (config.input.normalise, images.NORMALISATIONS, "normalisation"),
        (config.input.on_error, ("stop", "skip"), "input.on_error"),
        (config.data.get("balance", ""), loader.BALANCES, "data.balance"),
        (config.optim.name, ("adamw", "sgd"), "optimizer"),
        (config.optim.schedule, optim.SCHEDULES, "schedule"),
        (config.compute.dtype, DTYPES, "compute.dtype"),
        (config.compute.frozen_dtype, (*DTYPES, *quantised.KINDS), "compute.frozen_dtype"),
        *((name, SINKS, "log.sinks") for name in config.log.sinks),
    ):
        need(value in known, f"unknown {kind} {value!r}; {suggest(value, known)}")
    i, o = config.input, config.optim
    values = flat(config.to_dict())
    for name, interval in RANGES.items():
        fits = choices.inside(values[name], interval)
        need(fits, f"{name} must be {choices.words(interval)}, not {values[name]}")
    need(
        not config.log.tensorboard or find_spec("tensorboardX") is not None,
        "log.tensorboard needs tensorboardX: pip install 'dynadapt[track]'",
    )
    for name, patterns in (("trainable", config.trainable), ("optim.no_decay", o.no_decay)):
        problems.extend(tree.pattern_problems(name, patterns))
    pairs = [p for p in o.lr_mults if isinstance(p, tuple | list) and len(p) == 2]
    need(
        len(pairs) == len(o.lr_mults) and all(choices.inside(f, "[0, inf)") for _, f in pairs),
        f"optim.lr_mults must be pairs such as (('head/.*', 0.1),), not {o.lr_mults!r}",
    )
    problems.extend(tree.pattern_problems("optim.lr_mults", [p for p, _ in pairs]))
    need(o.steps != 0 or o.epochs != 0, "optim.epochs or optim.steps must be above 0")
    if not problems:
        need(
            i.batch_size % o.accumulate == 0,
            f"input.batch_size {i.batch_size} is not divisible by optim.accumulate {o.accumulate}",
        )
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


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
        elif not choices.alike(value, known[key]):
            wanted = type(known[key]).__name__
            problems.append(f"{section}.{key} must be {wanted}, not {type(value).__name__}")
    return problems


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def digest(config: ConfigDict | dict[str, Any]) -> str:
    """SHA-256 of all that touches the result."""
    values = plain(config) if isinstance(config, ConfigDict) else config
    text = json.dumps(counted(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plain config that touch the result, by their whole names."""
    found = {k: v for k, v in flat(values).items() if not tree.matches_any(FREE, k)}
    return {k: v for k, v in found.items() if k not in SINCE or v != SINCE[k]}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields of two plain configs that differ and touch the result: their old and new values."""
    a, b = counted(old), counted(new)
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def shown(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Some differences, as `a.b: old -> new`."""
    rows = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items()]
    return ", ".join(rows[:5]) + (", …" if len(rows) > 5 else "")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a plain config by the whole names of their fields."""
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def completed(values: dict[str, Any]) -> ConfigDict:
    """A config from plain values of this or an earlier version.

    What was added since has its default, or what the method does without it; what is no more is
    left out.
    """
    given = from_plain(values)
    if choices.is_file(given.adapter.name) and not choices.is_record(given.adapter.name):
        raise ConfigError("its method is a file without a hash, which is never run")
    made = default(
        backbone=given.backbone.name,
        method=given.adapter.name,
        task=given.task.name,
        data_set=given.data.name,
    )
    made.adapter.update(adapters.before(given.adapter.name))
    for key in made:
        if key not in given:
            continue
        if key in (*SETTINGS, "backbone"):
            made[key].update(given[key])
        elif hasattr(made[key], "items"):
            made[key].update({k: v for k, v in given[key].items() if k in made[key]})
        else:
            made[key] = given[key]
    made.backbone.remat = backbones.remat(made.backbone.remat)
    return made


def from_plain(values: dict[str, Any]) -> ConfigDict:
    """A config from plain JSON values, lists as tuples."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: frozen(v) for k, v in value.items()}
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(frozen(values))
