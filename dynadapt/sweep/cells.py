"""A sweep whose cells are training runs: of any config, on any data, for any task.

    sweep.json, methods/, claims/, results.jsonl    as of `store`
    cells/<cell>.json                               what a run came to, or why it failed
    runs/<cell>/                                    all that the run left

A sweep has rows, each a config; a row has draws of its data (`draws`), and each method on each draw
has a run for every point of the grid, judged on examples that no table shows, and of the best point
one for every seed.
"""

import dataclasses
import functools
import hashlib
import json
import operator
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dynadapt import config as configs
from dynadapt import data, train
from dynadapt.data import parts
from dynadapt.ending import command
from dynadapt.errors import ConfigError, DataError, TrainingError
from dynadapt.runs import report
from dynadapt.runs.journal import show_table
from dynadapt.runs.stop import Preempted, stop_signal
from dynadapt.sweep import estimate, protocol
from dynadapt.sweep.draws import Draw, draws
from dynadapt.sweep.store import Store
from dynadapt.sweep.sweep import POLL, keep_programs, say

KIND = "runs"  # in `sweep.json`, where sweeps of benchmarks name their suite
TUNING_SEED = 0
# By method, the config of each point of the grid.
Configs = Mapping[str, Sequence[ConfigDict]]


@dataclasses.dataclass(frozen=True, eq=False)
class RunSweep:
    """What to run.

    Attributes:
        rows: by title, the configs of each draw that the config file makes of its data; mostly one.
        grid: fields whose values the points differ in.
        seeds: of the final runs.
        folds: how many parts the training split is cut into, each of which judges; 0 for none.
        shots: how many examples of each class are trained on, one count after another.
    """

    rows: Mapping[str, Sequence[Configs]]
    grid: Sequence[str]
    seeds: Sequence[int]
    folds: int = 0
    shots: Sequence[int] = ()

    @property
    def methods(self) -> list[str]:
        """In the order of running."""
        return list(next(iter(self.rows.values()))[0])

    def shared(self) -> dict[str, Any]:
        """What all results of one folder have in common."""
        digests = {
            method: [
                [configs.digest(point) for point in own[method]]
                for row in self.rows.values()
                for own in row
            ]
            for method in self.methods
        }
        hashed = {m: hashlib.sha256(json.dumps(d).encode()).hexdigest() for m, d in digests.items()}
        return {"suite": KIND, "grid": list(self.grid), "methods": hashed}


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """The cells of one method on one draw of a row.

    Attributes:
        row: its title.
        draw: of the data.
        number: which of the config file's own draws, or None where it makes one.
        method: a name, or a variant.
        points: the config of each.
        grid: as of `RunSweep`.
        seeds: as of `RunSweep`.
        source: the training data that draws are taken of.
        eval_batch: examples in a batch of an evaluation, no more than any draw judges on, so that
            one program serves all.
    """

    row: str
    draw: Draw
    number: int | None
    method: str
    points: Sequence[ConfigDict]
    grid: Sequence[str]
    seeds: Sequence[int]
    source: Any
    eval_batch: int

    def cells(self, done: Mapping[str, dict[str, Any]]) -> list[tuple[dict[str, Any], ConfigDict]]:
        """All that can be known by now, with their configs: tuning, then final ones."""
        if len(self.points) == 1:
            return [self._cell("final", self.points[0], seed) for seed in self.seeds]
        tuning = [self._cell("tune", point, TUNING_SEED) for point in self.points]
        lines = [done.get(cell["cell"]) for cell, _ in tuning]
        if not all(lines):
            return tuning
        whole = [i for i, line in enumerate(lines) if not line["failed"]]
        if not whole:
            return tuning
        hyper = protocol.best([lines[i]["hyper"] for i in whole], [lines[i] for i in whole])
        best = self.points[next(i for i in whole if lines[i]["hyper"] == hyper)]
        return tuning + [self._cell("final", best, seed) for seed in self.seeds]

    def _cell(self, stage: str, point: ConfigDict, seed: int) -> tuple[dict[str, Any], ConfigDict]:
        config = point.copy_and_resolve_references()
        given = self.draw[1:3] if stage == "final" else self.draw[3:]
        config.seed = seed
        config.input.eval_batch_size = self.eval_batch
        config.input.train_split, config.input.eval_split = (
            split.replace("{seed}", str(seed)) for split in given
        )
        words = (self.row, self.method, self.drawn, stage, f"seed{seed}")
        name = "-".join(re.sub(r"[^A-Za-z0-9_.=]+", "_", word)[:40] for word in words if word)
        hyper = {f: functools.reduce(operator.getitem, f.split("."), config) for f in self.grid}
        line = {
            "cell": f"{name}-{configs.digest(config)[:8]}",
            "row": self.row,
            "method": self.method,
            "draw": self.drawn,
            "stage": stage,
            "seed": seed,
            "hyper": hyper,
            "train_split": config.input.train_split,
            "split": config.input.eval_split,
            "task": self.name,
            "data_fingerprint": self.source.info.fingerprint,
        }
        return line, config

    @property
    def drawn(self) -> str:
        """What tells this draw from others of its row."""
        return self.draw.name if self.number is None else f"draw {self.number}"

    @property
    def name(self) -> str:
        """Of the row and the draw."""
        return f"{self.row} {self.drawn}".strip()


def series(sweep: RunSweep) -> Iterator[Series]:
    """All series, those of one draw one after another.

    Raises:
        DataError: for data that are not there, or parts that can't be taken of them.
        ConfigError: for a batch of more examples than a draw has.
    """
    for title, row in sweep.rows.items():
        if len(row) > 1 and (sweep.folds or sweep.shots):
            raise ConfigError(f"{title} has draws of its own, so it takes no --folds or --shots")
        for number, own in enumerate(row):
            first = next(iter(own.values()))[0]
            source = data.from_config(first.data, parts.cut(first.input.train_split)[0])
            found = draws(first, sweep.folds, sweep.shots)
            used = slice(1, 3) if len(next(iter(own.values()))) == 1 else slice(1, 5)
            for split in (s for draw in found for s in draw[used][::2]):
                _check_size(source, split, first.input.batch_size)
            judges = [s for draw in found for s in draw[used][1::2] if "|" in s]
            batch = min([first.input.eval_batch_size, *(size(source, s) for s in judges)])
            for draw in found:
                for method, points in own.items():
                    place = title, draw, number if len(row) > 1 else None, method, points
                    yield Series(*place, sweep.grid, sweep.seeds, source, batch)


def size(source: Any, split: str, seed: int = 0) -> int:
    """How many examples of the training data a split has that is a part of them."""
    return len(parts.take(source, parts.cut(split.replace("{seed}", str(seed)))[1]))


def _check_size(source: Any, split: str, batch: int) -> None:
    """Raises a ConfigError for a split of fewer examples than a batch of training."""
    if (count := size(source, split)) < batch:
        raise ConfigError(
            f"{split.replace('{seed}', '0')} has {count} examples, fewer than input.batch_size="
            f"{batch}; give a smaller one, such as --config.input.batch_size={count}"
        )


def check(sweep: RunSweep) -> None:
    """Raises a ConfigError for what can't be run, before data are read or anything is written."""
    if not sweep.seeds:
        raise ConfigError("give --seeds=…")
    if os.environ.get("DYNADAPT_DISTRIBUTED", "") not in ("", "0"):
        raise ConfigError(
            "each run of a sweep has one process; start the same command on each machine without "
            "DYNADAPT_DISTRIBUTED, and they share the runs of one --workdir"
        )
    report.check_all([p for row in sweep.rows.values() for own in row for m in own.values()
                      for p in m])  # fmt: skip


def by_row(sweep: RunSweep) -> Iterator[tuple[str, RunSweep]]:
    """The sweep of each row."""
    for title, row in sweep.rows.items():
        yield title, dataclasses.replace(sweep, rows={title: row})


def _series(sweep: RunSweep) -> list[Series]:
    """All series; data that are not there are told with the row that asks for them."""
    found = []
    for title, one in by_row(sweep):
        try:
            found += series(one)
        except DataError as error:
            raise DataError(": ".join(filter(None, (title, str(error))))) from error
    return found


def run(sweep: RunSweep, folder: Path) -> dict[str, Any]:
    """Runs all cells that aren't finished, those of this process's turn; returns a summary.

    Raises:
        DynadaptError: for anything that a user can mend; a run that met numbers which are not
            finite is recorded as failed instead, and the sweep goes on.
        Preempted: after SIGTERM or SIGINT, with the run in hand saved.
    """
    check(sweep)
    every = _series(sweep)
    keep_programs()
    with Store(folder, sweep.shared()) as store:
        prints = ((one.name, one.source.info.fingerprint) for one in every)
        store.check_data(dict(prints))
        while True:
            worked, waiting = 0, False
            for one in every:
                while claimed := _claim(store, one):
                    _run_one(store, *claimed)
                    worked += 1
                waiting |= any(c["cell"] not in store.done() for c, _ in one.cells(store.done()))
            if not worked and not waiting:
                break
            if not worked:
                with stop_signal() as stop:
                    if stop.wait(POLL):
                        raise Preempted
        store.finish([])
        done = [cell for one in every for cell, _ in one.cells(store.done())]
        lines = [store.done()[cell["cell"]] for cell in done]
    return {
        "workdir": str(folder),
        "cells": len(lines),
        "final": sum(line["stage"] == "final" for line in lines),
        "failed": {line["cell"]: line["failed"] for line in lines if line["failed"]},
    }


def _claim(store: Store, one: Series) -> tuple[dict[str, Any], ConfigDict] | None:
    """A cell of a series that nobody works on, now claimed."""
    cells = {cell["cell"]: (cell, config) for cell, config in one.cells(store.done())}
    mine = store.claim([cell for cell, _ in cells.values()], 1)
    return cells[mine[0]["cell"]] if mine else None


def _run_one(store: Store, cell: dict[str, Any], config: ConfigDict) -> None:
    began, place = time.monotonic(), f"runs/{cell['cell']}"
    say(f"{cell['cell']}: {cell['hyper']}")
    line = {**cell, "folder": place, "failed": "", "score": None, "diverged": None}
    try:
        found = train.run(config, store.folder / place)
    except TrainingError as error:
        line["failed"] = str(error)
    else:
        kept = ("better", "beside", "collapsed", "steps", "trained", "trained_with_head")
        line |= {name: found[name] for name in kept}
        line |= {"metric": found["headline"], "score": found[found["headline"]]}
        line["backbone_parameters"] = found["backbone"]
        line["metrics"] = {name: found[name] for name in found["beside"]}
    line["seconds"] = round(time.monotonic() - began, 3)
    store.finish([line])
    shown = line["failed"] or f"{line['metric']} {report.number_text(line['score'])}"
    say(f"{cell['cell']}: {shown}, {len(store.done())} cells done")


def plan(sweep: RunSweep) -> dict[str, Any]:
    """Cells, steps, FLOPs and hours by row and method; nothing is run or written.

    Returns:
        `rows` (`row`, `method`, `draws`, `tuning`, `final`, `judged`: the splits that choose and
        that the table is of, `steps`, `flops`, `hours`), `missing`, the rows whose data are not
        here by the sentence on it, `flops_per_second`, and the totals `cells`, `flops` and `hours`.
        What follows from data that are not here is None.
    """
    check(sweep)
    rate, rows, missing = estimate.device_rate(), [], {}
    for title, one in by_row(sweep):
        try:
            every = list(series(one))
        except DataError as error:
            missing.setdefault(str(error), []).append(title)
            every = []
        rows += [_planned(one, title, every, method, rate) for method in one.methods]
    known = [row for row in rows if row["flops"] is not None]
    return {
        "rows": rows,
        "missing": missing,
        "flops_per_second": rate,
        "cells": sum(row["tuning"] + row["final"] for row in rows),
        "flops": sum(row["flops"] for row in known),
        "hours": sum(row["hours"] for row in known),
    }


def _planned(
    sweep: RunSweep, title: str, every: Sequence[Series], method: str, rate: float
) -> dict[str, Any]:
    row = sweep.rows[title]
    count = len(row) * (sweep.folds or len(sweep.shots) or 1)
    points = len(row[0][method])
    tuning = count * points if points > 1 else 0
    found = dict(row=title, method=method, draws=count, tuning=tuning)
    found |= dict(final=count * len(sweep.seeds), judged="", steps=None, flops=None, hours=None)
    own = [one for one in every if one.method == method]
    if not own:
        return found
    config = configs.resolve(own[0].points[0])
    step, example = estimate.cost(config, own[0].source.info)
    steps = examples = 0
    for one in own:
        for again, split, judge in (
            (points if tuning else 0, one.draw.tune_train, one.draw.tune_judge),
            (len(sweep.seeds), one.draw.train, one.draw.judge),
        ):
            steps += again * train.training_steps(config, size(one.source, split))
            examples += again * len(data.from_config(one.points[0].data, judge)) if again else 0
    judges = (own[0].draw.tune_judge, own[0].draw.judge) if tuning else (own[0].draw.judge,)
    flops = steps * step + examples * example
    found |= dict(judged=", ".join(judges), steps=steps, flops=flops, hours=flops / rate / 3600)
    return found


def show_plan(result: dict[str, Any]) -> None:
    """Prints the plan of a sweep."""
    columns = ["row", "method", "draws", "tuning runs", "final runs", "judged on", "steps"]
    cells = [
        [r["row"], r["method"], r["draws"], r["tuning"], r["final"], r["judged"], r["steps"]]
        + (["", ""] if r["flops"] is None else [f"{r['flops'] / 1e12:,.1f}", f"{r['hours']:.2f}"])
        for r in result["rows"]
    ]
    title = (
        f"{result['cells']} cells, {result['flops'] / 1e15:,.2f} PFLOP, {result['hours']:.1f} hours"
    )
    show_table(title, [*columns, "TFLOP", "hours"], cells, note=estimate.NOTE)
    for problem, rows in result["missing"].items():
        print(": ".join(filter(None, (", ".join(rows), problem))))


def show(result: dict[str, Any]) -> None:
    """Prints what a sweep came to."""
    failed = result["failed"]
    print(
        f"{result['cells']} cells are done in {result['workdir']}, {result['final']} of them final"
        + (f", {len(failed)} failed" if failed else "")
    )
    for cell, reason in failed.items():
        print(f"- {cell}: {reason}")
    print(f"the table: {command()} report {result['workdir']}")
