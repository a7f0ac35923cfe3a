"""Every reference case of a dense head under $DYNADAPT_ORACLES: outputs, losses, statistics.

A translator, a module of `task_cases`, knows a library's names: `head(meta)`, `maps(meta)`,
`path(name, meta)`, our path of a tensor, and `found(meta, run, maps, inputs)`, our outputs by the
case's names. Maps lie as `b c h w` in the cases.
"""

import importlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import files, heads, tree
from dynadapt.backbones import Features
from dynadapt.context import Context
from tests.oracles import FOLDER, Check, cases, named

pytestmark = pytest.mark.usefixtures("fast_compiling")

# By what stands in a case's `source`.
TRANSLATORS = {"SegformerHead": "mmsegmentation", "UPerHead": "mmsegmentation", "GLPN": "glpn"}
CASES = {
    case: importlib.import_module(f"tests.task_cases.{name}")
    for case in cases()
    for source, name in TRANSLATORS.items()
    if source in json.loads((case / "meta.json").read_text()).get("source", "")
}


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


@pytest.mark.parametrize("folder", CASES, ids=named)
def test_head(folder):
    names, meta = CASES[folder], json.loads((folder / "meta.json").read_text())
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    graph, stats, params = nnx.split(made(names, meta, folder), nnx.BatchStat, ...)

    def run(maps, train):
        head = nnx.merge(graph, stats, params, copy=True)
        features = Features(tuple(maps), jnp.zeros((len(maps[0]), 0, maps[-1].shape[-1])))
        answer, *_ = head(features, Context(train=train))
        return answer, tree.leaves(nnx.state(head, nnx.BatchStat))

    given = [last(inputs[name]) for name in names.maps(meta)]
    found = names.found(meta, run, given, inputs)
    check = Check(SimpleNamespace(folder=folder, meta=meta))
    for name, wanted in expected.items():
        ours = name
        if name.startswith("after/"):
            ours = f"after/{names.path(name.removeprefix('after/'), meta)}"
        check(name, found[ours], last(wanted))
    check.done()


def test_there_are_cases():
    assert CASES, f"no cases of dense heads under {FOLDER}"
