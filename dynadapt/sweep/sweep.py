"""A sweep over tasks, methods, grids and seeds: every cell once, each result a line.

For each method on each task the grid is trained on train800 and evaluated on val200; the best point
is then trained on both with every seed, and evaluated on the test split, once. Cells of one task
that differ in seed or grid point are trained together (`population.Population`).
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from dynadapt import model, processes, tasks, weights
from dynadapt.data import Info, loader, numbered, transforms
from dynadapt.errors import ConfigError, DataError
from dynadapt.runs import workdir
from dynadapt.runs.stop import Preempted, stop_signal
from dynadapt.step import collapsed
from dynadapt.sweep import protocol, suites
from dynadapt.sweep.population import Population
from dynadapt.sweep.store import Store

# Sizes of heads: classes beyond a task's own are out of reach, so that tasks share programs.
BUCKETS = (16, 64, 128, 512)
# Evaluated splits up to this many bytes of pixels are decoded once and kept.
KEEP = 1 << 30
POLL = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """What to run.

    Attributes:
        config: as of `configs/vtab.py`.
        suite: "vtab" or "offline".
        form: of the suite's data, such as "tfds" or "folder".
        path: where the data lies, "" for the usual place.
        tasks: in the suite's order.
        methods: in the order of running.
        seeds: of the final runs.
        backbone: a variant.
        weights: file or name, "" for random ones.
        population: cells that are trained together.
    """

    config: ConfigDict
    suite: str
    form: str
    path: str
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    backbone: str
    weights: str
    population: int = 1

    @functools.cached_property
    def shared(self) -> dict[str, Any]:
        """What all results of one folder have in common."""
        file = weights.locate(self.weights) if self.weights else None
        return {
            "suite": self.suite,
            "form": self.form,
            "protocol": self.config.protocol.name,
            "protocol_digest": protocol.digest(self.config),
            "backbone": self.backbone,
            "weights_sha256": weights.digest(file) if file else "",
            "methods": {m: self._method_digest(m) for m in self.methods},
        }

    def _method_digest(self, method: str) -> str:
        """A hash of a method's settings and of its grids on all tasks of the suite."""
        grids = {t: protocol.grid(self.config, method, t) for t in suites.find(self.suite).tasks}
        text = json.dumps([self.settings(method), grids], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def configs(self) -> dict[str, ConfigDict]:
        """The config of the runs of each method."""
        given = self.suite, self.backbone, self.weights
        return {m: protocol.training_config(self.config, m, *given) for m in self.methods}

    def settings(self, method: str) -> dict[str, Any]:
        """The settings of a method, less what the grid chooses."""
        own = self.configs[method].adapter.to_dict()
        chosen = ("name", "scale") if protocol.has_scale(method, self.config) else ("name",)
        return {k: v for k, v in own.items() if k not in chosen}

    def due(self, task: str, method: str, done: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """All cells of a method on a task that can be known by now: tuning, then final ones."""
        shared = {k: v for k, v in self.shared.items() if k != "methods"}
        common = {**shared, "method": method, "settings": self.settings(method), "task": task}
        points = protocol.grid(self.config, method, task)
        p = self.config.protocol
        tuning = []
        if p.select == "val" and len(points) > 1:
            tuning = protocol.cells(common, "tune", points, p.tuning_seeds)
            if any(cell["cell"] not in done for cell in tuning):
                return tuning
            points = [protocol.best(points, [done[cell["cell"]] for cell in tuning])]
        return tuning + protocol.cells(common, "final", points[:1], self.seeds)


def check(sweep: Sweep) -> None:
    """Raises a ConfigError for what can't be run, before data are read or anything is written."""
    protocol.check(sweep.config)
    for name, found in (("methods", sweep.methods), ("seeds", sweep.seeds)):
        if not found:
            raise ConfigError(f"give --{name}=…")
    if sweep.population < 1:
        raise ConfigError(f"population must be at least 1, not {sweep.population}")
    configs = sweep.configs  # each is checked
    for method in configs:
        if ":" in method:
            protocol.check_variant(sweep.config, method, sweep.backbone)
    for task in sweep.tasks:
        for method in configs:
            protocol.grid(sweep.config, method, task)


def fingerprints(sweep: Sweep) -> dict[str, str]:
    """The fingerprint of each task's data; DataError where they aren't there."""
    return {t: source(sweep, t, "train800val200").info.fingerprint for t in sweep.tasks}


def source(sweep: Sweep, task: str, split: str) -> Any:
    """A split of a task; DataError if it is not there."""
    return suites.find(sweep.suite).read(split, task, sweep.form, sweep.path)


class TaskData:
    """The examples of one task, decoded once; the test split is not touched before it is asked for.

    Attributes:
        train: the fields of a batch, `1000 …` each: train800, then val200.
        spec: shapes of a batch.
        fingerprints: of the splits that were evaluated.
    """

    def __init__(self, sweep: Sweep, task: str, config: ConfigDict):
        self._sweep, self._task, self._config = sweep, task, config
        found = source(sweep, task, "train800val200")
        if len(found) != protocol.BOTH:
            raise DataError(
                f"train800val200 of {task} has {len(found)} images instead of {protocol.BOTH}"
            )
        self.info: Info = found.info
        self._change = transforms.pipeline(config.input.eval)
        self.spec = loader.spec(found.info, self._change, config.input.batch_size)
        pieces = list(self._batches(found))
        names = [name for name in pieces[0] if name not in ("index", "mask")]
        whole = {name: np.concatenate([p[name] for p in pieces]) for name in names}
        self.train = {name: x[: protocol.BOTH] for name, x in whole.items()}
        self.fingerprints: dict[str, str] = {}
        self._kept: dict[str, list[dict[str, np.ndarray]]] = {}

    def _batches(self, found: Any) -> Any:
        return loader.eval_batches(
            found, self._change, batch_size=self._config.input.eval_batch_size
        )

    def batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """Batches of val200 or test, the last one padded."""
        if split in self._kept:
            yield from self._kept[split]
            return
        found = source(self._sweep, self._task, split)
        if found.info.classes != self.info.classes:
            raise DataError(f"train800val200 and {split} of {self._task} have different classes")
        self.fingerprints[split] = found.info.fingerprint
        small = len(found) * self.train["image"][0].nbytes <= KEEP
        kept = []
        for batch in self._batches(found):
            if small:
                kept.append(batch)
            yield batch
        if small:
            self._kept[split] = kept


def bucket(classes: int) -> int:
    """The number of classes of the head that a task with `classes` is trained with."""
    fitting = [size for size in BUCKETS if size >= classes]
    return fitting[0] if fitting else 1 << (classes - 1).bit_length()


class Runner:
    """Runs the groups of cells of a sweep, and keeps the programs and the last task's examples."""

    def __init__(self, sweep: Sweep, store: Store, stop: Any):
        self.sweep, self.store, self.stop = sweep, store, stop
        self.programs: dict[tuple[str, int], Population] = {}
        self._examples: tuple[str, TaskData] | None = None
        self._bare: Any = None

    def examples(self, task: str, config: ConfigDict) -> TaskData:
        """The examples of a task."""
        if self._examples is None or self._examples[0] != task:
            self._examples = None
            self._examples = task, TaskData(self.sweep, task, config)
            self.store.check_data({task: self._examples[1].info.fingerprint})
        return self._examples[1]

    def population(
        self, method: str, config: ConfigDict, classes: int, spec: model.Batch
    ) -> Population:
        """The programs of a method for heads of that bucket."""
        size = bucket(classes)
        if (method, size) not in self.programs:
            if self._bare is None:
                self._bare = model.loaded_backbone(config)
            task = tasks.from_config(config.task, numbered(size))
            made = Population(config, task, spec, self._bare, self.sweep.population)
            self.programs[method, size] = made
        return self.programs[method, size]

    def run(self, group: list[dict[str, Any]]) -> None:
        """Trains and evaluates claimed cells of one method, task and stage together."""
        first, began = group[0], time.monotonic()
        method, task, final = first["method"], first["task"], first["stage"] == "final"
        config = self.sweep.configs[method]
        examples = self.examples(task, config)
        classes = len(examples.info.classes)
        programs = self.population(method, config, classes, examples.spec)
        trained = protocol.BOTH if final else protocol.TRAINED
        length = protocol.steps(self.sweep.config, trained)
        # A group that is too small is filled up, so that one program serves all.
        filled = [group[min(i, len(group) - 1)] for i in range(self.sweep.population)]
        hyper = programs.hyper(
            [{**cell["hyper"], "steps": length, "classes": classes} for cell in filled]
        )
        seeds = [cell["seed"] for cell in filled]
        state = self._train(programs, examples, group, seeds, hyper, trained, length)
        split = "test" if final else "val200"
        found = programs.evaluate(state, examples.batches(split), hyper)
        diverged, fallen = jax.device_get((state["bad"]["step"], collapsed(state["variance"])))
        counted = workdir.counts(programs.shapes, programs.frozen)
        head = counted["trained_with_head"] - counted["trained"]
        lines = []
        for cell, values, bad, fell in zip(group, found, diverged, fallen, strict=False):
            lines.append(
                {
                    **cell,
                    "weights": Path(self.sweep.weights).name,
                    "group": suites.find(self.sweep.suite).tasks[task].group,
                    "classes": classes,
                    "split": split,
                    "examples": values["examples"],
                    "score": values[programs.task.headline],
                    "metric": programs.task.headline,
                    "better": programs.task.better,
                    "loss": values["loss"] if math.isfinite(values["loss"]) else None,
                    "steps": length,
                    # The last step that was not finite, or null.
                    "diverged": _diverged(int(bad), values["loss"], length),
                    # Whether features came to be nearly the same for all images.
                    "collapsed": bool(fell),
                    "trained": counted["trained"],
                    "trained_with_head": counted["trained"] + head * classes // bucket(classes),
                    "backbone_parameters": counted["backbone"],
                    "data_fingerprint": examples.info.fingerprint,
                    "split_fingerprint": examples.fingerprints[split],
                    "seconds": round((time.monotonic() - began) / len(group), 3),
                }
            )
        self.store.finish(lines)
        self.store.forget(self._name(group))
        scores = " ".join(f"{line['score']:.2f}" for line in lines)
        say(
            f"{task} {method} {first['stage']}: {programs.task.headline} {scores} on {split}, "
            f"{time.monotonic() - began:.1f} s, {len(self.store.done())} cells done"
        )

    def _name(self, group: list[dict[str, Any]]) -> str:
        names = " ".join([str(self.sweep.population), *(cell["cell"] for cell in group)])
        return f"{group[0]['cell']}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"

    def _train(
        self,
        programs: Population,
        examples: TaskData,
        group: list[dict[str, Any]],
        seeds: Sequence[int],
        hyper: Any,
        trained: int,
        length: int,
    ) -> Any:
        """The state of the cells after training, going on from where it was kept."""
        config, name, origin = programs.config, self._name(group), examples.info.fingerprint
        keys, arrays = programs.keys(seeds), programs.put_data(examples.train)
        done, state = self.store.restore(name, programs.start(seeds, hyper), origin)
        if done:
            state = programs.put(state)
            say(f"{group[0]['task']} {group[0]['method']}: going on from step {done}")
        last = time.monotonic()
        while done < length:
            rows = np.stack([loader.rows(s, done, config.input.batch_size, trained) for s in seeds])
            state, _ = programs.step(state, arrays, rows, keys, hyper)
            done += 1
            stopping = self.stop.is_set()
            if stopping or time.monotonic() - last > self.sweep.config.save_seconds:
                self.store.save(name, done, state, origin)
                last = time.monotonic()
            if stopping:
                raise Preempted
        return state


def _diverged(bad: int, loss: float, length: int) -> int | None:
    """The last step that was not finite, or that of the evaluation, or None."""
    return bad if bad >= 0 else None if math.isfinite(loss) else length


def run(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Runs all cells that aren't finished, those of this process's turn; returns a summary.

    Raises:
        DynadaptError: for anything that a user can mend.
        Preempted: after SIGTERM or SIGINT, with the cells in hand saved.
    """
    check(sweep)
    data = fingerprints(sweep)
    # Several processes of one job work side by side, each with the devices of its own.
    processes.start()
    keep_programs()
    with Store(folder, sweep.shared) as store, stop_signal() as stop:
        store.check_data(data)
        runner = Runner(sweep, store, stop)
        while True:
            worked, waiting = 0, False
            for task in sweep.tasks:
                for method in sweep.methods:
                    while group := store.claim(
                        sweep.due(task, method, store.done()), sweep.population
                    ):
                        runner.run(group)
                        worked += 1
                    due = sweep.due(task, method, store.done())
                    waiting |= any(cell["cell"] not in store.done() for cell in due)
            if not worked and not waiting:
                break
            if not worked and stop.wait(POLL):
                raise Preempted
        store.finish([])
        store.tidy()
        done = store.done()
    return {
        "workdir": str(folder),
        "cells": len(done),
        "final": sum(line["stage"] == "final" for line in done.values()),
        "programs": {
            f"{method}, {size} classes": {
                "train": made.step_program._cache_size(),
                "evaluate": made.test_program._cache_size(),
            }
            for (method, size), made in runner.programs.items()
        },
    }


def keep_programs() -> None:
    """Keeps compiled programs on disk for the next start, unless JAX has been told where."""
    if not jax.config.jax_compilation_cache_dir:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        # A program for a CPU is for that machine's alone, and a home may be that of several.
        own = folder / "dynadapt" / "programs" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(own))
        compilation_cache.reset_cache()


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(result: dict[str, Any]) -> None:
    """Prints what a sweep came to."""
    print(
        f"{result['cells']} cells are done in {result['workdir']}, {result['final']} of them final"
    )
    print(f"the table: dynadapt vtab report --workdir={result['workdir']}")
