"""Compares all that a run wrote, and the backbone that it stands on, with their hashes."""

import os
from pathlib import Path

from dynadapt.errors import CheckpointError
from dynadapt.runs import checkpoint, product, workdir
from dynadapt.runs.journal import FILE as LOG
from dynadapt.runs.journal import read, show_table


def run(folder: Path) -> list[dict[str, str]]:
    """One row `part, fault` for each part of the run; an empty fault is a part that is whole.

    Raises:
        CheckpointError: if there is no run in the folder.
    """
    workdir.check_name(folder)
    if not os.path.lexists(folder / "config.json") and not os.path.lexists(folder / "adapter"):
        raise CheckpointError(f"there is no run in {folder}")
    rows: list[dict[str, str]] = []

    def add(part: str, fault: str | None) -> None:
        rows.append({"part": part, "fault": fault or ""})

    complete = workdir.faults(folder)
    for part, fault in complete.items():
        add(part, fault)
    if not complete and os.path.lexists(folder / "config.json"):
        add("config.json", workdir.config_fault(folder))
    if LOG not in complete and not read(folder / LOG)[1]:
        add(LOG, f"{LOG} is damaged")
    try:
        adapter = product.read(folder / "adapter")
        add("adapter", None)
        add("backbone weights", _backbone_fault(adapter))
    except CheckpointError as error:
        add("adapter", str(error))
    for step in reversed(checkpoint.steps(folder / "checkpoints")):
        add(f"checkpoints/{step}", checkpoint.fault(folder / "checkpoints" / str(step)))
    return rows


def _backbone_fault(adapter: product.SavedAdapter) -> str | None:
    try:
        product.check_backbone(adapter)
    except CheckpointError as error:
        return str(error)
    return None


def show(rows: list[dict[str, str]]) -> None:
    """Prints the rows."""
    show_table("verify", ["part", "state"], [[r["part"], r["fault"] or "whole"] for r in rows])
