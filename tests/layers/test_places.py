import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.context import Context, mean_of_tokens
from dynadapt.layers.places import Places
from dynadapt.layers.transformer import Attention


def tokens(n, seed=0):
    return jax.random.normal(jax.random.key(seed), (2, n, 8))


def test_the_first_block_makes_room_and_each_fills_its_place():
    """Two leading tokens and four patches; blocks 5, 6 and 7 put a token each."""
    places, start = Places.of([(f"blocks/{n}", None) for n in (5, 6, 7)]), tokens(6)
    ctx = Context(grid=(2, 2), prefix=2)
    x, own = start, [tokens(1, seed=n)[:, 0] for n in (1, 2, 3)]
    for n, token in enumerate(own):
        x, inner = places.entered(x, ctx.replace(number=jnp.asarray(5 + n)))
        assert inner.seen.tolist() == [1, 1, *(float(k < n) for k in range(3)), 1, 1, 1, 1]
        x = places.put(x, token, inner)
    wanted = jnp.concatenate([start[:, :2], jnp.stack(own, 1), start[:, 2:]], axis=1)
    np.testing.assert_array_equal(x, wanted)


def test_a_free_place_is_no_token():
    """Attention and means are those of the sequence without it, whatever lies there."""
    seen = jnp.asarray([1.0, 1.0, 0.0, 1.0, 0.0])
    there = np.flatnonzero(seen)
    attention = Attention(8, 2, epsilon=1e-6, rngs=nnx.Rngs(0))
    x, ctx = tokens(5), Context(seen=seen)
    wanted = attention(x[:, there], Context())
    np.testing.assert_allclose(attention(x, ctx)[:, there], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean_of_tokens(x, ctx), x[:, there].mean(1), rtol=1e-5, atol=1e-6)
