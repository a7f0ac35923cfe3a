"""Cells of a tiny population, trained; run as a program, it prints what its devices came to.

NPROC=32 XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.population_cells
"""

import json
import sys

import jax
import numpy as np

from dynadapt import config as configs
from dynadapt import model, tasks, tree
from dynadapt.adapters import names
from dynadapt.data import labelled, loader, transforms
from dynadapt.sweep.population import Population

SIDE, EXAMPLES, CLASSES = 8, 40, 8


def settings(method, **backbone):
    """The config of a tiny model whose adapters drop nothing out."""
    assert method in names()
    c = configs.default(backbone="vit_mini", method=method, data_set="digits")
    c.backbone.update(dict(dim=16, depth=2, heads=2, image_size=SIDE) | backbone)
    for name, value in dict(rank=4, z=3, experts=2, heads=2, width=4, dropout=0.0).items():
        if name in c.adapter:
            c.adapter[name] = value
    c.input.update(dict(batch_size=8, normalise="inception"))
    c.optim.warmup = 0.1
    configs.check(c)
    return c


def info(classes):
    return labelled("test", tuple(map(str, range(classes))), size=(SIDE, SIDE))


def spec(batch_size=8):
    """Shapes of a batch."""
    return loader.spec(info(CLASSES), transforms.pipeline(""), batch_size)


def examples(classes=3, seed=5):
    """Images `m h w 3` and labels `m`, as fields."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(EXAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    return dict(image=pixels, label=rng.integers(classes, size=EXAMPLES).astype(np.int32))


def cell(seed, lr, weight_decay=1e-4, drop_path=0.1, scale=1.0, steps=20, classes=5):
    hyper = dict(lr=lr, weight_decay=weight_decay, drop_path=drop_path, scale=scale)
    return dict(hyper, seed=seed, steps=steps, classes=classes)


def population(config, size):
    """The programs for `size` cells, and the bare backbone."""
    task = tasks.from_config(config.task, info(CLASSES))
    bare = model.loaded_backbone(config)
    return Population(config, task, spec(), bare, size), bare


def rows(seeds, step, batch_size=8):
    return np.stack([loader.rows(s, step, batch_size, EXAMPLES) for s in seeds])


def trained(programs, cells, data, steps):
    """The state of the cells after some steps, and their losses `steps k`."""
    hyper, seeds = programs.hyper(cells), [c["seed"] for c in cells]
    state, keys = programs.start(seeds, hyper), programs.keys(seeds)
    placed, losses = programs.put_data(data), []
    for step in range(steps):
        state, logs = programs.step(state, placed, rows(seeds, step), keys, hyper)
        losses.append(logs["loss"])
    return state, np.array(jax.device_get(losses))


def batches(data, size=12):
    """All examples in batches, the last one padded."""
    for start in range(0, EXAMPLES, size):
        index = np.arange(start, start + size)
        mask = (index < EXAMPLES).astype(np.float32)
        index = np.minimum(index, EXAMPLES - 1)
        fields = {name: x[index] for name, x in data.items()}
        yield dict(fields, index=index.astype(np.int32), mask=mask)


def eight(count=8):
    """What eight cells come to on the devices of this process, and where the arrays lie."""
    config = settings("iconformer")
    programs, _ = population(config, count)
    cells = [cell(seed=i % 3, lr=1e-3 * (1 + i), scale=0.1 * (1 + i)) for i in range(count)]
    data = examples()
    state, losses = trained(programs, cells, data, 6)
    first = {p: [list(x.shape), list(x.addressable_shards[0].data.shape)]
             for p, x in tree.leaves(state["train"]).items()}  # fmt: skip
    return {
        "devices": jax.device_count(),
        "losses": losses.tolist(),
        "values": programs.evaluate(state, batches(data), programs.hyper(cells)),
        "train": first,
        "frozen_whole": all(
            x.sharding.is_fully_replicated for x in jax.tree.leaves(programs.frozen)
        ),
        "programs": [programs.step_program._cache_size(), programs.test_program._cache_size()],
    }


if __name__ == "__main__":
    document, sys.stdout = sys.stdout, sys.stderr
    json.dump(eight(), document)
