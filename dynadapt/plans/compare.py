"""Methods side by side on one backbone, from shapes alone: at their default settings with a linear
head, or with the settings and the head of a config.

Nothing is read, drawn or compiled: the forward pass of each is traced once.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import adapters, attach, backbones, choices, model, tasks, tree
from dynadapt import config as configs
from dynadapt.attach import Shared
from dynadapt.context import Context
from dynadapt.data import MAX_CLASSES, Info, blank
from dynadapt.errors import ConfigError
from dynadapt.layers import SameKey
from dynadapt.plans.printed import printed
from dynadapt.runs import workdir
from dynadapt.runs.journal import show_table, size_text
from dynadapt.runs.speed import matmul_flops

NOTE = (
    "rank: that of the settings. sites: adapted modules. bytes: float32, with the head, "
    "as in an adapter file. FLOPs: matrix products and convolutions of one input, without the "
    "head, over the bare backbone's; "
    "iconformer's depth-wise kernels are sums of products and not among them. printed: the "
    "literature's count or share, at its settings."
)


def run(
    backbone: str,
    methods: list[str],
    classes: int = 10,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What each method adds to a backbone.

    Args:
        backbone: a variant such as `vit_b16`.
        methods: names of methods, or `all`.
        classes: that the head tells apart, where it tells any.
        given: a config for each method, on that backbone, whose settings and task are taken;
            without, settings are the methods' own and the head is linear.

    Returns:
        `backbone`, its `parameters`, `flops` of one input, `input`, `task`, `methods`: a row each,
        with `settings` as they are for this backbone, `sites`, `trained`, `trained_with_head`,
        `share` and `extra_flops` in percent, `bytes`, `mergeable`, `obstacle` (why not) and
        `printed`; or `reason` where the method can't serve the backbone.

    Raises:
        ConfigError: for an unknown backbone or method, fewer than two classes or too many.
    """
    if not 2 <= classes <= MAX_CLASSES:
        raise ConfigError(f"classes must be at least 2 and at most {MAX_CLASSES:,}, not {classes}")
    names = chosen(methods)
    given = given or {
        name: configs.default(backbone=backbone, method=name, data_set="digits") for name in names
    }
    first = next(iter(given.values()))
    # Blocks of one kind are traced once; what is counted does not depend on it.
    bare = backbones.abstract(backbone, **{**model.sizes(first), "scan": True})
    graph, state = nnx.split(bare)
    inputs = jax.ShapeDtypeStruct((1, *_input(bare)), jnp.float32)
    flops = _forward_flops(bare, inputs)
    task = tasks.from_config(first.task, _info(first, classes))
    rows, asked = [], (first.task.name, classes)
    for name in names:
        settings = {k: v for k, v in given[name].adapter.items() if k != "name"}
        try:
            row = _row(name, settings, graph, state, inputs, flops, task)
        except ConfigError as error:
            row = {"reason": str(error)}
        row["printed"] = printed(name, backbone, *asked)
        rows.append({"method": choices.title(name), **row})
    counted = tree.size(nnx.filter_state(state, nnx.Param))
    values = {"backbone": backbone, "parameters": counted, "flops": flops, "classes": classes}
    values["task"] = first.task.name
    return {**values, "input": list(inputs.shape[1:]), "methods": rows}


def chosen(methods: list[str]) -> list[str]:
    """The named methods, or files of methods, each once, or `all`.

    Raises:
        ConfigError: for a method that does not exist, two of one title, or none.
    """
    names = adapters.names() if list(methods) == ["all"] else list(dict.fromkeys(methods))
    if not names:
        raise ConfigError("give --methods=all, or names such as --methods=lora,iconformer")
    titles: dict[str, str] = {}
    for name in names:
        adapters.module(name)
        if (other := titles.setdefault(choices.title(name), name)) != name:
            raise ConfigError(f"{other} and {name} are called the same; rename one of the files")
    return names


def refusals(backbone: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Why each of the methods that can't serve the backbone with these settings does not."""
    bare = backbones.abstract(backbone)
    graph, state = nnx.split(bare)
    found = {}
    for name, given in settings.items():

        def adapt(state: Any, name: str = name, given: Any = given) -> None:
            adapters.adapt(nnx.merge(graph, state), name, rngs=SameKey(), **given)

        try:
            jax.eval_shape(adapt, state)
        except ConfigError as error:
            found[name] = str(error)
    return found


def _input(backbone: nnx.Module) -> tuple[int, ...]:
    """Shape of one input: a square image, or the points that make up all groups."""
    if backbone.takes == "image":
        return (backbone.image_size, backbone.image_size, 3)
    return (16 * backbone.config.groups, 3)


def _info(config: Any, classes: int) -> Info:
    """Data of so many classes with all fields that the config's task needs."""
    fields = tasks.needed(config.task)
    return blank.source("train", fields=fields, class_count=classes).info


def _row(
    name: str,
    settings: Mapping[str, Any],
    graph: Any,
    state: Any,
    inputs: jax.ShapeDtypeStruct,
    flops: int,
    task: Any,
) -> dict[str, Any]:
    obstacle = ""

    def adapted(state: Any) -> model.Model:
        nonlocal obstacle
        backbone = nnx.merge(graph, state)
        adapters.adapt(backbone, name, rngs=SameKey(), **settings)
        obstacle = adapters.obstacle(backbone, name)
        like = model.features(backbone, {backbone.takes: inputs})
        return model.Model(backbone, model.head_of(task, like, SameKey()))

    network = nnx.eval_shape(adapted, state)
    filters = adapters.trainable(adapters.trains(name, network.backbone.order, **settings))
    # Running statistics are no parameters.
    _, train, frozen, _ = nnx.split(network, filters, nnx.Param, ...)
    counts = workdir.counts(train, frozen)
    hosts = [host for _, host in attach.adapted(network)]
    return {
        "settings": adapters.resolved(network.backbone, name, **settings),
        "sites": sum(not isinstance(host.adapter, Shared) for host in hosts),
        "trained": counts["trained"],
        "trained_with_head": counts["trained_with_head"],
        "share": 100 * counts["trained"] / counts["backbone"],
        "extra_flops": 100 * (_forward_flops(network.backbone, inputs) / flops - 1),
        "bytes": counts["trained_bytes"],
        "mergeable": not obstacle,
        "obstacle": obstacle,
    }


def _forward_flops(backbone: nnx.Module, inputs: jax.ShapeDtypeStruct) -> int:
    graph, state = nnx.split(backbone)

    def forward(state: Any, x: jax.Array) -> Any:
        return [f.maps for f in model.of_tasks(nnx.merge(graph, state)(x, Context()))]

    return matmul_flops(forward, state, inputs)


def show(result: dict[str, Any]) -> None:
    """Prints the comparison."""
    columns = ["method", "rank", "sites", "trained", "with head", "of backbone", "FLOPs", "bytes"]
    rows = []
    for row in result["methods"]:
        if "reason" in row:
            rows.append([row["method"], *[None] * 4, "", "", "", row["printed"], row["reason"]])
            continue
        rank = row["settings"].get("rank")
        counts = [rank, *(row[k] for k in ("sites", "trained", "trained_with_head"))]
        shares = [f"{row['share']:7.3f} %", f"{row['extra_flops']:+7.2f} %"]
        why = row["obstacle"].removeprefix(f"{row['method']} can't be merged into the weights: ")
        merges = f"no: {why}" if why else "yes" if row["sites"] else "nothing to merge"
        line = [row["method"], *counts, *shares, size_text(row["bytes"]), row["printed"], merges]
        rows.append(line)
    size = "x".join(map(str, result["input"]))
    title = (
        f"{result['backbone']}: {result['parameters']:,} parameters, "
        f"{result['flops'] / 1e9:.1f} GFLOP an input of {size}, {result['task']} of "
        f"{result['classes']} classes"
    )
    show_table(title, [*columns, "printed", "merges"], rows, note=NOTE)
