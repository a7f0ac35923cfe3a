"""What a sweep will take, before it runs: cells, steps, FLOPs, and time at this machine's speed."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from dynadapt import backbones, evaluate, model, optim, tasks
from dynadapt.data import Info, loader, numbered, transforms
from dynadapt.runs.journal import show_table
from dynadapt.runs.speed import matmul_flops
from dynadapt.step import initial_state, make_step
from dynadapt.sweep import protocol, suites, sweep

NOTE = (
    "FLOPs: matrix products and convolutions of all steps and evaluations. hours: at the rate that "
    "large matrix products reach on one device here; steps reach about a half of it."
)


def run(given: sweep.Sweep) -> dict[str, Any]:
    """Cells, steps, FLOPs and hours of a sweep, by method and task; nothing is run or written.

    Returns:
        `rows` (`method`, `task`, `tuning`, `final`, `steps`, `flops`, `hours`), `flops_per_second`
        and the totals `cells`, `flops` and `hours`.
    """
    sweep.check(given)
    rate = device_rate()
    known, rows = suites.find(given.suite).tasks, []
    for method in given.methods:
        costs: dict[int, tuple[int, int]] = {}
        for name in given.tasks:
            size = sweep.bucket(known[name].classes)
            if size not in costs:
                side = backbones.config(given.backbone).image_size
                costs[size] = cost(given.configs[method], numbered(size, side))
            step, image = costs[size]
            points = len(protocol.grid(given.config, method, name))
            p = given.config.protocol
            tuning = points * len(p.tuning_seeds) if p.select == "val" and points > 1 else 0
            short = protocol.steps(given.config, protocol.TRAINED)
            long = protocol.steps(given.config, protocol.BOTH)
            final = len(given.seeds)
            steps = tuning * short + final * long
            flops = steps * step + image * (tuning * 200 + final * known[name].test)
            row = dict(method=method, task=name, tuning=tuning, final=final, steps=steps)
            rows.append({**row, "flops": flops, "hours": flops / rate / 3600})
    return {
        "rows": rows,
        "flops_per_second": rate,
        "cells": sum(r["tuning"] + r["final"] for r in rows),
        "flops": sum(r["flops"] for r in rows),
        "hours": sum(r["hours"] for r in rows),
    }


def cost(config: Any, info: Info) -> tuple[int, int]:
    """FLOPs of a training step and of an example in an evaluation, from shapes alone."""
    spec = loader.spec(info, transforms.pipeline(config.input.train), config.input.batch_size)
    task = tasks.from_config(config.task, info)
    graph, train, stats, frozen = model.split(model.abstract(config, task, spec), config)
    optimizer = optim.make(config.optim, 1, train, model.layers(config))
    state = jax.eval_shape(lambda t, s: initial_state(t, s, optimizer, config), train, stats)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_step(graph, task, optimizer, config)
    step = matmul_flops(step, state, frozen, spec, key)
    one = loader.spec(info, transforms.pipeline(config.input.eval), 1)
    test = evaluate.make_step(graph, task, config)
    return step, matmul_flops(test, {"train": train, "stats": stats}, frozen, one)


def device_rate() -> float:
    """FLOPs a second that a large matrix product reaches on one device, the best of some."""
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(x))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def show(result: dict[str, Any]) -> None:
    """Prints the plan of a sweep."""
    columns = ["method", "task", "tuning cells", "final cells", "steps", "TFLOP", "hours"]
    rows = [
        [r["method"], r["task"], r["tuning"], r["final"], r["steps"]]
        + [f"{r['flops'] / 1e12:,.1f}", f"{r['hours']:.2f}"]
        for r in result["rows"]
    ]
    title = (
        f"{result['cells']} cells, {result['flops'] / 1e15:,.2f} PFLOP, {result['hours']:.1f} hours"
    )
    show_table(title, columns, rows, note=NOTE)
