import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.context import Context
from dynadapt.layers.conv_norm import ConvNorm
from tests import dense_heads
from tests.networks import randomised


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("side", [1, 3])
def test_equals_numpy(side, use_bias):
    layer = randomised(lambda rngs: ConvNorm(3, 5, side, use_bias=use_bias, rngs=rngs))
    assert ("conv/bias" in tree.leaves(nnx.state(layer))) == use_bias
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    w = {f"layer/{k}": v for k, v in dense_heads.weights(layer).items()}
    wanted = dense_heads.conv_norm(x.astype(np.float64), w, "layer")
    np.testing.assert_allclose(layer(jnp.asarray(x), Context()), wanted, rtol=1e-4, atol=1e-5)
