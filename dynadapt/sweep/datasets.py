"""What the data sets of a suite are, whether they are here, and how they are built.

Only `prepare` downloads anything.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dynadapt.data import Benchmark, Source, find_task, offline, tfds, vtab
from dynadapt.errors import DataError, MachineError, UnknownName
from dynadapt.runs.journal import show_table

SUITES: dict[str, ModuleType] = {"offline": offline, "vtab": vtab}


def find(suite: str) -> ModuleType:
    """The data of a suite: its `TITLE`, its `TASKS` in table order, the `FORMS` it comes in.

    Raises:
        UnknownName: where there is no such suite.
    """
    if suite not in SUITES:
        raise UnknownName("suite", suite, SUITES)
    return SUITES[suite]


def form_of(suite: str, given: str = "") -> str:
    """The form in which a suite is read: the one given, or its first; raises UnknownName."""
    forms = find(suite).FORMS
    if given and given not in forms:
        raise UnknownName(f"form of {suite}", given, forms)
    return given or forms[0]


def tasks(suite: str, names: Iterable[str] = ()) -> list[Benchmark]:
    """The tasks of a suite, all of them or those of `names`; raises UnknownName."""
    known = find(suite).TASKS
    return [find_task(known, name) for name in names or known]


def read(suite: str, split: str, task: str, form: str = "tfds", path: str = "") -> Source:
    """The source of a task's split; `form` is for vtab."""
    tasks(suite, [task])
    if suite == "offline":
        return offline.source(split, task, path)
    return vtab.source(split, task, form, path)


def here(suite: str, form: str = "", path: str = "") -> list[str]:
    """The tasks whose training images are here."""
    found, form = [], form_of(suite, form)
    for task in tasks(suite):
        try:
            read(suite, "train800val200", task.name, form, path)
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
    """
    rows, form = [], form_of(suite, form)
    for task in tasks(suite, names):
        row = dict(task=task.name, title=task.title, group=task.group, classes=task.classes)
        row |= dict(present=False, form=form, set="", counts={})
        row |= dict(published=task.test, labels=[], sha256="", problem="")
        if suite == "offline":
            row |= dict(where=str(offline.folder(path)), obtain=offline.obtain(task.name))
        else:
            row |= dict(where=path, obtain=vtab.obtain(task.name, form, path))
        try:
            if form == "tfds":
                row["where"] = str(tfds.make(task.builder, path).data_dir)
            row |= _there(suite, task, form, path)
        except DataError as error:
            row["problem"] = str(error)
        if form == "folder":
            row["problem"] = "; ".join(vtab.faults(task, path)) or row["problem"]
        rows.append(row)
    return rows


def _there(suite: str, task: Benchmark, form: str, path: str) -> dict[str, Any]:
    train = read(suite, "train800val200", task.name, form, path)
    if suite == "offline":
        test = offline.count_test(task.name, path)
    else:
        test = len(read(suite, "test", task.name, form, path))
    labels, sha256 = content(train)
    counts = {"train800": 800, "val200": len(train) - 800, "test": test}
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
    """Downloads and builds what is not there of a suite's TFDS sets; a row for each set.

    A row has the tasks that the set is for, whether it is `ready`, and the problem if it isn't.

    Raises:
        MachineError: where there is something to build and no TensorFlow to build it with.
    """
    chosen = tasks(suite, names)
    if suite == "offline":
        return [_look(task.name, path) for task in chosen]
    sets: dict[str, list[str]] = {}
    for task in chosen:
        sets.setdefault(task.builder, []).append(task.name)
    return [_prepare(builder, for_tasks, path) for builder, for_tasks in sets.items()]


def _row(name: str, for_tasks: list[str], ready: bool, problem: str = "") -> dict[str, Any]:
    return dict(set=name, tasks=for_tasks, ready=ready, problem=problem)


def _look(task: str, path: str) -> dict[str, Any]:
    """Sets of the offline suite are there or not; nothing of them is built."""
    try:
        return _row(task, [task], offline.count_test(task, path) > 0)
    except DataError as error:
        return _row(task, [task], False, str(error))


def _prepare(builder: str, for_tasks: list[str], path: str) -> dict[str, Any]:
    try:
        made = tfds.prepared(builder, path, "", "")
        return _row(made.info.full_name, for_tasks, True)
    except DataError:
        made = tfds.make(builder, path, file_format="array_record")
    name = made.info.full_name
    root = Path(made.data_dir).parents[name.count("/")]
    manual = root / "downloads" / "manual"
    by_hand = vtab.MANUAL.get(for_tasks[0])
    if by_hand and not (manual.is_dir() and any(manual.iterdir())):
        return _row(name, for_tasks, False, f"{name} needs files that you download: {by_hand}")
    if importlib.util.find_spec("tensorflow") is None:
        raise MachineError(
            f"building {name} needs TensorFlow, which is not installed: "
            "pip install 'dynadapt[data]'"
        )
    import tensorflow_datasets

    try:
        made.download_and_prepare(
            download_config=tensorflow_datasets.download.DownloadConfig(manual_dir=str(manual))
        )
    except Exception as error:  # whatever a download and TFDS's readers of raw files raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return _row(name, for_tasks, False, f"{name} could not be built: {reason}")
    return _row(name, for_tasks, True)


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
