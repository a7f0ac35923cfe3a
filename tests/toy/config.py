"""A run of seconds on the toy task: a random ViT of two narrow blocks, LoRA, 16 x 16 images.

python -m tests.toy.command train --config=tests/toy/config.py --workdir=DIR
"""

from dynadapt import config


def get_config(arg=None):
    """Arguments: accumulate, norm (whether the head has a batch norm), broken."""
    arg = config.parse_arg(arg, accumulate=1, norm=True, broken=0)
    c = config.default(backbone="vit_mini", method="lora", task="toy", data_set="toy")
    c.backbone.update(dict(dim=16, depth=2, heads=2, image_size=16))
    c.adapter.rank = 4
    c.task.norm = arg.norm
    c.data.broken = arg.broken
    c.input.train = c.input.eval = ""
    c.input.normalise = "unit"
    c.input.batch_size = 16
    c.input.eval_batch_size = 8
    c.input.on_error = "skip"
    c.optim.update(dict(steps=6, lr=3e-2, warmup=0.0, accumulate=arg.accumulate))
    c.log.every = 1
    return c
