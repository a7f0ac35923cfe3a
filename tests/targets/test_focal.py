import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.targets.focal import focal


def test_the_focal_loss_is_that_of_its_equation():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    classes = np.array([0, 2, -1, 1, -1])
    wanted = classes[:, None] == np.arange(3)[None]
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    right = np.where(wanted, p, 1 - p)
    alpha = np.where(wanted, 0.25, 0.75)
    found = focal(jnp.asarray(logits), jnp.asarray(classes))
    np.testing.assert_allclose(found, -alpha * (1 - right) ** 2 * np.log(right), rtol=1e-5)
    assert focal(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(classes)).dtype == jnp.float32


def test_the_slope_of_the_focal_loss_is_finite():
    sizes = jnp.array([0.0, 5.0, 90.0, 1e4])
    logits = jnp.stack([sizes, -sizes], -1)
    slopes = jax.jit(jax.grad(lambda x, kind: focal(x, kind).sum()))
    for kind in (0, 1, -1):
        assert np.isfinite(slopes(logits, jnp.full(4, kind))).all()
