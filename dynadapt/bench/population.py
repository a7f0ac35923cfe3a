"""Cells trained together in one program, beside runs of their own."""

import time
from typing import Any

import jax
import numpy as np

from dynadapt import model, optim, sharding, tree
from dynadapt.bench import cases, interleaved, machine, milliseconds, ratio, step, timed
from dynadapt.errors import ConfigError
from dynadapt.plans import compare, compiled, machines, plan
from dynadapt.step import initial_state, make_step
from dynadapt.sweep.population import Population

CELLS = 8
# Examples in memory, as in VTAB-1K.
EXAMPLES = 1000
# What differs between cells here.
HYPER = ("lr", "weight_decay", "steps")


def run(
    backbone: str, methods: list[str], batch: int, rounds: int, cells: int = CELLS
) -> dict[str, Any]:
    """Times a step of all cells against a step of one run, in float32.

    Args:
        backbone: a variant.
        methods: names of methods, or `all`.
        batch: images of a cell's step.
        rounds: readings of each.
        cells: trained together.

    Returns:
        A row a method: milliseconds of a cell's and of a single run's step, their ratio, and the
        ratio `with_compilation` of whole runs of the config's 100 steps (each single run compiles
        its own rates); MiB of the `frozen` copy that all cells share, of what is `trained` with
        its `optimizer` in all cells, and the `temporaries` of both programs.
    """
    side = cases.side(backbone)

    def measure(method: str) -> dict[str, Any]:
        config = cases.config(backbone, method, batch)
        bare = model.loaded_backbone(config)
        several, several_s, held = _together(config, bare, cells, side)
        single, single_s, temporaries = _alone(config, bare, side)
        ours, other = interleaved([timed(several), timed(single)], rounds)
        ours = [seconds / cells for seconds in ours]
        row = dict(cells=cells, cell_ms=milliseconds(ours), single_ms=milliseconds(other))
        row["cell_over_single"] = ratio(ours, other)
        together = several_s / cells + config.optim.steps * float(np.median(ours))
        alone = single_s + config.optim.steps * float(np.median(other))
        row |= dict(compile_s=round(several_s, 1), single_compile_s=round(single_s, 1))
        row["with_compilation"] = round(together / alone, 3)
        return row | dict(held, single_temporaries=_mib(temporaries))

    return dict(machine=machine(), rows=cases.rows(backbone, methods, batch, measure))


def _together(config: Any, bare: Any, cells: int, side: int) -> tuple[Any, float, dict[str, float]]:
    """A step of all cells, the seconds of its compilation, and MiB."""
    population = Population(config, *cases.given(config), bare, cells)
    given = cases.examples(EXAMPLES, side)
    data = population.put_data({name: given[name] for name in ("image", "label")})
    values = {name: config.optim[name] for name in HYPER}
    hyper = population.hyper([{**values, "lr": 1e-3 * (i + 1)} for i in range(cells)])
    seeds = list(range(cells))
    keys, state = population.keys(seeds), {"now": population.start(seeds, hyper)}
    rng = np.random.default_rng(0)
    rows = rng.integers(EXAMPLES, size=(cells, config.input.batch_size), dtype=np.int32)
    shapes = population.arguments(HYPER, EXAMPLES)
    program, seconds = _compiled(population.step_program, shapes)
    population.step_program = program

    def call() -> Any:
        state["now"], logs = population.step(state["now"], data, rows, keys, hyper)
        return logs

    return call, seconds, _sizes(shapes[0], population.frozen, program.memory_analysis())


def _alone(config: Any, bare: Any, side: int) -> tuple[Any, float, int]:
    """A step of one run, the seconds of its compilation, and the bytes of its temporaries."""
    task, spec = cases.given(config)
    graph, train, stats, frozen = model.split(model.build(config, task, spec, bare), config)
    optimizer = optim.make(config.optim, config.optim.steps, train, model.layers(config))
    state, key = {"now": initial_state(train, stats, optimizer, config)}, jax.random.key(0)
    given = jax.device_put(cases.examples(config.input.batch_size, side))
    function = make_step(graph, task, optimizer, config)
    program, seconds = _compiled(function, (state["now"], frozen, given, key))

    def call() -> Any:
        state["now"], logs = program(state["now"], frozen, given, key)
        return logs

    return call, seconds, program.memory_analysis().temp_size_in_bytes


def _compiled(function: Any, args: tuple[Any, ...]) -> tuple[Any, float]:
    """The function compiled for these arguments, and the seconds that this took."""
    start = time.perf_counter()
    program = function.lower(*args).compile()
    return program, time.perf_counter() - start


def _sizes(state: Any, frozen: Any, analysis: Any) -> dict[str, float]:
    sizes = dict(
        frozen=tree.nbytes(frozen),
        trained=tree.nbytes(state["train"]),
        optimizer=tree.nbytes(state["opt"]),
        temporaries=analysis.temp_size_in_bytes,
    )
    return {name: _mib(size) for name, size in sizes.items()}


def _mib(size: int) -> float:
    return round(size / 2**20, 2)


def ahead(
    backbone: str, methods: list[str], batch: int, topology: str, cells: int = CELLS
) -> dict[str, Any]:
    """Memory of one chip of a machine that isn't here, with cells over all chips and with one run.

    In bfloat16 with blocks scanned and rematerialised. Nothing is allocated.

    Args:
        backbone: a variant.
        methods: names of methods, or `all`.
        batch: images of a cell's step.
        topology: as of `plan`.
        cells: trained together, cut over the chips that divide them.

    Returns:
        Two rows a method, of the population and of a single run on one chip: `cells` of a chip, and
        MiB of one chip: the `frozen` copy, what is `trained`, its `optimizer`, the `data`, the
        `temporaries` and the `total`; `moved`: MiB that the chips exchange in a step.
    """
    chips, rows = machines.devices(topology), []
    for method in compare.chosen(methods):
        row = dict(backbone=backbone, method=method, batch=batch)
        try:
            config = cases.on_accelerators(cases.config(backbone, method, batch))
            rows.append(row | _population_ahead(config, chips, cells))
            mesh = sharding.make_mesh(config.mesh, chips[:1])
            found = step.compiled_for(config, mesh, topology)
        except ConfigError as error:
            rows.append(row | dict(reason=str(error)))
            continue
        alone = dict(run="single", cells=1)
        rows.append(row | alone | _row(found["memory"], found["collectives"]))
    return dict(machine=topology, rows=rows)


def _population_ahead(config: Any, chips: list[Any], cells: int) -> dict[str, Any]:
    population = Population(config, *cases.given(config), None, cells, chips)
    args = population.arguments(HYPER, EXAMPLES)
    program = population.step_program.lower(*args).compile()
    memory = plan.memory_rows(program.memory_analysis(), (*args[:2], args[2:4], ()))
    collectives = compiled.collectives(program.as_text())
    share = cells // len(chips) if cells % len(chips) == 0 else cells
    return dict(run=f"population of {cells}", cells=share) | _row(memory, collectives)


def _row(memory: dict[str, int], collectives: dict[str, int]) -> dict[str, float]:
    """MiB of one chip, and MiB moved."""
    row = {"data" if name == "batch" else name: _mib(size) for name, size in memory.items()}
    return row | dict(moved=_mib(sum(collectives.values())))
