"""Banks beside one adapter: equal outputs, and a check that notices a wrong adapter."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import bench, serving
from dynadapt.bench import bank
from dynadapt.errors import ConfigError, UnknownName


@pytest.mark.slow
def test_a_mixed_batch_is_timed_and_compared(capsys):
    result = bank.run("vit_mini", ["iconformer", "dapt"], 3, 2, adapters=4)
    row, other = result["rows"]
    assert "point clouds" in other["reason"] and "equal" not in other
    assert row["adapters"] == 4 and row["batch"] == 3 and row["equal"] is True
    assert row["largest_difference"] <= 1e-5 and row["largest_output"] > 0.05
    assert row["mixed_ms"] > 0 and row["one_adapter_ms"] > 0
    assert set(row["mixed_over_one"]) == {"ratio", "lowest", "highest", "minima"}
    bench.show(result)
    assert "mixed_over_one" in capsys.readouterr().out  # as a line: the reason is one column more


@pytest.mark.slow
def test_the_comparison_notices_another_adapter():
    host, trees = bank.hosted("vit_mini", "lora", 2)
    images = jnp.asarray(np.random.default_rng(5).normal(size=(2, 32, 32, 3)), jnp.float32)
    which = jnp.asarray([1, 0], jnp.int32)
    found = serving.make_mixed(host)(host.frozen, serving.stack(trees), which, images)
    assert bank.compared(host, trees, which, images, found)["equal"]
    for wrong in (which[::-1], jnp.zeros_like(which)):
        row = bank.compared(host, trees, wrong, images, found)
        assert not row["equal"] and row["largest_difference"] > 1e-4
    assert not bank.compared(host, trees, which, images, found * jnp.nan)["equal"]


def test_mistakes():
    with pytest.raises(UnknownName, match="did you mean 'lora'"):
        bank.run("vit_mini", ["lorra"], 2, 1)
    with pytest.raises(ConfigError, match="point_mae_s takes no images"):
        bank.run("point_mae_s", ["lora"], 2, 1)
