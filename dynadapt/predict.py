"""Answers to new, unlabelled images or clouds, from a run's product and its backbone alone.

out/predictions.csv      one line an image, in the order of the images
out/predictions.jsonl    the same records, one JSON document a line, written as they come
out/<results>            where the task has such a file: the results of all images, a JSON list
out/<name><suffix>       what the task writes of an image, such as a label map; of several tasks
                         each has a folder: out/<task>/<name><suffix>
out/pictures/<name>.png  the image with its answer, where asked for
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynadapt import data as data_sets
from dynadapt import files, inputs, model, pictures, processes, sharding
from dynadapt.context import Context
from dynadapt.data import Info, cloud_files, lists, loader, transforms
from dynadapt.data.cloud_sources import Sampler
from dynadapt.data.decode import is_image
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, DataError, MachineError
from dynadapt.runs import claims, product
from dynadapt.runs.predictions import TABLE, place, shown, write_records
from dynadapt.runs.stop import interruptible, stop_signal

Batch = Mapping[str, np.ndarray]

LOG = "predictions.jsonl"
TELL = 10.0  # seconds between lines of progress


class Images:
    """A source over image files without labels; `name` is the path below `root`.

    Of the `fields` that a product was trained on they have what a picture alone gives: all are of
    one size where the product says so, and transforms tell how much of a canvas they fill.
    """

    what = "images"

    def __init__(
        self, root: Path, names: Sequence[str], fields: Mapping[str, Field] = transforms.IMAGE
    ):
        self.root, self.names = root, names
        fields = {k: field for k, field in fields.items() if field.kind in ("pixels", "extent")}
        self.info = Info("images", fields, {"images": len(names)}, "")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the image {name}: {error.strerror}") from None
        return {"image": content, "name": name, "orient": True}

    def prepared(self, names: Sequence[str], trained: product.Product) -> "Images":
        """Some of them, as a product asks for them."""
        _field(trained, "image")
        return Images(self.root, names, trained.adapter.info.fields)


class CloudFiles:
    """A source over files of clouds without labels, each brought to `count` points.

    As those of a folder are (`data.cloud_folder`): by draws that depend on the name alone, and
    centred and scaled into the unit sphere where `unit`.
    """

    what = "clouds"

    def __init__(self, root: Path, names: Sequence[str], count: int = 1, unit: bool = True):
        self.root, self.names, self._unit = root, names, unit
        self._sample = Sampler(count)
        fields = {"points": Field("cloud", size=(count, 3))}
        self.info = Info("clouds", fields, {"clouds": len(names)}, "")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        return {"points": self.prepare(cloud_files.read(self.root / name), name), "name": name}

    def prepare(self, points: np.ndarray, name: str) -> np.ndarray:
        """The cloud of some points float64 `n 3`, float32 `count 3`."""
        points = cloud_files.in_sphere(points) if self._unit else points
        return np.float32(points[self._sample(len(points), name)])

    def prepared(self, names: Sequence[str], trained: product.Product) -> "CloudFiles":
        """Some of them, as a product asks for them."""
        count = _field(trained, "points").size[0]
        return CloudFiles(self.root, names, count, in_unit_sphere(trained.config))


def in_unit_sphere(config: Any) -> bool:
    """Whether the clouds of a config's data are centred and scaled into the unit sphere."""
    data = config.data
    return data.get("unit", getattr(data_sets.module(data.name), "UNIT", True))


def _field(trained: product.Product, name: str) -> Field:
    """The field of a product's inputs; raises a ConfigError where it takes others."""
    found = trained.adapter.info.fields
    if name not in found:
        raise ConfigError(f"the adapter takes {', '.join(found)}, not files of {name}")
    return found[name]


# Sources by the field that a backbone takes, and what their files are called like.
SOURCES = {"image": (Images, is_image), "points": (CloudFiles, cloud_files.is_cloud)}


def takes(adapter: product.SavedAdapter) -> str:
    """The field that the backbone of an adapter takes, `image` or `points`."""
    return next(name for name in SOURCES if name in adapter.info.fields)


def find(path: Path, field: str = "image") -> Images | CloudFiles:
    """The images or clouds that a path names: a file, all in a folder, or those that a list names.

    A list is a text file with one path a line, relative to the folder that it lies in.

    Args:
        path: the file or folder.
        field: what the files are, as of `takes`.

    Raises:
        DataError: if there are none, or a listed one is not there.
    """
    source, called = SOURCES[field]

    def fits(path: Path) -> bool:
        return called(path.name) and not path.name.startswith(".") and path.is_file()

    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if fits(p))
        root, names = path, [p.relative_to(path).as_posix() for p in found]
    elif fits(path) and not (path.suffix.lower() == ".txt" and _is_list(path)):
        root, names = path.parent, [path.name]
    elif path.is_file():
        root, names = path.parent, _listed(path)
    else:
        raise DataError(f"there is no file and no folder {str(path)!r}")
    if not names:
        raise DataError(f"{path} holds no {source.what}")
    return source(root, list(dict.fromkeys(names)))


def _is_list(path: Path) -> bool:
    """Whether a text holds paths, and not the numbers of a cloud."""
    first = next((line.strip() for line in lists.read_lines(path) if line.strip()), "")
    return bool(first) and (path.parent / first).is_file()


def _listed(path: Path) -> list[str]:
    names = [line.strip() for line in lists.read_lines(path) if line.strip()]
    for number, name in enumerate(names, 1):
        if not (path.parent / name).is_file():
            raise DataError(f"line {number} of {path} names {name!r}, which is not there")
    return names


def run(
    adapter: Path,
    source: Images | CloudFiles,
    out: Path,
    *,
    batch: int,
    draw: bool = False,
    weights: str = "",
) -> dict[str, Any]:
    """Writes one record an image; started again, it goes on where it was.

    Args:
        adapter: `adapter/` of a run.
        source: the images or clouds, as of `find`.
        out: folder of all that is written.
        batch: images that are looked at together.
        draw: write pictures, too.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Returns:
        `records`, in the order of the images, `skipped`: what is wrong with each broken one, and
        `what` they are.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
        ConfigError: if `out` holds the answers of another adapter.
        DataError: if none of the images can be read.
        Preempted: after SIGTERM or SIGINT, with all records so far kept.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, not {batch}")
    processes.start()
    if jax.process_count() > 1:
        raise MachineError("predict is for one process; start it on one host alone")
    trained = product.load(adapter, weights)
    skipped: dict[str, str] = {}
    with (
        claims.owner(out, option="--out"),
        Log(out, trained.card["file_sha256"]) as log,
        stop_signal() as stop,
    ):
        left = source.prepared([n for n in source.names if n not in log.records], trained)
        if len(left):
            skipped = _answer(trained, left, log, batch, draw, stop)
        records = [log.records[name] for name in source.names if name in log.records]
    if not records:
        why = next(iter(skipped.values()))
        raise DataError(f"none of the {len(source)} {source.what} can be read: {why}")
    with files.writing(out):
        write_records(out, trained.task, records)
    return {"records": records, "skipped": skipped, "what": source.what}


def _answer(
    trained: product.Product,
    source: Images | CloudFiles,
    log: "Log",
    batch: int,
    draw: bool,
    stop: Any,
) -> dict[str, str]:
    """Records the answers to all images; what is wrong with each broken one."""
    size = inputs.eval_batch_size(batch, source, sharding.make_mesh())
    transform = transforms.pipeline(trained.config.input.eval)
    batches = loader.eval_batches(source, transform, batch_size=size, on_error="skip")
    answers = make_answer(trained)
    progress = Progress(len(source), source.what)
    for given in interruptible(batches, stop):
        for answer, example in each(given, answers(given), batches.about):
            values, content = trained.task.record(answer, example)
            stem = Path(example["name"]).with_suffix("").as_posix()
            content = {place(stem, suffix): data for suffix, data in content.items()}
            if draw:
                image = shown(source[int(example["index"])])
                picture = pictures.png(trained.task.draw(image, answer, example))
                content[f"pictures/{stem}.png"] = picture
            log.write(example["name"], values, content)
        progress.tell(int((given["index"] >= 0).sum()))
    return dict(batches.skipped)


def make_answer(trained: product.Product) -> Callable[[Batch], Batch]:
    """The function `answers(batch)` of a product, whose model is on the devices from now on.

    Batches are as they come from the loader, and of a size that the devices share evenly; each
    size is compiled once. Answers are the task's, `b …`.
    """
    config, parts = trained.config, trained.parts
    mesh = sharding.make_mesh()
    kept = {"train": parts.train, "stats": parts.stats}
    kept = sharding.put_whole(kept, sharding.replicated(kept, mesh))
    frozen = sharding.put_whole(parts.frozen, sharding.frozen(parts.frozen, mesh))
    step = make_step(parts.graph, trained.task, config)

    def answers(batch: Batch) -> Batch:
        with jax.set_mesh(mesh):
            found = step(kept, frozen, inputs.place(batch, mesh))
        return {k: sharding.local(v) for k, v in found.items()}

    return answers


def each(
    batch: Batch, answers: Batch, about: dict[int, dict[str, Any]]
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Answer and example of each row of a batch that is no padding, as a task records them."""
    for i in np.flatnonzero(batch["mask"]):
        answer, row = ({k: v[i] for k, v in given.items()} for given in (answers, batch))
        yield answer, {**row, **about.pop(int(row["index"]))}


def make_step(graph: Any, task: Any, config: Any) -> Any:
    """The jitted `step(kept, frozen, batch) -> answers`, for batches without labels."""

    @jax.jit
    def step(kept: Any, frozen: Any, batch: Any) -> Any:
        batch = inputs.normalised(batch, config)
        network = nnx.merge(graph, kept["train"], kept["stats"], frozen)
        outputs = model.outputs(network, batch, Context(), task, config, {}, look=True)
        return task.answer(outputs, batch)

    return step


class Log:
    """The records in a folder, which grow line by line; use it as a context manager.

    Args:
        out: the folder.
        adapter: SHA-256 of the adapter's file, which the first line names.

    Attributes:
        records: by the name of the image.

    Raises:
        ConfigError: if the folder holds records of another adapter, or can't be written.
    """

    def __init__(self, out: Path, adapter: str):
        self.out, self.records = out, {}
        path, head = out / LOG, {"adapter": adapter}
        kept = [head]
        try:
            out.mkdir(parents=True, exist_ok=True)
            if path.exists():
                kept = _whole_lines(path)
                if kept[:1] != [head]:
                    raise ConfigError(
                        f"{out} holds the predictions of another adapter; give another --out"
                    )
            self.records = {record["file"]: record for record in kept[1:]}
            with files.whole(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            self._file = open(path, "a")
        except OSError as error:
            raise ConfigError(f"nothing can be written in {out}: {error.strerror}") from error

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk was told of at the record
            self._file.close()

    def write(self, name: str, values: dict[str, Any], content: dict[str, bytes]) -> None:
        """Writes the files of an image, by their paths in the folder, then its record."""
        with files.writing(self.out):
            for path, data in content.items():
                (self.out / path).parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(self.out / path, data)
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        self.records[name] = values


def _whole_lines(path: Path) -> list[Any]:
    """The records in a file's lines, up to the first that is cut short or damaged."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("file"), str) and found:
            break
        found.append(record)
    return found


class Progress:
    """Tells on standard error how many images were answered."""

    def __init__(self, total: int, what: str = "images"):
        self.total, self.what, self.done = total, what, 0
        self._began = self._told = time.monotonic()

    def tell(self, more: int) -> None:
        """Counts more images; a line now and then."""
        self.done += more
        now = time.monotonic()
        if now - self._told > TELL or self.done == self.total:
            self._told = now
            rate = self.done / max(now - self._began, 1e-9)
            print(
                f"{self.done:,} of {self.total:,} {self.what}, {rate:.1f} a second", file=sys.stderr
            )


def show(result: dict[str, Any], out: Path) -> None:
    """Prints where the records are."""
    skipped = f", {len(result['skipped'])} {result['what']} skipped" if result["skipped"] else ""
    print(f"wrote {len(result['records']):,} records to {out / TABLE}{skipped}")
