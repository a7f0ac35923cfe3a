import jax
import numpy as np
import pytest
from flax import nnx

from dynadapt import heads, tree
from dynadapt.context import Context
from dynadapt.data import blank, loader, transforms
from dynadapt.errors import ConfigError
from dynadapt.heads import several
from dynadapt.layers import SameKey
from dynadapt.tasks import several as several_tasks
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


@pytest.mark.parametrize("name", ["aspp", "deconv", "segformer"])
@pytest.mark.parametrize("streams", [True, False])
def test_other_published_heads_serve_several_tasks(name, streams):
    """On features of each task's own from a backbone in stages, or one of one stride for all."""
    info = blank.source("train", ("labels", "normals"), class_count=5, size=(32, 24)).info
    spec = loader.spec(info, transforms.pipeline(""), 2)
    task = several_tasks.Task(info, tasks=("semseg", "normals"), head=name, channels=8)
    # As maps of stages are behind their merging: the last two of one stride.
    maps = dense_heads.shapes((8, 12, 12), ((8, 6), (4, 3), (4, 3)), b=2)
    like = dict.fromkeys(task.tasks, maps) if streams else dense_heads.vit(b=2)

    def run(features, batch):
        outputs = task.head(like, rngs=SameKey())(features, Context(train=True, key=batch["key"]))
        return outputs, task.loss(outputs, batch), task.rows(outputs, batch)

    key = jax.eval_shape(lambda: jax.random.key(0))
    outputs, (loss, weight, _), rows = jax.eval_shape(run, like, {**spec, "key": key})
    assert {k: v[0].shape[-1] for k, v in outputs.items()} == {"semseg": 5, "normals": 3}
    assert loss.shape == weight.shape == () and all(len(v.shape) for v in rows.values())
