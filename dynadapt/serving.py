"""Several adapters on one frozen backbone: swapped by name, or another one for each image.

    host = serving.host(first_folder)
    trees = {name: serving.load_adapter(host, folder) for name, folder in folders.items()}
    answer = serving.make_answer(host)
    answer(trees["birds"], host.frozen, images)

Trees of one host have one structure, so another name compiles nothing. In a bank every image of
a batch has its own adapter, and the frozen products stay products of the whole batch:

    bank = serving.stack(list(trees.values()))
    mixed = serving.make_mixed(host)
    mixed(host.frozen, bank, which, images)
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import config as configs
from dynadapt import model, tree
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.runs import product

Array = jax.Array

# Settings of methods that act in training alone: adapters may differ in them.
TRAINING = ("balance", "dropout")


@dataclasses.dataclass(frozen=True)
class Host:
    """An adapted model whose trained leaves and statistics are given with each call.

    Attributes:
        folder: the adapter that it was built for.
        config: of that adapter.
        card: of that adapter.
        graph: the structure of the model.
        shapes: of `train` and `stats`, which an adapter brings.
        frozen: what all adapters share, in the config's storage dtype.
    """

    folder: Path
    config: Any
    card: dict[str, Any]
    graph: Any
    shapes: Any
    frozen: Any


def host(folder: Path) -> Host:
    """The model of an adapter, with the backbone's weights; no data set is needed.

    Args:
        folder: `adapter/` of a run.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
    """
    found = product.load(folder)
    graph, train, stats, frozen = found.parts
    shapes = jax.eval_shape(lambda: {"train": train, "stats": stats})
    return Host(folder, found.config, found.card, graph, shapes, frozen)


def load_adapter(host: Host, folder: Path) -> Any:
    """The values in an adapter's folder, as a tree for the host's graph.

    Args:
        host: the model that they are for.
        folder: `adapter/` of a run with the same method, settings and backbone.

    Raises:
        CheckpointError: for an adapter that is damaged or does not belong to the host.
    """
    adapter = product.read(folder)
    _check_same(host, adapter)
    return product.fill(host.shapes, adapter)


def _check_same(host: Host, adapter: product.SavedAdapter) -> None:
    """Raises a CheckpointError unless an adapter's model is the host's."""
    config, folder = adapter.config, adapter.folder
    pairs = zip(_identity(host.config, host.card), _identity(config, adapter.card), strict=True)
    for (what, ours), (_, theirs) in pairs:
        changed = configs.differences({what: ours}, {what: theirs})
        if changed:
            raise CheckpointError(
                f"the adapter in {folder} does not belong to the model of {host.folder}: "
                f"{configs.shown(changed)}; one model serves one method, settings and backbone"
            )
    for name in TRAINING:
        if name in config.adapter:
            config.adapter[name] = host.config.adapter[name]
    config.backbone = host.config.backbone
    if model.split(model.abstract(config, adapter.task, adapter.spec), config).graph != host.graph:
        raise CheckpointError(
            f"the adapter in {folder} is for another head or structure than that in {host.folder}"
        )


def _identity(config: Any, card: dict[str, Any]) -> list[tuple[str, Any]]:
    """What adapters of one model have in common, the most telling first."""
    plain = configs.plain(config)
    method, backbone = plain["adapter"], plain["backbone"]
    # Random weights are those of the seed; others are known by their hash, wherever they lie.
    weights = card["weights_sha256"][:12] if backbone["weights"] else f"random, seed {config.seed}"
    free = ("weights", "scan", "remat")
    return [
        ("method", method["name"]),
        ("adapter", {k: v for k, v in method.items() if k not in TRAINING}),
        ("backbone", {k: v for k, v in backbone.items() if k not in free}),
        ("weights", weights),
        ("task", plain["task"]["name"]),
        ("classes", len(card["classes"])),
        ("trainable", sorted(plain["trainable"])),
        ("normalise", plain["input"]["normalise"]),
    ]


def make_answer(host: Host) -> Callable[[Any, Any, Array], Any]:
    """The jitted `answer(kept, frozen, images)` with one adapter for the whole batch.

    Images are `b h w 3`, normalised as the host's config says; the answer is the head's outputs.
    """
    return jax.jit(_forward(host))


def _forward(host: Host) -> Callable[[Any, Any, Array], Any]:
    graph, dtype = host.graph, host.config.compute.dtype

    def forward(kept: Any, frozen: Any, images: Array) -> Any:
        network = nnx.merge(graph, kept["train"], kept["stats"], frozen)
        return network(images.astype(dtype), Context())

    return forward


def stack(trees: Sequence[Any]) -> Any:
    """A bank: adapters of one structure stacked on a leading axis, in the given order.

    Raises:
        ConfigError: for no adapter, or for two of different structures.
    """
    if not trees:
        raise ConfigError("a bank needs at least one adapter")
    first = {path: jnp.shape(x) for path, x in tree.leaves(trees[0]).items()}
    for number, other in enumerate(trees):
        shapes = {path: jnp.shape(x) for path, x in tree.leaves(other).items()}
        wrong = [p for p in sorted({*first, *shapes}) if first.get(p) != shapes.get(p)]
        if wrong:
            raise ConfigError(
                f"adapters 0 and {number} differ at {wrong[0]} ({first.get(wrong[0])} and "
                f"{shapes.get(wrong[0])}); a bank holds adapters of one structure"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def make_mixed(host: Host) -> Callable[[Any, Any, Array, Array], Any]:
    """The jitted `mixed(frozen, bank, which, images)`, in which image i has adapter `which[i]`.

    `which` is int32 `b`; the answer for a number that the bank does not have is NaN. Memory grows
    by one adapter for each image.
    """
    forward = _forward(host)

    def one(kept: Any, frozen: Any, image: Array) -> Any:
        return jax.tree.map(lambda x: x[0], forward(kept, frozen, image[None]))

    @jax.jit
    def mixed(frozen: Any, bank: Any, which: Array, images: Array) -> Any:
        if which.shape != images.shape[:1]:
            raise ConfigError(
                f"{images.shape[0]} images need {images.shape[0]} adapter numbers, not an array "
                f"of shape {which.shape}"
            )
        # Filled, not clamped or wrapped: a wrong number must not get another adapter's answer.
        fill = dict(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        own = jax.tree.map(lambda x: x.at[which].get(**fill), bank)
        return jax.vmap(one, in_axes=(0, None, 0))(own, frozen, images)

    return mixed
