"""A trained model that answers images or clouds, wherever they are: in files or in memory."""

import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynadapt import adapters, predict, processes, sharding
from dynadapt.data import cloud_files, loader, transforms
from dynadapt.errors import CheckpointError, ConfigError, suggest
from dynadapt.runs import product


class Predictor:
    """A trained model, on the devices; made by `load` or `adapt`.

    Attributes:
        card: all that `adapter.json` says.
        classes: their names, in the order of their numbers; () where the task has none.
        metrics: what the final evaluation of the training found.
    """

    def __init__(self, trained: product.Product, batch: int):
        size = sharding.make_mesh().size
        self._trained, self._batch = trained, -(-batch // size) * size
        self._answers = predict.make_answer(trained)
        self.card: dict[str, Any] = trained.card
        self.classes: tuple[str, ...] = tuple(trained.card["classes"])
        self.metrics: dict[str, Any] = trained.card.get("metrics", {})

    def predict(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """One record for each image or cloud, in the order given.

            model = dynadapt.load("runs/quickstart")
            for record in model.predict(["a.jpg", numpy.zeros((480, 640, 3), "uint8")]):
                print(record["file"], record["prediction"], record["probability"])

        Args:
            items: paths of images, pictures of Pillow's, or arrays uint8 `h w 3` (or grey `h w`);
                of a run on clouds paths or arrays `n 3`. They may be mixed.

        Returns:
            What the task records of each, plain values: those of `predictions.jsonl`. What the
            command writes as a file beside them, such as a label map, is in `files`, bytes by the
            file's ending. Of what came in no file `file` is its place, such as `items[3]`.

        Raises:
            DataError: for the first that can't be read; there are no answers then.
            ConfigError: for one image instead of a list.
        """
        axes = 3 if predict.takes(self._trained.adapter) == "image" else 2
        given = _listed(items, axes)
        if not given:
            return []
        source = Items(given, self._trained)
        transform = transforms.pipeline(self._trained.config.input.eval)
        batches = loader.eval_batches(source, transform, batch_size=self._batch)
        found = []
        for rows in batches:
            for answer, example in predict.each(rows, self._answers(rows), batches.about):
                values, files = self._trained.task.record(answer, example)
                found.append({**values, "files": files} if files else values)
        return found


def load(
    folder: str | Path,
    *,
    weights: str | Path = "",
    method: str | Path = "",
    batch: int = 8,
) -> Predictor:
    """The model of a run, from its adapter and the backbone's weights; no data set is opened.

        model = dynadapt.load("runs/quickstart")
        print(model.classes, model.metrics)

    Args:
        folder: of a run, or its `adapter/`.
        weights: where the backbone's weights lie now, if not where they lay in training.
        method: the file of the adapter's method, where it is one of the user's own; its code runs.
        batch: images that are looked at together; fewer are padded to as many, so that one program
            is compiled.

    Raises:
        CheckpointError: for a folder without an adapter, a damaged one, or another backbone than
            it was trained on.
        ConfigError: for a method whose file was not given.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, not {batch}")
    if method:
        adapters.give(str(method))
    processes.start()
    return Predictor(product.load(_adapter(Path(folder).expanduser()), str(weights)), batch)


def _adapter(folder: Path) -> Path:
    """The folder of the adapter that is or lies in a folder."""
    for found in (folder, folder / "adapter"):
        if (found / product.CARD).is_file():
            return found
    if not folder.is_dir():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else []
        near = suggest(str(folder), [str(path) for path in beside if path.is_dir()])
        raise CheckpointError(f"there is no folder {str(folder)!r}; {near}")
    raise CheckpointError(
        f"there is no adapter in {str(folder)!r}; give the folder of a finished run, or its "
        "adapter/"
    )


def _listed(items: Any, axes: int) -> list[Any]:
    """The items, unless they are one image or one cloud, which has so many axes."""
    if isinstance(items, str | bytes | Path | Image.Image) or not isinstance(items, Iterable):
        raise ConfigError(f"give a list, such as predict([{reprlib.repr(items)}])")
    if getattr(items, "ndim", axes + 1) != axes + 1:
        raise ConfigError(f"give a list of arrays, not one array of shape {items.shape}")
    return list(items)


class Items:
    """A source over images or clouds in files and in memory, in the order given."""

    def __init__(self, items: Sequence[Any], trained: product.Product):
        self._items = items
        self._names = [
            str(item) if isinstance(item, str | Path) else f"items[{i}]"
            for i, item in enumerate(items)
        ]
        source, _ = predict.SOURCES[predict.takes(trained.adapter)]
        self._files = source(Path(), self._names).prepared(self._names, trained)
        self.info = self._files.info

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, name = self._items[index], self._names[index]
        if isinstance(item, str | Path):
            return self._files[index]
        if "image" in self.info.fields:
            return {"image": item, "name": name, "orient": True}
        points = cloud_files.checked(np.asarray(item), name)
        return {"points": self._files.prepare(points, ""), "name": name}
