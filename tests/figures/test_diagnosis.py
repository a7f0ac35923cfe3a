"""The diagnosis of saved adapters, against a model that is looked into by hand."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import evaluate, inputs
from dynadapt.context import Context
from dynadapt.figures import diagnosis
from dynadapt.heads.atss import Outputs
from dynadapt.heads.solo import Cells
from dynadapt.runs import product
from tests import products
from tests.devices import ROOT
from tests.figures.saved import saved

pytestmark = pytest.mark.usefixtures("fast_compiling")


@pytest.fixture(scope="module")
def icon(tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("icon"), scale=2.0)
    return folder, diagnosis.run(folder)


def by_hand(folder):
    """All images' kernels `l n k k r`, logits, and the network."""
    trained = product.load(folder)
    network = nnx.merge(*trained.parts)
    split = inputs.open_split(trained.config, "eval", trained.adapter.info.classes)
    batch = {"image": np.stack([split.source[i]["image"] for i in range(len(split.source))])}
    x = inputs.normalised(batch, trained.config)["image"]
    ctx = Context()
    logits = jax.jit(lambda x: (network(x, ctx), dict(ctx.tape)))(x)
    return network, x, *logits


@pytest.mark.slow
def test_kernels_by_hand(icon):
    folder, found = icon
    _, x, _, tape = by_hand(folder)
    kernels = np.asarray(tape["kernel"], np.float64)
    assert found["images"] == len(x) and [r["block"] for r in found["made"]] == [0, 1]
    for row, k in zip(found["made"], kernels, strict=True):
        assert row["size"] == pytest.approx(np.sqrt(np.square(k).mean()), rel=1e-4)
        varies = k.var(0).mean() / np.square(k).mean()
        assert row["varies"] == pytest.approx(varies, rel=1e-2, abs=1e-5) and varies > 1e-4
    assert found["features_variance"] > 0


@pytest.mark.slow
def test_branches_by_hand(icon):
    """What the adapter of block 0 adds to the patch tokens, over them."""
    folder, found = icon
    network, x, _, _ = by_hand(folder)
    seen = {}
    mlp = network.backbone.blocks[0].mlp

    def watch(host, tokens, ctx):
        seen["x"], seen["extra"] = tokens[:, 1:], mlp_adapter.branch(tokens, ctx)[:, 1:]
        return host.bare(tokens, ctx)

    mlp_adapter, mlp.adapter = mlp.adapter, nnx.data(watch)
    network(x, Context())
    wanted = jnp.sqrt(jnp.square(seen["extra"]).mean() / jnp.square(seen["x"]).mean())
    assert [(r["name"], r["block"]) for r in found["branches"]] == [("mlp", 0), ("mlp", 1)]
    # Over batches the mean of the ratios is taken.
    assert found["branches"][0]["ratio"] == pytest.approx(float(wanted), rel=0.02)


def test_what_mean_kernels_change(icon):
    folder, found = icon
    assert found["headline"] == "top1" and 0 < found["changed"] <= 100
    assert found["score"] != found["score_with_means"]


def test_static_kernels_are_their_own_mean(tmp_path):
    found = diagnosis.run(saved(tmp_path, kernels="static"))
    assert found["changed"] == 0 and found["score"] == found["score_with_means"]
    assert all(row["varies"] < 1e-5 for row in found["made"])


def test_a_method_that_makes_nothing(tmp_path, capsys):
    found = diagnosis.run(saved(tmp_path, "lora"))
    assert found["made"] == [] and len(found["branches"]) == 2
    assert {"backbone/blocks/*/attn/qkv/adapter/q/a", "head/linear/bias"} & set(found["gradients"])
    diagnosis.show(found)
    assert "variance of features" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_judged_on_the_host_scores_as_in_an_evaluation(tmp_path):
    """A detector with random values, two batches of which the second is padded."""
    path = ROOT / "configs" / "detect.py"
    c = runpy.run_path(str(path))["get_config"]("method=vfm_adapter")
    c.backbone.weights = ""
    c.backbone.update(dict(dim=16, heads=2, depth=2, image_size=32))
    c.adapter.update(dict(rank=4, z=8))
    c.data.size = 32
    c.task.update(dict(channels=8, depth=1, strides=(2.0, 4.0, 8.0)))
    c.input.update(dict(train_split="train[:8]", eval_split="train[:8]", eval_batch_size=6))
    folder = products.leave(tmp_path / "adapter", c, seed=2)
    found, evaluated = diagnosis.run(folder), evaluate.run(folder)
    assert found["headline"] == "ap" and evaluated["ap"] > 0
    assert found["score"] == pytest.approx(evaluated["ap"])
    assert found["score_with_means"] != found["score"] and 0 < found["changed"] <= 100


def test_what_changes():
    """Classes are compared as they are, values by how much they move, cells where one shows an
    object."""

    def said(values, some):
        return np.array(values), np.array(some)

    every = [True, True]
    assert not diagnosis._changed(said([150, 0], every), said([150, 0], every)).any()
    found = diagnosis._changed(said([150, 0], every), said([151, 0], every))
    np.testing.assert_array_equal(found, [True, False])
    found = diagnosis._changed(said([1.0, 2.0], every), said([1.009, 2.1], every))
    np.testing.assert_array_equal(found, [False, True])
    before = said([[3, -1], [-1, 2]], [[True, False], [False, True]])
    after = said([[3, -1], [1, -1]], [[True, False], [True, False]])
    np.testing.assert_array_equal(diagnosis._changed(before, after), [False, True, True])


def test_a_cell_answers_where_it_shows_an_object():
    maps = np.full((2, 2, 2, 3), -5.0), np.full((2, 1, 1, 3), -5.0)
    maps[0][0, 1, 0, 2], maps[1][1, 0, 0, 1] = 3.0, 0.0
    cells = Cells(tuple(map(jnp.asarray, maps)), (), (), ())
    for outputs in (cells, Outputs(cells.classes, (), (), (4.0, 8.0))):
        classes, shown = diagnosis._said(outputs)
        np.testing.assert_array_equal(classes, [[-1, -1, 2, -1, -1], [-1, -1, -1, -1, 1]])
        np.testing.assert_array_equal(shown, classes >= 0)
