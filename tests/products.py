"""What runs leave of their adapters, with random values and without a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import config as configs
from dynadapt import inputs, model, tasks, tree
from dynadapt.runs import product, workdir

Change = Callable[[str, jax.Array, np.random.Generator], jax.Array]


def noisy(path: str, x: jax.Array, rng: np.random.Generator) -> jax.Array:
    """A leaf with noise; a temperature stays above zero."""
    noisy = x + 0.2 * jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    return jnp.clip(noisy, 0.02) if path.endswith("temperature") else noisy


def leave(folder: Path, config: Any, seed: int = 0, change: Change = noisy) -> Path:
    """Writes `adapter/` as a run of the config leaves it, its values changed; returns the folder.

    Args:
        folder: the adapter's own.
        config: of the run.
        seed: of the noise.
        change: made to each leaf.
    """
    config = configs.resolve(config)
    split = inputs.open_split(config, "train")
    task = tasks.from_config(config.task, split.source.info)
    parts = model.split(model.build(config, task, split.spec), config)
    rng = np.random.default_rng(seed)
    train = tree.map_leaves(lambda path, x: change(path, x, rng), parts.train)
    counts = workdir.counts(parts.train, parts.frozen)
    leaves = product.leaves({"train": train, "stats": parts.stats})
    product.save(folder, leaves, product.card(config, split.source.info, counts, {}))
    return folder


def network(folder: Path) -> nnx.Module:
    """The trained model of an adapter's folder."""
    return nnx.merge(*product.load(folder).parts)
