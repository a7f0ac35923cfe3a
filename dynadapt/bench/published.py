"""Forward passes of the backbones that published weights are of."""

import statistics
from collections.abc import Callable
from typing import Any

from dynadapt import backbones
from dynadapt.bench import interleaved, machine, timed
from dynadapt.bench.forward import forward_pass


def run(table: list[dict[str, Any]], batch: int, rounds: int, limit: float) -> dict[str, Any]:
    """Inputs a second of each backbone in a table of `weights_table.rows`, measured in turn.

    Args:
        table: rows; backbones of the same sizes are measured once.
        batch: inputs of a pass.
        rounds: readings of each.
        limit: GFLOPs of one input above which a backbone is left out.
    """
    small = [row for row in table if row["gflops"] <= limit]
    firsts = {_size(row): row for row in reversed(small)}
    asks = [timed(_forward_pass(row, batch)) for row in firsts.values()]
    readings = interleaved(asks, rounds)
    found = {
        size: round(batch / statistics.median(seconds), 1)
        for size, seconds in zip(firsts, readings, strict=True)
    }
    speeds = {label(row): found[_size(row)] for row in small}
    return dict(
        machine=machine(), batch=batch, rounds=rounds, limit=limit, images_per_second=speeds
    )


def _forward_pass(row: dict[str, Any], batch: int) -> Callable[[], Any]:
    sides = tuple(int(n) for n in row["input"].split() if n.isdigit())
    return forward_pass(row["backbone"], batch, sides, **row["fields"])


def _size(row: dict[str, Any]) -> tuple[Any, ...]:
    return backbones.family(row["backbone"]), row["parameters"], row["gflops"], row["input"]


def label(row: dict[str, Any]) -> str:
    """A backbone with the fields that are not the variant's own."""
    return " ".join([row["backbone"], *(f"{k}={v}" for k, v in row["fields"].items())])
