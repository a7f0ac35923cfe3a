"""Singular values of tuned matrices, of differences that are known."""

import numpy as np
import pytest

from dynadapt.errors import ConfigError
from dynadapt.figures import figures, singular
from dynadapt.figures.trained import TrainedRun
from tests.figures.saved import saved

pytestmark = pytest.mark.usefixtures("fast_compiling")

RNG = np.random.default_rng(0)
U, V = RNG.normal(size=(16, 2)), RNG.normal(size=(2, 64))
U, V = np.linalg.qr(U)[0], np.linalg.qr(V.T)[0].T
CHANGED = "backbone/blocks/1/mlp/fc1/kernel"


def low_rank(path, x, rng):
    """Tuning that moved one matrix, by singular values 2 and 0.5."""
    change = (U * np.array([2.0, 0.5])) @ V
    return x + np.float32(change) if path == CHANGED else x


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("full"), "full", change=low_rank)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("lora"), "lora")


def test_curves_of_known_matrices():
    spectrum = np.array([3.0, 1.0, 0.0])
    matrices = {
        "blocks/0/attn/qkv/kernel": np.diag(spectrum),
        "blocks/1/attn/qkv/kernel": np.diag([2.0, 2.0, 2.0]),
        "blocks/5/attn/qkv/kernel": np.diag(spectrum[::-1]),
    }
    first, last = singular.curves(matrices)
    assert (first["layer"], first["blocks"], last["blocks"]) == (
        "attn/qkv", "blocks 0 to 1", "blocks 4 to 5",
    )  # fmt: skip
    # 9 of 10 is 90 %, which one singular value holds; of equal ones three are needed.
    assert (first["rank"], last["rank"]) == (2, 1) and first["largest"] == 2.5
    np.testing.assert_allclose(first["values"], [1, (1 / 3 + 1) / 2, 0.5])
    np.testing.assert_allclose(last["values"], [1, 1 / 3, 0], atol=1e-12)


def test_stages_have_a_curve_each():
    """Their widths differ."""
    rng = np.random.default_rng(1)
    sizes = {f"stages/{s}/blocks/{b}": 2 * (s + 1) for s in range(2) for b in range(2)}
    matrices = {f"{k}/mlp/fc2/kernel": rng.normal(size=(4 * d, d)) for k, d in sizes.items()}
    found = [(row["blocks"], len(row["values"])) for row in singular.curves(matrices)]
    assert found == [("stage 0", 2), ("stage 1", 4)]


def test_what_full_fine_tuning_changed(full, tmp_path):
    run = TrainedRun(full)
    assert list(singular.differences(run)) == [CHANGED.removeprefix("backbone/")]
    found = singular.draw(run, tmp_path / "singular.png", 0)
    [row] = found["curves"]
    assert (row["layer"], row["blocks"], row["rank"]) == ("mlp/fc1", "blocks 1 to 1", 1)
    assert row["largest"] == pytest.approx(2.0, rel=1e-5)
    assert (tmp_path / "singular.png").read_bytes().startswith(b"\x89PNG")


def test_lora_has_the_rank_of_its_factors(lora):
    for value in singular.differences(TrainedRun(lora)).values():
        values = np.linalg.svd(value, compute_uv=False)
        assert value.shape == (16, 48) and values[7] > 1e-2 * values[0]  # of q and v, 4 each
        assert values[8] < 1e-5 * values[0]


def test_a_run_beside(full, lora, tmp_path):
    """The same layers are needed."""
    given = dict(what=["singular"], out=tmp_path)
    found = figures.run(lora.parent, **given, beside=lora.parent)["figures"][0]
    assert found["beside"] == found["curves"] and len(found["curves"]) == 2
    with pytest.raises(ConfigError, match="that run tunes mlp/fc1, and this one attn/qkv"):
        figures.run(lora.parent, **given, beside=full.parent)
