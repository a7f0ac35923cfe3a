"""What finding objects costs beside the network: targets, answers and their suppression, compiled
apart from the training step and the inference that they are parts of.

The compiler counts the body of a loop once. Of NMS, the one loop that any of them has, all rounds
are counted here; blocks aren't scanned. Kernels of VFM-Adapter run image by image on a CPU, and are
counted for one.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dynadapt import backbones, evaluate, inputs, model, optim, sharding
from dynadapt.bench import cases
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.plans import compare, machines
from dynadapt.step import initial_state, make_step
from dynadapt.targets import atss, nms

TASKS = ("detection", "instances")


class Cost(NamedTuple):
    """FLOPs of a program, and the bytes that it reads and writes."""

    flops: float
    moved: float


def run(backbone: str, methods: list[str], batch: int, topology: str | None) -> dict[str, Any]:
    """Compiles training step and inference of detection and of instances, and parts of them.

    Of 80 classes, images of the backbone's own size, with the published necks and heads. Nothing is
    allocated.

    Args:
        backbone: a variant.
        methods: names of methods, or `all`.
        batch: images on one device.
        topology: as of `plan`, to compile for one of its chips in bfloat16, blocks rematerialised;
            None to compile in float32 for a device here.

    Returns:
        A row for each method, task and part: `gflop`, `mb` read and written, and of a part
        `of_flops` and `of_mb`, its percentage of the training step or the inference above it; or a
        `reason` where the method can't serve the backbone.
    """
    device = machines.devices(topology)[0] if topology else jax.devices()[0]
    rows = []
    for method in compare.chosen(methods):
        for task in TASKS:
            row = dict(backbone=backbone, method=method, task=task, batch=batch)
            try:
                config = _config(backbone, method, batch, task, bool(topology))
                rows += [row | part for part in parts(config, *cases.given(config), device)]
            except ConfigError as error:
                rows.append(row | dict(reason=str(error)))
    return dict(machine=topology or device.device_kind, rows=rows)


def _config(backbone: str, method: str, batch: int, task: str, ahead: bool) -> Any:
    config = cases.config(backbone, method, batch, task)
    if task == "instances" and hasattr(sizes := backbones.config(backbone), "depth"):
        # Levels from a quarter of a patch on, as many as there are.
        config.task.strides = tuple(sizes.patch / 4 * 2**n for n in range(len(config.task.grids)))
    if ahead:
        config = cases.on_accelerators(config)
        config.backbone.scan = False
    return config


def parts(config: Any, task: Any, spec: model.Batch, device: Any) -> list[dict[str, Any]]:
    """Rows of a training step and an inference, each before its parts, as of `run`.

    Args:
        config: resolved.
        task: detection or instances.
        spec: shapes of a batch.
        device: to compile for.
    """
    network = model.abstract(config, task, spec)
    graph, train, stats, frozen = model.split(network, config)
    optimizer = optim.make(config.optim, config.optim.steps, train, model.layers(config))
    state = jax.eval_shape(lambda t, s: initial_state(t, s, optimizer, config), train, stats)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def forward(train: Any, stats: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
        batch = inputs.prepared(task, batch, config, None, False)
        merged = nnx.merge(graph, train, stats, frozen)
        return model.outputs(merged, batch, Context(), task, config, {}), batch

    seen = jax.eval_shape(forward, train, stats, frozen, spec)
    mesh = sharding.make_mesh(config.mesh, [device])
    suppress, given, rounds = _suppression(task, seen[0], len(spec["index"]))

    def cost(function: Callable[..., Any], *args: Any) -> Cost:
        return _cost(function, mesh, *args)

    # Of the rounds one is in what the compiler counts, of this and of all that has it.
    turn = cost(suppress, *given)
    rest = Cost(*(x * (rounds - 1) for x in turn))
    kept = {"train": train, "stats": stats}
    step, look = make_step(graph, task, optimizer, config), evaluate.make_step(graph, task, config)
    found = {
        "training step": cost(step, state, frozen, spec, key),
        "targets": cost(task.targets, *seen),
        "inference": _sum(cost(look, kept, frozen, spec), rest),
        "answers": _sum(cost(task.answer, *seen), rest),
        "suppression": _sum(turn, rest),
    }
    return list(_rows(found))


def _rows(found: dict[str, Cost]) -> Iterator[dict[str, Any]]:
    whole = None
    for name, cost in found.items():
        row = dict(
            part=name, gflop=cases.digits(cost.flops / 1e9), mb=cases.digits(cost.moved / 1e6)
        )
        if name in ("training step", "inference"):
            whole = cost
        else:
            shares = (100 * part / max(of, 1) for part, of in zip(cost, whole, strict=True))
            row |= dict(zip(("of_flops", "of_mb"), map(cases.digits, shares), strict=True))
        yield row


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(*map(sum, zip(one, other, strict=True)))


def _suppression(
    task: Any, outputs: Any, images: int
) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """What suppresses answers, shapes of its arguments, `b …`, and the rounds of its loop."""

    def like(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((images, *shape), dtype)

    sizes = [x.shape[1] * x.shape[2] * x.shape[3] for x in outputs.classes]
    if hasattr(task, "overlap"):
        n = sum(min(atss.CANDIDATES, size) for size in sizes)
        how = dict(threshold=task.overlap, most=task.best)
        greedy = jax.vmap(lambda *given: nms.greedy(*given, **how))
        return greedy, (like(n, 4), like(n), like(n, dtype=jnp.int32)), task.best
    k = min(task.candidates, sum(sizes))
    h, w = (2 * side for side in outputs.features[0].shape[1:3])
    masks = like(k, h, w, dtype=bool)
    return jax.vmap(nms.matrix), (masks, like(k), like(k, dtype=jnp.int32)), 1


def _cost(function: Callable[..., Any], mesh: Any, *args: Any) -> Cost:
    """What the compiler counts of a function of arrays of these shapes, on one device."""
    whole = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), args)
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    with jax.set_mesh(mesh):
        counted = jitted.lower(*args).compile().cost_analysis() or {}
    return Cost(counted.get("flops", 0.0), counted.get("bytes accessed", 0.0))
