import jax
import numpy as np
import pytest
from flax import nnx

from dynadapt import heads, tree
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.heads import several
from dynadapt.layers import SameKey
from tests import dense_heads
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

OUTPUTS = dict(semseg=5, depth=1)


def makers(**given):
    return {
        task: lambda like, n=n: heads.dense_head(
            "fused", like, n, channels=8, rngs=SameKey(), **given
        )
        for task, n in OUTPUTS.items()
    }


def test_each_task_has_its_own_features_or_all_have_one():
    own = {"semseg": dense_heads.vit(b=2), "depth": dense_heads.vit(12, b=2)}
    for like in (own, own["semseg"]):
        head = randomised(lambda rngs, like=like: several.made_for(like, makers()))
        given = dense_heads.filled(like)
        found = jax.jit(lambda head, x: head(x, Context()))(head, given)
        assert {t: o[0].shape for t, o in found.items()} == {
            t: (2, 6, 8, n) for t, n in OUTPUTS.items()
        }
        for task, alone in head.heads.items():
            features = given[task] if like is own else given
            np.testing.assert_allclose(
                found[task][0], alone(features, Context())[0], rtol=1e-5, atol=1e-5
            )


def test_heads_drop_apart_and_keep_statistics_of_their_own():
    like = dense_heads.vit(b=2)
    same = {task: makers(dropout=0.5)["semseg"] for task in OUTPUTS}
    head = randomised(lambda rngs: several.made_for(like, same))
    leaves = tree.leaves(nnx.state(head))
    equal = {p: leaves[p.replace("/depth/", "/semseg/")] for p in leaves}
    nnx.update(head, tree.replace(nnx.state(head), equal))
    ctx = Context(train=True, key=jax.random.key(0))
    found = head(dense_heads.filled(like), ctx)
    assert np.abs(found["semseg"][0] - found["depth"][0]).max() > 1e-3
    assert {p.split("/")[1] for p in tree.leaves(nnx.state(head, nnx.BatchStat))} == {*OUTPUTS}
    without = head(dense_heads.filled(like), Context())
    np.testing.assert_array_equal(without["semseg"][0], without["depth"][0])


def test_tasks_of_adapter_and_heads_have_the_same_names():
    like = {"semseg": dense_heads.vit(), "normals": dense_heads.vit()}
    with pytest.raises(
        ConfigError, match="the adapter's tasks are semseg, normals, and the heads'"
    ):
        several.made_for(like, makers())
