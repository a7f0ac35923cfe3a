"""Whole training steps of one backbone with several methods, in turn."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynadapt import compiled, model, optim, tasks
from dynadapt import config as configs
from dynadapt.bench import interleaved, machine, milliseconds, ratio, timed
from dynadapt.data import Info
from dynadapt.step import initial_state, make_step


def run(backbone: str, methods: list[str], batch: int, rounds: int) -> dict[str, Any]:
    """Times a training step in float32 with each method; ratios are to the first one."""
    asks, rows = [], []
    for method in methods:
        ask, flops = step(backbone, method, batch)
        asks.append(ask)
        rows.append(dict(backbone=backbone, method=method, batch=batch, gflop=round(flops / 1e9)))
    readings = interleaved(asks, rounds)
    for row, times in zip(rows, readings, strict=True):
        row |= dict(ms=milliseconds(times), over_first=ratio(times, readings[0]))
    return dict(machine=machine(), rows=rows)


def step(backbone: str, method: str, batch: int) -> tuple[Callable[[], float], int]:
    """A training step on random images that can be asked for its time, and its FLOPs."""
    config = configs.default(backbone=backbone, method=method, data_set="digits")
    config.input.batch_size, config.optim.steps = batch, 100
    if "dropout" in config.adapter:
        config.adapter.dropout = 0.0
    info = Info("random", tuple(map(str, range(10))), {"train": batch}, "random")
    task = tasks.from_config(config.task, info)
    graph, train, frozen = model.split(model.build(config, task), config)
    tx = optim.make(config.optim, config.optim.steps, train)
    state = {"now": initial_state(train, tx, config)}
    rng = np.random.default_rng(0)
    size = nnx.merge(graph, train, frozen).backbone.image_size
    given = {
        "image": rng.integers(256, size=(batch, size, size, 3), dtype=np.uint8),
        "label": rng.integers(10, size=batch).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "mask": np.ones(batch, np.float32),
    }
    function, key = make_step(graph, task, tx, config), jax.random.key(0)
    flops = compiled.matmul_flops(function, state["now"], frozen, given, key)

    def call() -> Any:
        state["now"], logs = function(state["now"], frozen, given, key)
        return logs

    return timed(call), flops
