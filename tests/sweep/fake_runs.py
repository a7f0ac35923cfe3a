"""Runs that take no time: what `train.run` leaves for tables, with a score that is given."""

from pathlib import Path
from typing import Any

from dynadapt import config as configs
from dynadapt import files


def leave(folder: Path, config: Any, score: float, **more: Any) -> dict[str, Any]:
    """Writes the config and the result of a run, and returns the result."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "config.json", {"config": configs.plain(config)})
    result = {
        **{"method": config.adapter.name, "headline": "top1", "top1": score, "beside": []},
        **{"better": "higher", "trained": 100, "trained_with_head": 150, "backbone": 1000},
        **{"collapsed": False, "steps": config.optim.steps, "eval_data": "a" * 64},
        **more,
    }
    files.write_json(folder / "result.json", result)
    return result
