"""What benchmarks run: a config of a backbone and a method, and random examples for it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dynadapt import backbones, tasks
from dynadapt import config as configs
from dynadapt.data import blank, loader, numbered, transforms
from dynadapt.errors import ConfigError
from dynadapt.plans import compare

CLASSES = 10
OBJECTS = 80  # classes, as COCO has


def rows(
    backbone: str, methods: list[str], batch: int, measure: Callable[[str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row a method: what `measure(method)` finds, or the reason why it can't serve."""
    found = []
    for method in compare.chosen(methods):
        row = dict(backbone=backbone, method=method, batch=batch)
        try:
            row |= measure(method)
        except ConfigError as error:
            row["reason"] = str(error)
        found.append(row)
    return found


def config(backbone: str, method: str, batch: int, task: str = "classification") -> ConfigDict:
    """A run of 100 steps in float32 without dropout, for a method's default settings."""
    data_set = "digits" if task == "classification" else "blank"
    made = configs.default(backbone=backbone, method=method, task=task, data_set=data_set)
    made.input.batch_size, made.optim.steps = batch, 100
    if "dropout" in made.adapter:
        made.adapter.dropout = 0.0
    return configs.resolve(made)


def on_accelerators(made: ConfigDict, remat: str = "full") -> ConfigDict:
    """The same as it would run on a pod: bfloat16, blocks scanned, rematerialised by `remat`."""
    made = made.copy_and_resolve_references()
    made.backbone.scan, made.backbone.remat = True, remat
    made.compute.dtype = made.compute.frozen_dtype = "bfloat16"
    return made


def given(made: ConfigDict, classes: int = OBJECTS) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """The task of the config, and the shapes of a batch of images: of ten classes, or with pixels
    or objects of so many `classes`."""
    size = made.backbone.image_size or side(made.backbone.name)
    if made.task.name == "classification":
        info = numbered(CLASSES, size)
    else:
        fields = tasks.needed(made.task)
        info = blank.source("train", fields, classes, (size, size)).info
    spec = loader.spec(info, transforms.pipeline(""), made.input.batch_size)
    return tasks.from_config(made.task, info), spec


def side(backbone: str) -> int:
    """Side of a backbone's own images; ConfigError for one that takes none."""
    if not hasattr(sizes := backbones.config(backbone), "image_size"):
        raise ConfigError(f"{backbone} takes no images; choose a backbone such as vit_b16")
    return sizes.image_size


def examples(count: int, side: int) -> dict[str, np.ndarray]:
    """Random images `count side side 3`, uint8, labels, indices and masks."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(256, size=(count, side, side, 3), dtype=np.uint8),
        "label": rng.integers(CLASSES, size=count).astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
        "mask": np.ones(count, np.float32),
    }


def digits(value: float) -> float:
    """A figure to four digits."""
    return float(f"{value:.4g}")
