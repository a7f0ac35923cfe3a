"""Compares all that a run wrote, and the backbone that it stands on, with their hashes."""

from pathlib import Path

from dynadapt import config as configs
from dynadapt import files
from dynadapt.errors import CheckpointError
from dynadapt.runs import checkpoint, product, workdir
from dynadapt.runs.journal import show_table


def run(folder: Path) -> list[dict[str, str]]:
    """One row `part, fault` for each part of the run; an empty fault is a part that is whole.

    Raises:
        CheckpointError: if there is no run in the folder.
    """
    if not (folder / "config.json").exists() and not (folder / "adapter").exists():
        raise CheckpointError(f"there is no run in {folder}")
    rows: list[dict[str, str]] = []

    def add(part: str, fault: str | None) -> None:
        rows.append({"part": part, "fault": fault or ""})

    complete = workdir.faults(folder)
    for part, fault in complete.items():
        add(part, fault)
    if not complete and (folder / "config.json").exists():
        add("config.json", _config_fault(folder))
    try:
        adapter = product.read(folder / "adapter")
        add("adapter", None)
        add("backbone weights", _backbone_fault(adapter))
    except CheckpointError as error:
        add("adapter", str(error))
    steps = [p for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    for step in sorted(steps, key=lambda p: int(p.name)):
        add(f"checkpoints/{step.name}", checkpoint.fault(step))
    return rows


def _config_fault(folder: Path) -> str | None:
    try:
        values = files.read_json(folder / "config.json")
        whole = configs.digest(values["config"]) == values["digest"]
    except (CheckpointError, KeyError) as error:
        return str(error)
    return None if whole else "config.json was changed"


def _backbone_fault(adapter: product.SavedAdapter) -> str | None:
    try:
        product.check_backbone(adapter)
    except CheckpointError as error:
        return str(error)
    return None


def show(rows: list[dict[str, str]]) -> None:
    """Prints the rows."""
    show_table("verify", ["part", "state"], [[r["part"], r["fault"] or "whole"] for r in rows])
