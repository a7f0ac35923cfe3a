"""Differences of methods on the same tasks with the same seeds, with intervals.

A difference is taken within each task and seed, so that what is hard about a task or lucky about a
seed is in neither. The tasks are the sample: their mean differences (over seeds) have a mean, and
its interval is Student's, with one degree of freedom less than there are tasks. It speaks of other
tasks like these, and noise of seeds is in it.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from scipy import stats

from dynadapt.errors import ConfigError, UnknownName

LEVEL = 0.95

# By method, task and seed.
Scores = Mapping[str, Mapping[str, Mapping[int, float]]]


def against(scores: Scores, reference: str, better: str = "higher") -> list[dict[str, Any]]:
    """What each other method gains over the reference, in points, the largest mean first.

    Returns:
        For each `method`: `against`, `mean`, `low` and `high` (None for one task), `tasks` that
        both have, and on how many of them it `wins`. Positive is better, whatever the metric.

    Raises:
        UnknownName: for a reference without results.
        ConfigError: for two methods that share no cell, or none to compare.
    """
    if reference not in scores:
        raise UnknownName("method of --against", reference, scores)
    sign = 1 if better == "higher" else -1
    rows = []
    for method, own in scores.items():
        if method == reference:
            continue
        gains = []
        for task, cells in own.items():
            other = scores[reference].get(task, {})
            both = [sign * (cells[seed] - other[seed]) for seed in cells if seed in other]
            if both:
                gains.append(statistics.fmean(both))
        if not gains:
            raise ConfigError(f"{method} and {reference} share no task and seed")
        mean, (low, high) = statistics.fmean(gains), interval(gains)
        wins = sum(gain > 0 for gain in gains)
        found = dict(mean=mean, low=low, high=high, tasks=len(gains), wins=wins)
        rows.append({"method": method, "against": reference, **found})
    if not rows:
        raise ConfigError(f"there is no other method than {reference} to compare with it")
    return sorted(rows, key=lambda row: (-row["mean"], row["method"]))


def interval(values: list[float], level: float = LEVEL) -> tuple[float | None, float | None]:
    """Student's interval of the mean; None and None for a single value."""
    if len(values) < 2:
        return None, None
    half = statistics.stdev(values) / len(values) ** 0.5
    half *= float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    mean = statistics.fmean(values)
    return mean - half, mean + half
