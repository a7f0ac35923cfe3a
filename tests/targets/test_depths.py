import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.targets.depths import errors, silog, sums


def drawn(seed=0, shape=(3, 7, 5)):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 9.0, shape).astype(np.float32)
    predicted = (target * np.exp(rng.normal(0, 0.3, shape))).astype(np.float32)
    return predicted, target, rng.random(shape) < 0.7


@pytest.mark.parametrize("variance", [0.0, 0.5, 1.0])
def test_silog_equals_numpy(variance):
    predicted, target, valid = drawn()
    d = np.log(target.astype(float)) - np.log(predicted)
    given = [jnp.asarray(x) for x in (predicted, target, valid)]

    def of(rows):
        return np.sqrt((rows**2).mean() - variance * rows.mean() ** 2)

    images = silog(*given, variance=variance, pooled=False)
    wanted = [of(row[known]) for row, known in zip(d, valid, strict=True)]
    np.testing.assert_allclose(images, wanted, rtol=1e-5)
    pooled = silog(*given, variance=variance, pooled=True)
    np.testing.assert_allclose(pooled, [of(d[valid])] * 3, rtol=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_silog_of_a_perfect_answer_or_of_no_pixel_has_a_finite_slope(pooled):
    _, target, valid = drawn()
    for known in (valid, np.zeros_like(valid)):
        given = jnp.asarray(target), jnp.asarray(known)
        loss, slope = jax.value_and_grad(
            lambda p, t, v: silog(p, t, v, variance=0.5, pooled=pooled).sum()
        )(jnp.asarray(target), *given)
        assert float(loss) == 0.0 and np.isfinite(slope).all()


def test_errors_equal_numpy():
    predicted, target, valid = drawn(1)
    found = errors(jax.tree.map(np.asarray, sums(*map(jnp.asarray, (predicted, target, valid)))))
    for n in range(3):
        p, t = (x[n][valid[n]].astype(float) for x in (predicted, target))
        ratio, log = np.maximum(p / t, t / p), np.log(p) - np.log(t)
        wanted = dict(
            abs_rel=(abs(p - t) / t).mean(),
            sq_rel=((p - t) ** 2 / t).mean(),
            rmse=np.sqrt(((p - t) ** 2).mean()),
            rmse_log=np.sqrt((log**2).mean()),
            log10=abs(np.log10(p) - np.log10(t)).mean(),
            silog=np.sqrt((log**2).mean() - 0.5 * log.mean() ** 2),
            **{f"d{k}": (ratio < 1.25**k).mean() for k in (1, 2, 3)},
        )
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name][n], value, rtol=1e-5, err_msg=name)


def test_shares_within_a_factor_are_exact_at_the_factor():
    """The quotient of 2.4125 and 1.93 is below 1.25, and exactly that once it is rounded."""
    rng = np.random.default_rng(2)
    target = rng.uniform(0.1, 10.0, 4000).astype(np.float32)
    for power in (1, 2, 3):
        factor = 1.25**power
        predicted = (target * np.float32(factor)).astype(np.float32)
        moved = [np.nextafter(predicted, side * 100, dtype=np.float32) for side in (-1, 1)]
        for p in (predicted, *moved):
            for a, b in ((p, target), (target, p)):
                given = [jnp.asarray(x).reshape(-1, 1, 1) for x in (a, b)]
                found = sums(*given, jnp.ones((len(p), 1, 1), bool))[f"d{power}"]
                more, less = np.maximum(a, b).astype(float), np.minimum(a, b).astype(float)
                np.testing.assert_array_equal(np.asarray(found) > 0, more < factor * less)
