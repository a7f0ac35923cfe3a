"""Runs of random values, saved without training, for tests of what is made of them."""

from typing import Any

import numpy as np
from flax import nnx

from dynadapt import config, model, tasks, tree
from dynadapt.context import Context
from dynadapt.data import labelled, loader, transforms
from dynadapt.runs import product

CLASSES = ("ant", "bee", "cat")


def save(
    folder,
    backbone="vit_mini",
    method="full",
    task="classification",
    pool="mean",
    side=16,
    text="",
    frozen_dtype="float32",
    **sizes,
):
    """Writes `folder/adapter` and returns the model."""
    c = config.default(backbone=backbone, method=method, task=task)
    c.backbone.update(sizes)
    c.compute.frozen_dtype = frozen_dtype
    if "pool" in c.task:
        c.task.pool = pool
    c.input.train = c.input.eval = text or f"resize({side})"
    c = config.resolve(c)
    info = labelled("made", CLASSES, size=(side, side))
    spec = loader.spec(info, transforms.pipeline(c.input.eval), 1)
    network = model.build(c, tasks.from_config(c.task, info), spec)
    parts = model.split(network, c)
    trained = tree.leaves(parts.train) | tree.leaves(parts.stats)
    # Far from the start, where heads and increments are zero.
    rng = np.random.default_rng(0)
    trained = {
        k: np.asarray(v) + rng.normal(0, 0.2, v.shape).astype("f") for k, v in trained.items()
    }
    state = nnx.state(network)
    nnx.update(network, tree.replace(state, tree.leaves(state) | trained))
    product.save(folder / "adapter", trained, product.card(c, info, {}, {}))
    return network


def logits(network: Any, images: np.ndarray) -> np.ndarray:
    """Of images `b h w 3`, float32."""
    return np.asarray(network(images, Context()))
