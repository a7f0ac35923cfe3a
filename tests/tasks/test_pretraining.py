import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.data import labelled
from dynadapt.errors import ConfigError
from dynadapt.tasks import pretraining

pytestmark = pytest.mark.usefixtures("fast_compiling")

INFO = labelled("generated", ("generated",), {"train": 4}, "")


def batch(seed=0, b=3):
    image = jax.random.uniform(jax.random.key(seed), (b, 16, 24, 3), minval=-1, maxval=1)
    return {"image": image, "mask": jnp.ones(b)}


@pytest.mark.slow
def test_histograms_by_hand():
    """Vertical stripes have horizontal gradients alone: all votes fall into the first bin."""
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 16)[None, None, :, None], (1, 8, 16, 3))
    found = np.asarray(pretraining.histograms(ramp, 4, 8))
    assert found.shape == (1, 2, 4, 8)
    assert (found[..., 0] > 0.5).all() and np.abs(found[..., 1:]).max() < 1e-5
    flat = pretraining.histograms(jnp.full((1, 8, 8, 3), 0.3), 4, 8)
    assert np.abs(np.asarray(flat)).max() < 1e-3


def test_colours_by_hand():
    image = np.random.default_rng(1).random((2, 8, 12, 3)).astype(np.float32)
    found = pretraining.colours(jnp.asarray(image), 4)
    np.testing.assert_allclose(found[1, 0, 2], image[1, :4, 8:].mean((0, 1)) * 2 - 1, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_same_number_of_squares_is_painted_in_every_image(ratio):
    task = pretraining.Task(INFO, mask_ratio=ratio)
    ready = task.prepare(batch(), jax.random.key(3), train=True)
    hidden = np.asarray(ready["hidden"])
    assert hidden.shape == (3, 4, 6)
    assert (hidden.sum((1, 2)) == 4 * round(ratio * 6)).all()
    pixels = hidden.repeat(4, 1).repeat(4, 2)
    assert (np.asarray(ready["image"])[pixels] == 0).all()
    assert (np.asarray(ready["image"])[~pixels] != 0).all()
    other = task.prepare(batch(), jax.random.key(4), train=True)
    assert (np.asarray(other["hidden"]) != hidden).any()


def test_targets_are_those_of_the_unpainted_image():
    task = pretraining.Task(INFO, flip=False)
    ready = task.prepare(batch(), jax.random.key(0), train=True)
    unit = batch()["image"] * 0.5 + 0.5
    np.testing.assert_allclose(ready["target"][..., :8], pretraining.histograms(unit, 4, 8))


def test_loss_and_metrics_weigh_painted_visible_and_masked():
    task = pretraining.Task(INFO, visible_weight=0.2)
    ready = task.prepare(batch(), jax.random.key(0), train=False)
    ready["mask"] = jnp.array([1.0, 0.0, 1.0])
    outputs = jax.random.normal(jax.random.key(9), ready["target"].shape)
    error = np.square(np.asarray(outputs - ready["target"])).sum(-1)[[0, 2]]
    hidden = np.asarray(ready["hidden"])[[0, 2]]
    weight = np.where(hidden, 1.0, 0.2)
    total, weights, logs = task.loss(outputs, ready)
    np.testing.assert_allclose(total, (error * weight).sum(), rtol=1e-5)
    np.testing.assert_allclose(weights, weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(logs["visible"], error[~hidden].mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["hidden"], error[hidden].mean(), rtol=1e-5)
    rows = {k: np.asarray(v)[[0, 2]] for k, v in task.rows(outputs, ready).items()}
    value = task.value(rows)
    np.testing.assert_allclose(value["hidden_error"], error[hidden].mean(), rtol=1e-5)


def test_refusals():
    with pytest.raises(ConfigError, match="mask_ratio"):
        pretraining.Task(INFO, mask_ratio=1.0)
