"""Dense heads: outputs, losses, slopes, statistics.

A translator, a module of this folder, knows a library's names: `head(meta)`, `maps(meta)`,
`path(name, meta)`, our path of a tensor, and `found(meta, run, maps, inputs)`, our outputs by the
case's names. Maps lie as `b c h w` in the cases.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import files, heads, tree
from dynadapt.backbones import Features
from dynadapt.context import Context
from tests.task_cases import glpn, mmsegmentation

# By what stands in a case's `source`.
TRANSLATORS = {"SegformerHead": mmsegmentation, "UPerHead": mmsegmentation, "GLPN": glpn}


def knows(meta):
    """Whether a case is one of these."""
    return any(name in meta["source"] for name in TRANSLATORS)


def last(x):
    """Maps `b c h w` as `b h w c`."""
    return jnp.asarray(x).transpose(0, 2, 3, 1) if np.ndim(x) == 4 else x


def made(names, meta, folder):
    """Our head with the case's weights."""
    name, dims, outputs, settings = names.head(meta)
    # Maps of several strides, which a head takes as they are.
    sides = [2 ** (len(dims) - i) for i in range(len(dims))]
    shapes = [
        jax.ShapeDtypeStruct((1, s, s, d), jnp.float32) for s, d in zip(sides, dims, strict=True)
    ]
    like = Features(tuple(shapes), jnp.zeros((1, 0, dims[-1])))
    head = heads.dense_head(name, like, outputs, rngs=nnx.Rngs(0), **settings)
    state = nnx.state(head)
    leaves = tree.leaves(state)
    published = files.read_tensors(folder / meta["checkpoint"])
    given = {names.path(k, meta): v for k, v in published.items()}
    # The reference has its auxiliary head apart.
    assert given.keys() == {k for k in leaves if not k.startswith("auxiliary/")}
    for path, value in given.items():
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        given[path] = jnp.asarray(value.reshape(value.shape[-leaves[path].ndim :]))
        assert given[path].shape == leaves[path].shape, path
    nnx.update(head, tree.replace(state, leaves | given))
    return head


def run(folder, meta, check):
    """Compares all that a case expects."""
    names = next(module for name, module in TRANSLATORS.items() if name in meta["source"])
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    graph, stats, params = nnx.split(made(names, meta, folder), nnx.BatchStat, ...)

    def forward(maps, train):
        head = nnx.merge(graph, stats, params, copy=True)
        features = Features(tuple(maps), jnp.zeros((len(maps[0]), 0, maps[-1].shape[-1])))
        answer, *_ = head(features, Context(train=train))
        return answer, tree.leaves(nnx.state(head, nnx.BatchStat))

    given = [last(inputs[name]) for name in names.maps(meta)]
    found = names.found(meta, forward, given, inputs)
    for name, wanted in expected.items():
        ours = name
        if name.startswith("after/"):
            ours = f"after/{names.path(name.removeprefix('after/'), meta)}"
        check(name, found[ours], last(wanted))
