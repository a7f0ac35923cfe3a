"""A report as a picture: bars for each task, accuracy against trained parameters, differences."""

from pathlib import Path
from typing import Any

from dynadapt.figures.canvas import COLOURS, blank

# When colours are used up they come back hatched, with another mark.
HATCHES, MARKS = ("", "///", "..."), ("o", "s", "^")


def draw(result: dict[str, Any], path: Path, form: str) -> None:
    """Draws all into a file of the form png, svg or pdf.

    Raises:
        MachineError: if matplotlib isn't installed.
    """
    rows = result["rows"]
    paired = result["paired"]
    figure = blank(12, 12 if paired else 8)
    bars, points, *differences = figure.subplots(
        3 if paired else 2, height_ratios=(3, 2, 2) if paired else (3, 2)
    )
    figure.suptitle(result["title"], fontsize=9, wrap=True)
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        turn, number = divmod(i, len(COLOURS))
        colour, hatch, mark = COLOURS[number], HATCHES[turn % 3], MARKS[turn % 3]
        values = [row["tasks"][task["name"]] for task in result["tasks"]]
        kept = [v for v in values if v]
        places = [k + (i - (len(rows) - 1) / 2) * width for k, v in enumerate(values) if v]
        look = dict(color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
        errors = [v["std"] or 0.0 for v in kept]
        heights = [v["mean"] for v in kept]
        bars.bar(places, heights, width, yerr=errors, label=row["method"], **look)
        mean = row["mean_of_tasks"]
        if mean is not None:
            look = dict(color=colour, marker=mark, linestyle="", capsize=3)
            place = row["trained"], mean["mean"]
            points.errorbar(*place, mean["std"] or 0.0, **look)
            beside = dict(xytext=(5, 3), textcoords="offset points", fontsize=7)
            points.annotate(row["method"], place, **beside)
    titles = [task["title"] for task in result["tasks"]]
    bars.set_xticks(range(len(titles)), titles, rotation=40, ha="right")
    bars.set_ylabel("top-1, %")
    bars.margins(x=0.01)
    figure.legend(fontsize=8, ncols=min(len(rows), 8), loc="outside lower center")
    # Linear up to a thousand, since a method may train nothing but the head.
    points.set_xscale("symlog", linthresh=1000)
    # Room on the right for the name of what trains most.
    points.set_xlim(-100, 4 * max(1000, *(row["trained"] for row in rows)))
    points.set_xlabel("trained parameters without head")
    points.set_ylabel("mean of tasks, %")
    for axes in differences:
        gains(axes, paired, "points", "mean of tasks")
    figure.savefig(path, format=form, dpi=150)


def gains(axes: Any, paired: list[dict[str, Any]], unit: str, mean: str) -> None:
    """A point and an interval for each method, the best on top; `mean` says what it is over."""
    for place, row in enumerate(reversed(paired)):
        known = row["low"] is not None
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]] if known else None
        axes.errorbar([row["mean"]], [place], xerr=ends, fmt="o", color=COLOURS[0], capsize=3)
    axes.axvline(0.0, color="gray", linewidth=0.8)
    axes.set_ylim(-0.6, len(paired) - 0.4)
    axes.set_yticks(range(len(paired)), [row["method"] for row in reversed(paired)], fontsize=7)
    axes.set_xlabel(f"{unit} over {paired[0]['against']}, {mean} and 95 % interval")


def strips(parts: list[dict[str, Any]]) -> Any:
    """A strip for each test: every run and the means, and differences beside them; None for none.

    Args:
        parts: tests with rows, as of `tables.make`.
    """
    if not parts:
        return None
    compared = any(part["paired"] for part in parts)
    height = sum(0.8 + 0.3 * max(len(part["rows"]), 3) for part in parts)
    figure = blank(11 if compared else 7, height)
    grid = figure.subplots(len(parts), 2 if compared else 1, squeeze=False)
    for part, axes in zip(parts, grid, strict=True):
        for place, row in enumerate(reversed(part["rows"])):
            values = row["scores"]
            axes[0].plot(values, [place] * len(values), "o", color=COLOURS[4], alpha=0.6)
            look = dict(fmt="D", color=COLOURS[0], capsize=4, markersize=5)
            axes[0].errorbar(row["score"]["mean"], place, xerr=row["score"]["std"] or 0.0, **look)
        names = [row["method"] for row in reversed(part["rows"])]
        axes[0].set_yticks(range(len(names)), names, fontsize=8)
        axes[0].set_ylim(-0.6, len(names) - 0.4)
        axes[0].set_title(part["title"], fontsize=9, loc="left")
        axes[0].set_xlabel(f"{part['metric']}, {part['better']} is better", fontsize=8)
        if part["paired"]:
            over = part["paired"][0]["over"]
            gains(axes[1], part["paired"], part["metric"], f"mean of {over}")
        elif compared:
            axes[1].axis("off")
    return figure


def curves(groups: dict[str, dict[int, dict[str, Any]]]) -> Any:
    """The mean of each method over the counts of shots; None for no groups.

    Args:
        groups: by title, the tests by their count of shots.
    """
    if not groups:
        return None
    figure = blank(7, 4 * len(groups))
    rows = figure.subplots(len(groups), squeeze=False)[:, 0]
    for axes, (title, parts) in zip(rows, groups.items(), strict=True):
        found: dict[str, list[tuple[int, float, float]]] = {}
        for count in sorted(parts):
            for row in parts[count]["rows"]:
                place = count, row["score"]["mean"], row["score"]["std"] or 0.0
                found.setdefault(row["method"], []).append(place)
        for i, (method, places) in enumerate(sorted(found.items())):
            x, mean, deviation = zip(*places, strict=True)
            look = dict(color=COLOURS[i % len(COLOURS)], marker=MARKS[i // len(COLOURS) % 3])
            axes.errorbar(x, mean, deviation, label=method, capsize=3, **look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(parts), map(str, sorted(parts)))
        axes.set_xlabel("examples of each class")
        axes.set_ylabel(next(iter(parts.values()))["metric"])
        axes.set_title(title, fontsize=9, loc="left")
        axes.legend(fontsize=8)
    return figure
