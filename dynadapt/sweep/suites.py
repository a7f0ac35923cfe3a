"""Suites of benchmarks that a sweep runs over, all seen in one way; what of their data is here, and
how it is built. Only `prepare` downloads anything.

A suite has a `title`, its `tasks` in table order, the `forms` in which its data come, and

    read(split, task, form, path)     the source of a split; DataError if it is not there
    where(task, form, path)           where its data lie, or would lie
    obtain(task, form, path)          how to obtain them, in a sentence
    tests(task, form, path)           how many test images there are
    faults(task, form, path)          what is wrong with data that can be read, a sentence each
    sets(names, path)                 what `prepare` brings: (name, tasks, makes it or raises)
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dynadapt.data import Benchmark, Source, find_task, offline, tfds, vtab
from dynadapt.errors import ConfigError, DataError, MachineError, UnknownName
from dynadapt.runs.journal import show_table

# Name of a set, its tasks, and what makes sure that it is there.
Set = tuple[str, list[str], Callable[[], None]]


class Suite(Protocol):
    """What a sweep asks of a suite; see above."""

    title: str
    tasks: Mapping[str, Benchmark]
    forms: tuple[str, ...]

    def read(self, split: str, task: str, form: str, path: str) -> Source: ...

    def where(self, task: str, form: str, path: str) -> str: ...

    def obtain(self, task: str, form: str, path: str) -> str: ...

    def tests(self, task: str, form: str, path: str) -> int: ...

    def faults(self, task: str, form: str, path: str) -> list[str]: ...

    def sets(self, names: Iterable[str], path: str) -> list[Set]: ...


class Offline:
    """The suite that needs no download."""

    title, tasks, forms = offline.TITLE, offline.TASKS, offline.FORMS

    def read(self, split: str, task: str, form: str, path: str) -> Source:
        return offline.source(split, task, path)

    def where(self, task: str, form: str, path: str) -> str:
        return str(offline.folder(path))

    def obtain(self, task: str, form: str, path: str) -> str:
        return offline.obtain(task)

    def tests(self, task: str, form: str, path: str) -> int:
        return offline.count_test(task, path)

    def faults(self, task: str, form: str, path: str) -> list[str]:
        return []

    def sets(self, names: Iterable[str], path: str) -> list[Set]:
        """They are there or not; nothing of them is built."""

        def look(task: str) -> None:
            if not offline.count_test(task, path):
                raise DataError(f"{task} has no test images; {offline.obtain(task)}")

        return [(task, [task], lambda task=task: look(task)) for task in names]


class Vtab:
    """VTAB-1K, from TFDS or from the folder that papers share."""

    title, tasks, forms = vtab.TITLE, vtab.TASKS, vtab.FORMS

    def read(self, split: str, task: str, form: str, path: str) -> Source:
        return vtab.source(split, task, form, path)

    def where(self, task: str, form: str, path: str) -> str:
        if form != "tfds":
            return path
        return str(tfds.make(find_task(self.tasks, task).builder, path).data_dir)

    def obtain(self, task: str, form: str, path: str) -> str:
        return vtab.obtain(task, form, path)

    def tests(self, task: str, form: str, path: str) -> int:
        return len(self.read("test", task, form, path))

    def faults(self, task: str, form: str, path: str) -> list[str]:
        return vtab.faults(find_task(self.tasks, task), path) if form == "folder" else []

    def sets(self, names: Iterable[str], path: str) -> list[Set]:
        """TFDS's builders; several tasks may share one."""
        sharing: dict[str, list[str]] = {}
        for name in names:
            sharing.setdefault(find_task(self.tasks, name).builder, []).append(name)
        return [
            (tfds.make(builder, path).info.full_name, tasks,
             lambda builder=builder, tasks=tasks: _build(builder, tasks[0], path))
            for builder, tasks in sharing.items()
        ]  # fmt: skip


def _build(builder: str, task: str, path: str) -> None:
    """Downloads and builds a set of TFDS that is not there.

    Raises:
        DataError: for a set that could not be built, or needs files that a user brings.
        MachineError: where there is no TensorFlow to build it with.
    """
    try:
        tfds.prepared(builder, path, "", "")
        return
    except DataError:
        made = tfds.make(builder, path, file_format="array_record")
    name = made.info.full_name
    manual = Path(made.data_dir).parents[name.count("/")] / "downloads" / "manual"
    by_hand = vtab.MANUAL.get(task)
    if by_hand and not (manual.is_dir() and any(manual.iterdir())):
        raise DataError(f"{name} needs files that you download: {by_hand}")
    if importlib.util.find_spec("tensorflow") is None:
        raise MachineError(
            f"building {name} needs TensorFlow, which is not installed: "
            "pip install 'dynadapt[data]'"
        )
    import tensorflow_datasets

    options = tensorflow_datasets.download.DownloadConfig(manual_dir=str(manual))
    try:
        made.download_and_prepare(download_config=options)
    except Exception as error:  # whatever a download and TFDS's readers of raw files raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} could not be built: {reason}") from error


SUITES: dict[str, Suite] = {"offline": Offline(), "vtab": Vtab()}


def find(name: str) -> Suite:
    """The suite of that name; raises UnknownName."""
    if name not in SUITES:
        raise UnknownName("suite", name, SUITES)
    return SUITES[name]


def form_of(suite: str, given: str = "") -> str:
    """The form in which a suite is read: the one given, or its first; raises UnknownName."""
    forms = find(suite).forms
    if given and given not in forms:
        raise UnknownName(f"form of {suite}", given, forms)
    return given or forms[0]


def chosen(suite: str, names: Iterable[str] = ()) -> list[Benchmark]:
    """The tasks of a suite, all of them or those of `names`; raises UnknownName."""
    known = find(suite).tasks
    return [find_task(known, name) for name in names or known]


def here(suite: str, form: str = "", path: str = "") -> list[str]:
    """The tasks whose training images are here."""
    found, form = [], form_of(suite, form)
    for task in chosen(suite):
        try:
            find(suite).read("train800val200", task.name, form, path)
        except DataError:
            continue
        found.append(task.name)
    return found


def status(
    suite: str, form: str = "", path: str = "", names: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """A row for each task: whether it is there, where, what it holds, or how to obtain it.

    `labels` counts the 1,000 training examples of each class, and `sha256` covers their images and
    labels as they are stored. `counts` are images of each split, `published` the test images of the
    whole set; `problem` is empty or says what is wrong, a sentence for each fault.

    Raises:
        ConfigError: for a `path` that is no folder.
    """
    if path and not Path(path).expanduser().is_dir():
        raise ConfigError(f"there is no folder {path}")
    rows, form, own = [], form_of(suite, form), find(suite)
    for task in chosen(suite, names):
        place = task.name, form, path
        row = dict(task=task.name, title=task.title, group=task.group, classes=task.classes)
        row |= dict(present=False, form=form, set="", counts={})
        row |= dict(published=task.test, labels=[], sha256="", problem="")
        row |= dict(where=path, obtain=own.obtain(*place))
        try:
            row["where"] = own.where(*place)
            row |= _there(own, *place)
        except DataError as error:
            row["problem"] = str(error)
        row["problem"] = "; ".join(own.faults(*place)) or row["problem"]
        rows.append(row)
    return rows


def _there(suite: Suite, task: str, form: str, path: str) -> dict[str, Any]:
    train = suite.read("train800val200", task, form, path)
    labels, sha256 = content(train)
    counts = {"train800": 800, "val200": len(train) - 800, "test": suite.tests(task, form, path)}
    return dict(present=True, set=train.info.name, counts=counts, labels=labels, sha256=sha256)


def content(source: Source) -> tuple[list[int], str]:
    """Examples of each class, and a SHA-256 over images and labels in their order."""
    labels, digest = np.zeros(len(source.info.classes), int), hashlib.sha256()
    for i in range(len(source)):
        example = source[i]
        image = example["image"]
        data = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
        digest.update(b"%d %d " % (example["label"], len(data)) + data)
        labels[example["label"]] += 1
    return labels.tolist(), digest.hexdigest()


def prepare(suite: str, names: Iterable[str] = (), path: str = "") -> list[dict[str, Any]]:
    """Downloads and builds what is not there of a suite's sets; a row for each set.

    A row has the tasks that the set is for, whether it is `ready`, and the problem if it isn't.

    Raises:
        MachineError: where there is something to build and no TensorFlow to build it with.
    """
    rows = []
    for name, tasks, make in find(suite).sets([t.name for t in chosen(suite, names)], path):
        try:
            make()
            rows.append(dict(set=name, tasks=tasks, ready=True, problem=""))
        except DataError as error:
            rows.append(dict(set=name, tasks=tasks, ready=False, problem=str(error)))
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the rows of `status` or `prepare` as a table, and problems below it."""
    if rows and "ready" in rows[0]:
        cells = [[r["set"], " ".join(r["tasks"]), "yes" if r["ready"] else "no"] for r in rows]
        show_table("", ["set", "tasks", "ready"], cells)
    else:
        columns = ["task", "group", "set", "classes", "train", "val", "test", "labels", "sha256"]
        show_table("", columns, [_cells(row) for row in rows])
    for row in rows:
        if row["problem"]:
            print(f"{row['task']}: {row['problem']}" if "task" in row else row["problem"])


def _cells(row: dict[str, Any]) -> list[Any]:
    head = [row["task"], row["group"]]
    if not row["present"]:
        return [*head, "missing", row["classes"], None, None, None, "", ""]
    counts, labels = row["counts"], row["labels"]
    test = f"{counts['test']:,}"
    if counts["test"] != row["published"]:
        test += f" of {row['published']:,}"
    sizes = [counts["train800"], counts["val200"], test]
    spread = f"{min(labels)} to {max(labels)} of each"
    return [*head, row["set"], row["classes"], *sizes, spread, row["sha256"][:12]]
