"""What data sets of tests hold, without a single example, and the batches that they give."""

from typing import Any

import jax

from dynadapt import backbones
from dynadapt.data import Info, labelled, loader, transforms
from dynadapt.data.fields import Field


def pictures(classes: str = "abcde", side: int = 8) -> Info:
    """Images of one size with one class each."""
    return labelled("test", tuple(classes), {"train": 1}, "by hand", size=(side, side))


def clouds(classes: str = "abcde", points: int = 64) -> Info:
    """Point clouds with one class each."""
    label = Field("number", classes=tuple(classes))
    return Info("clouds", {"points": Field("cloud", size=(points, 3)), "label": label}, {}, "")


def fitting(config: Any, **given: Any) -> Info:
    """What the backbone of a config takes: `pictures` or `clouds`."""
    points = not hasattr(backbones.config(config.backbone.name), "image_size")
    return (clouds if points else pictures)(**given)


def spec(info: Info, batch_size: int = 8) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of untransformed examples."""
    return loader.spec(info, transforms.pipeline(""), batch_size)
