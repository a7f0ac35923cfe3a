"""The product of a run: an adapter in a folder, written and read here and nowhere else.

    adapter.safetensors    all that is trained or moved: adapters, head, norms, statistics
    adapter.json           the card: all that an answer in a fresh process needs

Formats: 1 has classes and preprocessing; 2 has the fields of the data and shapes of a batch, too.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynadapt import backbones, choices, files, model, tasks, tree, weights
from dynadapt import config as configs
from dynadapt.data import Info, fields, labelled, loader, transforms
from dynadapt.errors import CheckpointError, DynadaptError, TrainingError
from dynadapt.runs import cards

FORMAT = 2
PACKAGES = ("dynadapt", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
TENSORS, CARD = "adapter.safetensors", "adapter.json"


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it lies in its folder, verified; no backbone is opened.

    Attributes:
        folder: where it lies.
        config: of its training; what later versions added has its default.
        info: of the data that it was trained on, as far as a task must know.
        leaves: all that is trained or moved, by path.
        card: all else.
    """

    folder: Path
    config: Any
    info: Info
    leaves: dict[str, np.ndarray]
    card: dict[str, Any]

    @property
    def spec(self) -> model.Batch:
        """Shapes of a batch of one example."""
        with _usable(self.folder):
            return loader.spec(self.info, transforms.pipeline(self.config.input.eval), 1)

    @property
    def task(self) -> Any:
        """What was trained."""
        with _usable(self.folder):
            return tasks.from_config(self.config.task, self.info)


@dataclasses.dataclass(frozen=True)
class Product:
    """A trained model, ready to answer.

    Attributes:
        adapter: as it lies in its folder.
        config: of its training.
        task: what was trained.
        parts: the model's, with the trained values and the backbone's weights.
        card: the adapter's.
    """

    adapter: SavedAdapter
    config: Any
    task: Any
    parts: model.Parts
    card: dict[str, Any]


def load(folder: Path, backbone: str = "") -> Product:
    """The trained model of an adapter's folder and the backbone's weights; no data set is opened.

    Args:
        folder: `adapter/` of a run.
        backbone: where its weights lie now; "" is where they lay in training.

    Raises:
        CheckpointError: for a damaged adapter, or another backbone than it was trained on.
        ConfigError: for a config that can't be run here.
    """
    adapter = read(folder)
    if backbone:
        adapter.config.backbone.weights = backbone
    with _usable(folder):
        _check_there(adapter)
        configs.check(adapter.config)
        check_backbone(adapter)
        task, config = adapter.task, adapter.config
        if not config.backbone.weights:  # nothing but the card says how large the backbone is
            fit(model.split(model.abstract(config, task, adapter.spec), config)._asdict(), adapter)
        parts = model.split(model.build(config, task, adapter.spec), config)
        parts = parts._replace(**fill(parts._asdict(), adapter))
    return Product(adapter, config, task, parts, adapter.card)


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turns whatever a card's values lead to into one sentence."""
    try:
        yield
    except DynadaptError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read the adapter in {folder}: {error.strerror}") from error
    except Exception as error:
        reason = files.first_line(error)
        raise CheckpointError(f"no model can be made of {folder / CARD}: {reason}") from error


def read(folder: Path) -> SavedAdapter:
    """The adapter in a folder, after comparing every hash.

    Raises:
        CheckpointError: naming what is missing, damaged, or of a later version.
    """
    with _usable(folder):
        if not (folder / CARD).is_file():
            raise CheckpointError(f"there is no {folder / CARD}; give the folder of a finished run")
        card = files.read_json(folder / CARD)
        found = list(faults(folder, card))
        if found:
            raise CheckpointError(f"the adapter in {folder} is damaged: {'; '.join(found)}")
        leaves = files.read_tensors(folder / TENSORS)
        return _understood(folder, card, leaves)


def _understood(folder: Path, card: dict[str, Any], leaves: dict[str, np.ndarray]) -> SavedAdapter:
    try:
        cards.number(card, FORMAT)
        wrong = [*cards.problems(card), *bad_values(leaves)]
        if wrong:
            raise CheckpointError("; ".join(wrong[:3]) + ("; …" if len(wrong) > 3 else ""))
        config = cards.config(card["config"])
        return SavedAdapter(folder, config, _info(card, config), leaves, card)
    except CheckpointError as error:
        raise CheckpointError(f"the adapter in {folder} can't be used: {error}") from error


def bad_values(leaves: Mapping[str, np.ndarray]) -> list[str]:
    """Leaves that are no finite float32 numbers, which all that trains or moves is."""
    found = []
    for path, x in leaves.items():
        if x.dtype != np.float32:
            found.append(f"tensor {path} is of {x.dtype}, not of float32")
        elif not np.isfinite(x).all():
            found.append(f"tensor {path} has values that are not finite")
    return found


def _info(card: Mapping[str, Any], config: Any) -> Info:
    if "fields" in card:
        return Info(card["data"], fields.from_plain(card["fields"]), {}, "")
    # Format 1 was of images of one class each; without a transform they have the backbone's size.
    backbone = backbones.config(config.backbone.name)
    side = config.backbone.image_size or getattr(backbone, "image_size", 0)
    return labelled(card["data"], card["classes"], size=(side, side))


def fill(kept: Mapping[str, Any], adapter: SavedAdapter) -> dict[str, Any]:
    """The trees `train` and `stats`, or their shapes, with the values of an adapter.

    Raises:
        CheckpointError: naming all leaves that don't fit.
    """
    fit(kept, adapter)
    values = {k: jnp.asarray(v) for k, v in adapter.leaves.items()}
    return {name: tree.replace(kept[name], values) for name in ("train", "stats")}


def fit(kept: Mapping[str, Any], adapter: SavedAdapter) -> None:
    """Raises a CheckpointError that names all leaves of an adapter that its model doesn't have."""
    own, given = leaves(kept), adapter.leaves
    wrong = [k for k in {*own, *given} if k not in own or k not in given]
    wrong += [k for k in own if k in given and own[k].shape != given[k].shape]
    if wrong:
        raise CheckpointError(
            f"the adapter in {adapter.folder} does not fit its model at {sorted(wrong)}"
        )


def _check_there(adapter: SavedAdapter) -> None:
    """Raises a CheckpointError that tells what to do where the backbone's weights are missing."""
    if name := adapter.config.backbone.weights:
        try:
            weights.locate(name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; the adapter in {adapter.folder} needs them: where they have moved, "
                "give --weights=FILE"
            ) from error


def check_backbone(adapter: SavedAdapter) -> None:
    """Raises a CheckpointError unless the backbone's weights are those of the training."""
    name, wanted = adapter.config.backbone.weights, adapter.card["weights_sha256"]
    if name and weights.digest(weights.locate(name)) != wanted:
        raise CheckpointError(
            f"the backbone weights {name!r} are not those that the adapter was trained on "
            f"(SHA-256 {wanted[:12]}…)"
        )


def card(
    config: Any, info: Info, counted: Mapping[str, int], metrics: Mapping[str, float]
) -> dict[str, Any]:
    """All that an answer of the adapter in a fresh process needs, and what it came from."""
    return {
        "format": FORMAT,
        "method": choices.title(config.adapter.name),
        "backbone": config.backbone.name,
        "weights": config.backbone.weights,
        "weights_sha256": weights_hash(config),
        "task": config.task.name,
        "data": info.name,
        "fields": fields.to_plain(info.fields),
        "classes": list(info.classes),
        "preprocessing": {"transforms": config.input.eval, "normalise": config.input.normalise},
        "config": configs.plain(config),
        "metrics": dict(metrics),
        "counts": dict(counted),
        "versions": versions(),
    }


def weights_hash(config: Any) -> str:
    """SHA-256 of the backbone's weights file, "" where the weights are random."""
    name = config.backbone.weights
    return weights.digest(weights.locate(name)) if name else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def leaves(kept: Mapping[str, Any]) -> dict[str, Any]:
    """All that an adapter's file holds, by path, of what `step.best` gives."""
    return {**tree.leaves(kept["train"]), **tree.leaves(kept["stats"])}


def save(folder: Path, leaves: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the adapter of a run.

    Args:
        folder: `adapter/` of the run.
        leaves: by path; the file holds these bytes and a header.
        card: of the adapter; hashes are added.

    Returns:
        The card as it was written.

    Raises:
        TrainingError: for values that are not finite; nothing is written then.
        MachineError: if the disk is full.
    """
    tensors = {path: np.asarray(x) for path, x in leaves.items()}
    if wrong := bad_values(tensors):
        raise TrainingError(f"no adapter is written: {'; '.join(wrong[:3])}")
    with files.writing(folder):
        return _written(folder, tensors, card)


def _written(
    folder: Path, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / TENSORS
    (folder / CARD).unlink(missing_ok=True)
    files.write_tensors(file, tensors)
    written = {
        **card,
        "bytes": file.stat().st_size,
        "file_sha256": files.sha256(file),
        "tensor_sha256": {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in tensors.items()},
    }
    written["card_sha256"] = card_hash(written)
    files.write_json(folder / CARD, written)
    return written


def card_hash(card: Mapping[str, Any]) -> str:
    """SHA-256 of all that a card holds besides its own `card_sha256`."""
    values = {k: v for k, v in card.items() if k != "card_sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def faults(folder: Path, card: Mapping[str, Any]) -> Iterator[str]:
    """All that does not agree with the card's hashes."""
    if card.get("card_sha256") != card_hash(card):
        yield f"{CARD} was changed"
    file = folder / TENSORS
    if not file.is_file():
        yield f"{TENSORS} is missing"
        return
    if files.sha256(file) == card.get("file_sha256"):
        return
    yield f"{TENSORS} was changed"
    with contextlib.suppress(CheckpointError):
        expected = card.get("tensor_sha256")
        if not isinstance(expected, dict):
            return
        found = files.read_tensors(file)
        for name in sorted({*expected, *found}):
            value = found.get(name)
            if value is None:
                yield f"tensor {name} is missing"
            elif hashlib.sha256(value.tobytes()).hexdigest() != expected.get(name):
                yield f"tensor {name} was changed"
