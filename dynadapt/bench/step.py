"""Whole training steps of one backbone with several methods: timed in turn, or compiled ahead."""

from collections.abc import Callable
from typing import Any

import jax

from dynadapt import model, optim, sharding
from dynadapt.bench import cases, interleaved, machine, milliseconds, ratio, timed
from dynadapt.errors import ConfigError
from dynadapt.plans import compare, machines, plan
from dynadapt.runs.speed import PEAKS, matmul_flops
from dynadapt.step import initial_state, make_step


def run(backbone: str, methods: list[str], batch: int, rounds: int) -> dict[str, Any]:
    """Times a training step with each method; ratios are to the first one.

    In float32 on a CPU; on accelerators in bfloat16 with blocks scanned, and with the share of the
    device's peak where that is known. A method that can't serve the backbone, or whose step does
    not fit the device, is a row with its `reason`.
    """
    asks, timed_rows, rows = [], [], []
    for method in compare.chosen(methods):
        row = dict(backbone=backbone, method=method, batch=batch)
        rows.append(row)
        try:
            call, flops = step(backbone, method, batch)
            ask = timed(call)
        except ConfigError as error:
            row["reason"] = str(error)
            continue
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row["reason"] = "it does not fit the device"
            continue
        row["gflop"] = round(flops / 1e9)
        asks.append(ask)
        timed_rows.append(row)
    readings = interleaved(asks, rounds)
    peak = PEAKS["bfloat16"].get(jax.devices()[0].device_kind)
    for row, times in zip(timed_rows, readings, strict=True):
        row |= dict(ms=milliseconds(times), over_first=ratio(times, readings[0]))
        if peak:
            row["share_of_peak"] = round(1e12 * row["gflop"] / row["ms"] / peak, 4)
    return dict(machine=machine(), rows=rows)


def step(backbone: str, method: str, batch: int) -> tuple[Callable[[], Any], int]:
    """A training step on random images, and its FLOPs."""
    config = cases.config(backbone, method, batch)
    if jax.default_backend() != "cpu":
        config = cases.on_accelerators(config, remat="none")
    task, spec = cases.given(config)
    graph, train, stats, frozen = model.split(model.build(config, task, spec), config)
    optimizer = optim.make(config.optim, config.optim.steps, train, model.layers(config))
    state = {"now": initial_state(train, stats, optimizer, config)}
    given = cases.examples(batch, cases.side(backbone))
    function, key = make_step(graph, task, optimizer, config), jax.random.key(0)
    flops = matmul_flops(function, state["now"], frozen, given, key)

    def call() -> Any:
        state["now"], logs = function(state["now"], frozen, given, key)
        return logs

    return call, flops


def ahead(backbone: str, methods: list[str], batch: int, topology: str) -> dict[str, Any]:
    """Compiles the training step of each method for a machine that isn't here.

    In bfloat16 with blocks scanned and rematerialised, the batch cut over all chips.

    Args:
        backbone: a variant.
        methods: names of methods, or `all`.
        batch: images of a step, over all chips.
        topology: as of `plan`.

    Returns:
        A row a method, GiB of one chip: `arguments` (frozen and trained leaves, optimizer, batch),
        `temporaries` and `total`, whether it `fits`, `tflop` of a step over all chips, and
        `moved_over_trained`: what the chips exchange in a step over the bytes that train (below 1
        where gradients are summed in bfloat16). Where the method can't serve the backbone, or does
        not fit, its `reason`.
    """
    chips = machines.devices(topology)
    sharding.check_batch(batch, sharding.make_mesh(devices=chips))

    def measure(method: str) -> dict[str, Any]:
        config = cases.on_accelerators(cases.config(backbone, method, batch))
        return told(compiled_for(config, sharding.make_mesh(config.mesh, chips), topology))

    return dict(machine=topology, rows=cases.rows(backbone, methods, batch, measure))


def compiled_for(config: Any, mesh: Any, topology: str) -> dict[str, Any]:
    """The plan of a config's training step on images of the backbone's own size."""
    task, spec = cases.given(config)
    return plan.of_step(config, task, config.optim.steps, spec, mesh, topology)


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What a plan says, for a row of a table."""
    row: dict[str, Any] = dict(tflop=round(found["flops"] / 1e12, 3), fits=found["fits"])
    if "memory" not in found:
        return row | dict(reason=found["reason"])
    memory = found["memory"]
    held = sum(memory[k] for k in ("frozen", "trained", "optimizer", "batch"))
    sizes = dict(arguments=held, temporaries=memory["temporaries"], total=memory["total"])
    moved = sum(found["collectives"].values()) / found["counts"]["trained_bytes"]
    row |= {name: round(value / machines.GIB, 3) for name, value in sizes.items()}
    return row | dict(moved_over_trained=round(moved, 3))
