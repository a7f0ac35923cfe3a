"""Training steps of several methods side by side, compiled for a machine that isn't here."""

from collections.abc import Mapping
from typing import Any

from dynadapt import choices
from dynadapt.plans import compare, machines, plan
from dynadapt.runs.journal import show_table, size_text

NOTE = (
    "parameters: trained, without the head and with it. bytes: of one chip, as compiled; total "
    "holds the frozen and trained leaves, the optimizer, the batch and the temporaries. GFLOP: "
    "matrix products of a step, all chips. moved: what each chip exchanges in a step. to: about "
    "the largest batch that fits."
)


def run(given: Mapping[str, Any], topology: str) -> dict[str, Any]:
    """Compiles the training step of each method for one machine, after another.

    Args:
        given: a complete config for each method, on one backbone.
        topology: as of `plan`.

    Returns:
        `backbone`, `machine`, `mesh`, `batch_size`, `chip_bytes` (None where not known) and
        `methods`: a row each with `settings`, `counts`, `memory`, `flops`, `collectives`, `fits`
        and `largest_batch` as of `plan`; or `reason` where the method can't serve the backbone, and
        beside a `fits` of false where the compiler gave up.

    Raises:
        ConfigError, DataError, MachineError: as `plan` does, but for what a method can't serve.
    """
    machines.devices(topology)  # raises before anything is traced
    first = next(iter(given.values()))
    settings = {m: {k: v for k, v in c.adapter.items() if k != "name"} for m, c in given.items()}
    refused = compare.refusals(first.backbone.name, settings)
    rows = []
    shown: dict[str, Any] = {"batch_size": first.input.batch_size, "mesh": {}}
    for method, config in given.items():
        row: dict[str, Any] = {"method": choices.title(method)}
        rows.append(row)
        if method in refused:
            row["reason"] = refused[method]
            continue
        found = plan.run(config, topology)
        names = ("settings", "counts", "memory", "flops", "collectives", "fits", "largest_batch")
        row |= {name: found[name] for name in (*names, "reason") if name in found}
        shown = {name: found[name] for name in shown}
    result = {"backbone": first.backbone.name, "machine": topology, **shown}
    return {**result, "chip_bytes": machines.memory(topology), "methods": rows}


def show(result: dict[str, Any]) -> None:
    """Prints the comparison."""
    columns = ["method", "trained", "with head", "frozen", "optimizer", "temporaries", "total"]
    rows = []
    for row in result["methods"]:
        counts, memory = row.get("counts", {}), row.get("memory", {})
        line = [row["method"], counts.get("trained"), counts.get("trained_with_head")]
        line += [size_text(memory[k]) if k in memory else "" for k in columns[3:]]
        line.append(f"{row['flops'] / 1e9:,.1f}" if "flops" in row else "")
        line.append(size_text(sum(row["collectives"].values())) if "collectives" in row else "")
        fits = {True: "yes", False: "NO", None: ""}[row.get("fits")]
        if row.get("largest_batch"):
            fits += f", to {row['largest_batch']:,}"
        rows.append([*line, ": ".join(filter(None, (fits, row.get("reason", ""))))])
    mesh = ", ".join(f"{k}={v}" for k, v in result["mesh"].items())
    held = f" of {size_text(result['chip_bytes'])} a chip" if result["chip_bytes"] else ""
    title = (
        f"{result['backbone']} on {result['machine']}{held}, mesh {mesh}, "
        f"batch {result['batch_size']}"
    )
    show_table(title, [*columns, "GFLOP", "moved", "fits"], rows, note=NOTE)
