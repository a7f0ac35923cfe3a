import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import mixture

pytestmark = pytest.mark.usefixtures("fast_compiling")


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def weights(seed, e=4, d=6, r=3):
    return draw(seed, (e, d, r), (e, r), (e, r, d), (e, d))


def test_routing_is_a_softmax_of_cosines():
    q, e = draw(1, (5, 7), (3, 7))
    found = mixture.route(q, e, 0.2)
    cosine = (q / jnp.linalg.norm(q, axis=1)[:, None]) @ (e / jnp.linalg.norm(e, axis=1)[:, None]).T
    np.testing.assert_allclose(found, jax.nn.softmax(cosine / 0.2), rtol=1e-5)
    np.testing.assert_allclose(mixture.route(3.0 * q, 0.1 * e, 0.2), found, rtol=1e-5)


@pytest.mark.slow
def test_routing_of_the_zero_vector_is_uniform_with_a_finite_gradient():
    (e,) = draw(2, (3, 7))
    zero = jnp.zeros((1, 7))
    np.testing.assert_allclose(mixture.route(zero, e, 0.1), jnp.full((1, 3), 1 / 3), rtol=1e-6)
    gradient = jax.grad(lambda q: mixture.route(q, e, 0.1)[0, 0])(zero)
    assert np.isfinite(gradient).all()


def test_the_gate_is_the_largest_probability():
    (x,) = draw(3, (20, 4))
    chances = jax.nn.softmax(x)
    gate = np.asarray(mixture.top1(chances))
    assert ((gate > 0).sum(1) == 1).all()
    np.testing.assert_array_equal(gate.max(1), np.asarray(chances).max(1))
    assert (gate.argmax(1) == np.asarray(chances).argmax(1)).all()


def test_balance_is_one_where_uniform_and_larger_elsewhere():
    even = jnp.full((4, 4), 0.25)
    assert float(mixture.balance(even, even)) == pytest.approx(1.0)
    (x,) = draw(4, (50, 4))
    chances = jax.nn.softmax(2.0 * x + jnp.asarray([[1.0, 0.0, 0.0, 0.0]]))
    gate = mixture.top1(chances)
    share = (np.asarray(gate) > 0).mean(0)
    found = float(mixture.balance((gate > 0).astype(jnp.float32), chances))
    assert found == pytest.approx(4 * float(share @ np.asarray(chances).mean(0)), rel=1e-5)
    assert found > 1.0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.slow
def test_experts_equal_their_definition(soft):
    x, scores, slope = draw(5, (2, 5, 6), (2, 5, 4), (2, 5, 6))
    gate = jax.nn.softmax(scores) if soft else mixture.top1(jax.nn.softmax(scores))

    def one_by_one(x, gate, *weights):
        one = lambda x, gate: mixture.experts_one(x, gate, *weights)  # noqa: E731
        return jax.vmap(jax.vmap(one))(x, gate)

    found, back = jax.vjp(mixture.experts, x, gate, *weights(6))
    wanted, back_one = jax.vjp(one_by_one, x, gate, *weights(6))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for own, other in zip(back(slope), back_one(slope), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_an_expert_that_was_not_chosen_gets_no_gradient():
    (x,) = draw(7, (9, 6))
    gate = jnp.zeros((9, 4)).at[:, 2].set(0.5)
    gradients = jax.grad(lambda w: mixture.experts(x, gate, *w).sum())(weights(8))
    for g in gradients:
        moved = np.abs(np.asarray(g)).reshape(4, -1).sum(1) > 0
        np.testing.assert_array_equal(moved, [False, False, True, False])


def test_codes_of_zero_leave_the_biases():
    (x,) = draw(9, (9, 6))
    gate = jnp.ones((9, 4))
    w = weights(10)
    none = mixture.answers(0 * mixture.codes(x, *w[:2]), gate, *w[2:])
    np.testing.assert_allclose(none, jnp.tile(w[3].sum(0)[None], (9, 1)), rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_its_dtype():
    (x,) = draw(11, (9, 6))
    gate = mixture.top1(jax.nn.softmax(draw(12, (9, 4))[0]))
    half = mixture.experts(x.astype(jnp.bfloat16), gate, *weights(13))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, mixture.experts(x, gate, *weights(13)), rtol=0.1, atol=0.1)
