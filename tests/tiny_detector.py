"""Detection of a few scenes of 32 pixels by a narrow random ViT that is trained whole."""

import runpy
from pathlib import Path

SIDE = 32


def get_config(arg=None):
    path = Path(__file__).resolve().parents[1] / "configs" / "detect.py"
    c = runpy.run_path(str(path))["get_config"]("method=full")
    c.backbone.weights = ""
    c.backbone.update(dict(dim=32, heads=2, depth=2, image_size=SIDE))
    c.data.size = SIDE
    c.task.update(dict(channels=32, depth=1, strides=(2.0, 4.0, 8.0)))
    c.input.update(dict(train_split="train[:8]", eval_split="train[:8]", batch_size=8))
    c.input.train = c.input.eval
    c.optim.update(dict(steps=int(arg or 100), lr=5e-3, lr_mults=()))
    c.save_every = 0
    return c
