"""Instances of a few scenes of 32 pixels by a narrow random ViT."""

import runpy
from pathlib import Path

SIDE = 32


def get_config(arg=None):
    path = Path(__file__).resolve().parents[1] / "configs" / "instances.py"
    c = runpy.run_path(str(path))["get_config"]("method=linear")
    c.backbone.weights = ""
    c.backbone.update(dict(dim=16, heads=2, depth=1, image_size=SIDE))
    c.data.size = SIDE
    c.task.update(dict(channels=8, depth=1, strides=(2.0, 4.0), grids=(6, 4), best=20))
    c.task.ranges = ((1.0, 12.0), (6.0, 32.0))
    c.input.update(dict(train_split="train[:16]", eval_split="test[:10]", batch_size=8))
    c.optim.update(dict(steps=30, lr=2e-2))
    c.save_every = 0
    return c
