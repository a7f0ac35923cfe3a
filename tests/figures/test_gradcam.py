"""Grad-CAM against gradients that are taken by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import inputs
from dynadapt.context import Context
from dynadapt.figures import gradcam
from dynadapt.figures.trained import TrainedRun
from tests import products
from tests.figures.saved import saved

pytestmark = pytest.mark.usefixtures("fast_compiling")


def test_a_map_of_known_slopes():
    m = jnp.asarray(np.arange(8.0).reshape(1, 2, 2, 2))
    slope = jnp.asarray([[[[1.0, 0.0], [3.0, 0.0]], [[0.0, -1.0], [0.0, -3.0]]]])
    # Mean slopes 1 and -1: every position is its first entry less its second, never above zero.
    assert float(jnp.abs(gradcam.cam(m, slope)).max()) == 0
    np.testing.assert_allclose(gradcam.cam(m, -slope), np.ones((1, 2, 2)))


def test_maps_by_hand(tmp_path):
    """The class token's logit by the patch tokens that enter the last block, of a scan too."""
    folder = saved(tmp_path, "lora", split="test[:9]", pool="cls", scan=True)
    run, network = TrainedRun(folder), products.network(folder)
    found = gradcam.maps(run, 3)
    assert list(found["label"]) == [int(run.split.source[i]["label"]) for i in (0, 4, 8)]
    x = inputs.normalised({"image": found["image"]}, run.config)["image"]
    backbone, ctx = network.backbone, Context(grid=(2, 2), prefix=1)

    @jax.jit
    def by_hand(x):
        tokens = backbone.with_tokens(backbone.embed(x, ctx), (2, 2))
        tokens = backbone.blocks[0](tokens, ctx)

        def logits(patches):
            seen = jnp.concatenate([tokens[:, :1], patches], axis=1)
            y = backbone.norm(backbone.blocks[1](seen, ctx), ctx)
            return network.head.linear(y[:, 0], ctx)

        answer = logits(tokens[:, 1:])
        own = lambda p: jnp.take_along_axis(logits(p), answer.argmax(-1)[:, None], 1).sum()  # noqa: E731
        return tokens[:, 1:], answer, jax.grad(own)(tokens[:, 1:])

    patches, answer, slope = by_hand(x)
    wanted = jnp.maximum(jnp.einsum("bnd,bd->bn", patches, slope.mean(1)), 0)
    assert wanted.max() > 0
    np.testing.assert_allclose(found["map"].reshape(3, 4), wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found["class"], answer.argmax(-1))
    np.testing.assert_allclose(found["probability"], jax.nn.softmax(answer).max(-1), rtol=1e-4)


def test_what_maps_of_tasks_are_of():
    """The predicted class's logit, the output where there is one, the length of a vector."""
    each = {"classes": SimpleNamespace(classes=("a", "b")), "one": 0, "vectors": 0}
    task = SimpleNamespace(tasks=tuple(each), each=each)
    outputs = {
        "classes": (jnp.asarray([[[[1.0, -2.0], [0.0, 3.0]]]]), None),  # an auxiliary output
        "one": (jnp.asarray([[[[-1.0], [-3.0]]]]),),
        "vectors": (jnp.asarray([[[[3.0, 0.0, -4.0], [0.0, 0.0, 2.0]]]]),),
    }
    found = {k: float(v) for k, v in gradcam.summed(task, outputs).items()}
    assert found == pytest.approx({"classes": 4.0, "one": -4.0, "vectors": 7.0})
