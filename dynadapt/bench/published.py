"""Forward passes of the backbones that published weights are of."""

import statistics
from collections.abc import Callable
from typing import Any

from dynadapt import backbones
from dynadapt.bench import interleaved, machine, timed


def run(table: list[dict[str, Any]], batch: int, rounds: int, limit: float) -> dict[str, Any]:
    """Inputs a second of each backbone in a table of `models.rows`, measured in turn.

    Args:
        table: rows; backbones of the same sizes are measured once.
        batch: inputs of a pass.
        rounds: readings of each.
        limit: GFLOPs of one input above which a backbone is left out.
    """
    small = [row for row in table if row["gflops"] <= limit]
    firsts = {_size(row): row for row in reversed(small)}
    asks = [timed(forward_pass(row, batch)) for row in firsts.values()]
    readings = interleaved(asks, rounds)
    found = {
        size: round(batch / statistics.median(seconds), 1)
        for size, seconds in zip(firsts, readings, strict=True)
    }
    speeds = {label(row): found[_size(row)] for row in small}
    return dict(
        machine=machine(), batch=batch, rounds=rounds, limit=limit, images_per_second=speeds
    )


def _size(row: dict[str, Any]) -> tuple[Any, ...]:
    return backbones.family(row["backbone"]), row["parameters"], row["gflops"], row["input"]


def label(row: dict[str, Any]) -> str:
    """A backbone with the fields that are not the variant's own."""
    return " ".join([row["backbone"], *(f"{k}={v}" for k, v in row["fields"].items())])


def forward_pass(row: dict[str, Any], batch: int) -> Callable[[], Any]:
    """A compiled forward pass in float32, with random weights and inputs."""
    import jax
    from flax import nnx

    from dynadapt.context import Context

    network = backbones.create(row["backbone"], rngs=nnx.Rngs(0), **row["fields"])
    graph, state = nnx.split(network)
    sides = [int(n) for n in row["input"].split() if n.isdigit()]
    shape = (batch, *sides, 3)
    given = jax.random.normal(jax.random.key(0), shape)

    @jax.jit
    def forward(state: Any, given: Any) -> Any:
        return nnx.merge(graph, state)(given, Context()).maps[-1]

    return lambda: forward(state, given)
