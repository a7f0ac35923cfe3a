"""The diagnosis of saved adapters, against a model that is looked into by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import inputs
from dynadapt.context import Context
from dynadapt.figures import diagnosis
from dynadapt.runs import product
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
