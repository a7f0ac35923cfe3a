"""Answers to new, unlabelled images, from a run's product and its backbone alone.

out/predictions.csv      one line an image, in the order of the images
out/predictions.jsonl    the same records, one JSON document a line, written as they come
out/<results>            where the task has such a file: the results of all images, a JSON list
out/<name><suffix>       what the task writes of an image, such as a label map
out/pictures/<name>.png  the image with its answer, where asked for
"""

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynadapt import files, inputs, model, pictures, processes, sharding
from dynadapt.context import Context
from dynadapt.data import Info, lists, loader, transforms
from dynadapt.data.decode import decode, is_image
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, DataError, MachineError
from dynadapt.runs import claims, product
from dynadapt.runs.predictions import TABLE, write_records
from dynadapt.runs.stop import interruptible, stop_signal

LOG = "predictions.jsonl"
TELL = 10.0  # seconds between lines of progress


class Images:
    """A source over image files without labels; `name` is the path below `root`.

    Of the `fields` that a product was trained on they have what a picture alone gives: all are of
    one size where the product says so, and transforms tell how much of a canvas they fill.
    """

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


def find(path: Path) -> Images:
    """The images that a path names: a file, all in a folder, or those that a list names.

    A list is a text file with one path a line, relative to the folder that it lies in.

    Raises:
        DataError: if there are none, or a listed one is not there.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _is_image(p))
        root, names = path, [p.relative_to(path).as_posix() for p in found]
    elif _is_image(path):
        root, names = path.parent, [path.name]
    elif path.is_file():
        root, names = path.parent, _listed(path)
    else:
        raise DataError(f"there is no file and no folder {str(path)!r}")
    if not names:
        raise DataError(f"{path} holds no images")
    return Images(root, list(dict.fromkeys(names)))


def _is_image(path: Path) -> bool:
    return is_image(path.name) and not path.name.startswith(".") and path.is_file()


def _listed(path: Path) -> list[str]:
    names = [line.strip() for line in lists.read_lines(path) if line.strip()]
    for number, name in enumerate(names, 1):
        if not (path.parent / name).is_file():
            raise DataError(f"line {number} of {path} names {name!r}, which is not there")
    return names


def run(
    adapter: Path,
    source: Images,
    out: Path,
    *,
    batch: int,
    draw: bool = False,
    weights: str = "",
) -> dict[str, Any]:
    """Writes one record an image; started again, it goes on where it was.

    Args:
        adapter: `adapter/` of a run.
        source: the images, as of `find`.
        out: folder of all that is written.
        batch: images that are looked at together.
        draw: write pictures, too.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Returns:
        `records`, in the order of the images, and `skipped`: what is wrong with each broken one.

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
        missing = [name for name in source.names if name not in log.records]
        left = Images(source.root, missing, trained.adapter.info.fields)
        if len(left):
            skipped = _answer(trained, left, log, batch, draw, stop)
        records = [log.records[name] for name in source.names if name in log.records]
    if not records:
        why = next(iter(skipped.values()))
        raise DataError(f"none of the {len(source)} images can be read: {why}")
    with files.writing(out):
        write_records(out, trained.task, records)
    return {"records": records, "skipped": skipped}


def _answer(
    trained: product.Product, source: Images, log: "Log", batch: int, draw: bool, stop: Any
) -> dict[str, str]:
    """Records the answers to all images; what is wrong with each broken one."""
    config, parts = trained.config, trained.parts
    transform = transforms.pipeline(config.input.eval)
    mesh = sharding.make_mesh()
    size = inputs.eval_batch_size(batch, source, mesh)
    kept = {"train": parts.train, "stats": parts.stats}
    kept = sharding.put_whole(kept, sharding.replicated(kept, mesh))
    frozen = sharding.put_whole(parts.frozen, sharding.frozen(parts.frozen, mesh))
    batches = loader.eval_batches(source, transform, batch_size=size, on_error="skip")
    step = make_step(parts.graph, trained.task, config)
    progress = Progress(len(source))
    with jax.set_mesh(mesh):
        for given in interruptible(batches, stop):
            answers = step(kept, frozen, inputs.place(given, mesh))
            answers = {k: sharding.local(v) for k, v in answers.items()}
            for i in np.flatnonzero(given["mask"]):
                index = int(given["index"][i])
                example = {"index": index, **batches.about.pop(index)}
                answer = {k: v[i] for k, v in answers.items()}
                values, content = trained.task.record(answer, example)
                stem = Path(example["name"]).with_suffix("").as_posix()
                content = {f"{stem}{suffix}": data for suffix, data in content.items()}
                if draw:
                    image = decode(source[index]["image"], example["name"], orient=True)
                    picture = pictures.png(trained.task.draw(image, answer, example))
                    content[f"pictures/{stem}.png"] = picture
                log.write(example["name"], values, content)
            progress.tell(int((given["index"] >= 0).sum()))
    return dict(batches.skipped)


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

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self._began = self._told = time.monotonic()

    def tell(self, more: int) -> None:
        """Counts more images; a line now and then."""
        self.done += more
        now = time.monotonic()
        if now - self._told > TELL or self.done == self.total:
            self._told = now
            rate = self.done / max(now - self._began, 1e-9)
            print(f"{self.done:,} of {self.total:,} images, {rate:.1f} a second", file=sys.stderr)


def show(result: dict[str, Any], out: Path) -> None:
    """Prints where the records are."""
    skipped = f", {len(result['skipped'])} images skipped" if result["skipped"] else ""
    print(f"wrote {len(result['records']):,} records to {out / TABLE}{skipped}")
