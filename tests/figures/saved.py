"""What runs leave that figures and diagnosis look at: a ViT of two narrow blocks on digits."""

from pathlib import Path
from typing import Any

from dynadapt import adapters, config
from tests import products


def saved(
    folder: Path,
    method: str = "iconformer",
    *,
    split: str = "test",
    pool: str = "mean",
    scan: bool = False,
    change: products.Change = products.noisy,
    **given: Any,
) -> Path:
    """Leaves an adapter with random values in the folder of a run; returns `adapter/`.

    Args:
        folder: of the run.
        method: with rank 4, where it has ranks.
        split: of the evaluation.
        pool: what the head pools.
        scan: scan the blocks.
        change: made to each trained leaf.
        given: the method's settings.
    """
    c = config.default(backbone="vit_mini", method=method, data_set="digits")
    c.backbone.update(dict(dim=16, depth=2, heads=2, image_size=8, scan=scan))
    c.input.train = c.input.eval = "resize(8)"
    c.input.eval_batch_size, c.input.eval_split = 256, split
    c.task.pool = pool
    c.adapter.update({k: 4 for k in ("rank",) if k in adapters.settings(method)} | given)
    return products.leave(folder / "adapter", c, change=change)
