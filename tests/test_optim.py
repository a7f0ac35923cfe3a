import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynadapt import config, optim, tree
from dynadapt.errors import ConfigError

pytestmark = pytest.mark.usefixtures("fast_compiling")

RNG = np.random.default_rng(4)
TRAIN = {
    "backbone": {
        "class_token": (1, 1, 4),
        "registers": (1, 2, 4),
        "position": (1, 5, 4),
        "embed": {"kernel": (2, 2, 3, 4), "bias": (4,)},
        "blocks": {
            i: {"mlp": {"norm": {"scale": (4,)}, "fc1": {"kernel": (4, 8), "bias": (8,)}}}
            for i in range(3)
        },
        "norm": {"scale": (4,)},
    },
    "head": {"linear": {"kernel": (4, 5), "bias": (5,)}},
}
TRAIN["backbone"]["blocks"][1]["mlp"]["adapter"] = {
    "down": {"kernel": (4, 2)},
    "icon": {"scale": (9, 2), "shift": (9, 2)},
    "gain": (),
    "prompts": (3, 4),
}
TRAIN = jax.tree.map(
    lambda s: jnp.asarray(RNG.normal(size=s), jnp.float32),
    TRAIN,
    is_leaf=lambda x: isinstance(x, tuple),
)
FC1 = "backbone/blocks/{}/mlp/fc1/kernel"
TOKENS = "class_token|registers|position"
LAYERS = optim.Layers(
    (f"backbone/(?:embed|{TOKENS})", *(f"backbone/blocks/{i}" for i in range(3))),
    (f"backbone/(?:{TOKENS})", "backbone/.*/prompts"),
)


def settings(**changes):
    """The `optim` section of a config, without warm-up and decay."""
    o = config.default(data_set="digits").optim
    o.update(dict(warmup=0.0, weight_decay=0.0, lr=0.1) | changes)
    return o


def updated(own, grads, state, train):
    """What a step adds to each leaf, and the state after it."""
    found, state = own.tx.update(own.pack(grads), state, own.pack(train))
    return own.unpack(found, jax.tree.map(jnp.zeros_like, train)), state


def updates(o, grads=None, steps=100):
    own = optim.make(o, steps, TRAIN, LAYERS)
    grads = TRAIN if grads is None else grads
    found, state = jax.jit(lambda: updated(own, grads, own.init(TRAIN), TRAIN))()
    return tree.leaves(found), state


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rates_that_are_arguments_are_those_of_the_config(decay):
    o = settings(weight_decay=decay, warmup=0.25, lr=0.03)
    values = optim.hyper(o, 20)
    assert set(values) == {"steps", "lr", *(["weight_decay"] if decay else [])}

    def thrice(own):
        state, found = own.init(TRAIN), TRAIN
        for _ in range(3):
            found, state = updated(own, TRAIN, state, found)
        return tree.leaves(found)

    own = jax.jit(lambda v: thrice(optim.traced(o, v, TRAIN, LAYERS)))(values)
    wanted = jax.jit(lambda: thrice(optim.make(o, 20, TRAIN, LAYERS)))()
    for path, value in wanted.items():
        np.testing.assert_allclose(own[path], value, rtol=1e-6, err_msg=path)


def test_warm_up_is_linear_then_a_cosine_to_zero():
    rate = optim.schedule(settings(lr=2.0, warmup=0.2), 50)
    np.testing.assert_allclose([rate(n) for n in (0, 1, 5, 10)], [0, 0.2, 1, 2], atol=1e-6)
    for n in (10, 17, 30, 49):
        wanted = 1 + np.cos(np.pi * (n - 10) / 40)
        np.testing.assert_allclose(rate(n), wanted, rtol=1e-4)
    np.testing.assert_allclose(rate(50), 0, atol=1e-6)


def test_a_linear_schedule_falls_evenly_to_zero():
    rate = optim.schedule(settings(lr=2.0, warmup=0.2, schedule="linear"), 50)
    found = [rate(n) for n in (5, 10, 20, 30, 50)]
    np.testing.assert_allclose(found, [1, 2, 1.5, 1, 0], atol=1e-6)


def test_a_cosine_may_end_at_a_hundredth():
    rate = optim.schedule(settings(lr=2.0, warmup=0.2, schedule="cosine_hundredth"), 50)
    found = [rate(n) for n in (5, 10, 30, 50)]
    np.testing.assert_allclose(found, [1, 2, 1.01, 0.02], atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_no_warm_up_starts_at_the_full_rate(steps):
    rate = optim.schedule(settings(lr=0.5, warmup=0.0), steps)
    np.testing.assert_allclose(rate(0), 0.5)
    assert all(0 <= rate(n) <= 0.5 for n in range(steps + 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_schedule_of_few_steps_is_finite(steps):
    rate = optim.schedule(settings(warmup=0.99), steps)
    assert np.isfinite([rate(n) for n in range(steps + 1)]).all()


def test_adamw_equals_optax():
    o = settings(weight_decay=0.3, beta1=0.8, beta2=0.95, warmup=0.25)
    rate = optim.schedule(o, 20)
    mask = tree.map_leaves(lambda path, x: optim.decays(o, path, x, LAYERS), TRAIN)
    wanted = optax.adamw(rate, b1=0.8, b2=0.95, weight_decay=0.3, mask=mask)
    own = optim.make(o, 20, TRAIN, LAYERS)

    @jax.jit
    def steps():
        found = []
        for update, state in (
            (functools.partial(updated, own), own.init(TRAIN)),
            (wanted.update, wanted.init(TRAIN)),
        ):
            params = TRAIN
            for _ in range(4):
                grads = jax.tree.map(jnp.sin, params)
                change, state = update(grads, state, params)
                params = optax.apply_updates(params, change)
            found.append(params)
        return found

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *steps())


def test_sgd_equals_optax():
    o = settings(name="sgd", momentum=0.7)
    own = optim.make(o, 10, TRAIN, LAYERS)
    wanted = optax.sgd(optim.schedule(o, 10), momentum=0.7)
    params, others = TRAIN, TRAIN
    state, other = own.init(TRAIN), wanted.init(TRAIN)
    for _ in range(3):
        change, state = jax.jit(functools.partial(updated, own))(params, state, params)
        params = optax.apply_updates(params, change)
        change, other = jax.jit(wanted.update)(others, other, others)
        others = optax.apply_updates(others, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, others)


def test_decay_excludes_norms_biases_tokens_and_vectors():
    o = settings()
    decayed = {p for p, x in tree.leaves(TRAIN).items() if optim.decays(o, p, x, LAYERS)}
    assert decayed == {
        "backbone/embed/kernel",
        *(FC1.format(i) for i in range(3)),
        "backbone/blocks/1/mlp/adapter/down/kernel",
        "head/linear/kernel",
    }
    o.no_decay = ("head/.*",)
    head = "head/linear/kernel"
    assert not optim.decays(o, head, tree.leaves(TRAIN)[head], LAYERS)


def test_decay_acts_on_what_it_should_alone():
    zero = jax.tree.map(jnp.zeros_like, TRAIN)
    found, _ = updates(settings(weight_decay=0.5, no_decay=("head/.*",)), zero)
    for path, x in tree.leaves(TRAIN).items():
        decayed = optim.decays(settings(no_decay=("head/.*",)), path, x, LAYERS)
        np.testing.assert_allclose(found[path], -0.1 * 0.5 * x * decayed, rtol=1e-5)


def test_rates_by_pattern_and_the_first_match_wins():
    o = settings(lr_mults=((r".*/blocks/0/.*/kernel", 3.0), (r".*/blocks/.*", 0.5)))
    rates = optim.rates(o, TRAIN, LAYERS)
    assert rates[FC1.format(0)] == 3.0 and rates[FC1.format(1)] == 0.5
    assert rates["backbone/blocks/0/mlp/fc1/bias"] == 0.5 and rates["head/linear/kernel"] == 1.0
    found, plain = updates(o)[0], updates(settings())[0]
    for path, factor in rates.items():
        np.testing.assert_allclose(found[path], factor * plain[path], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_factor_of_zero_freezes(name):
    """Nothing moves it, it has no state, and its gradient is no part of the clipped norm."""
    o = settings(
        name=name, lr_mults=((r"backbone/.*", 0.0),), weight_decay=0.1, clip_norm=1.0, momentum=0.0
    )
    grads = tree.map_leaves(lambda p, x: x * (1e6 if p.startswith("backbone") else 1.0), TRAIN)
    found, state = updates(o, grads)
    own, others = updates(o)
    for path, change in found.items():
        if path.startswith("backbone/"):
            np.testing.assert_array_equal(change, 0)
        else:
            np.testing.assert_array_equal(change, own[path])
    moments = {"adamw": ("mu", "nu"), "sgd": ("trace",)}[name]
    for kept in (optax.tree.get(state, kind) for kind in moments):
        assert tree.size(kept) == tree.size(TRAIN["head"])


def test_an_unused_pattern_names_the_nearest():
    o = settings(lr_mults=((r"head/linear/kernle", 0.1),))
    with pytest.raises(
        ConfigError, match="learning-rate pattern 'head/linear/kernle' matches"
    ) as e:
        optim.make(o, 10, TRAIN, LAYERS)
    assert "'head/linear/kernel'" in str(e.value)


def test_layer_decay():
    rates = optim.rates(settings(layer_decay=0.5, lr_mults=(("head/.*", 3.0),)), TRAIN, LAYERS)
    assert rates["head/linear/kernel"] == 3.0
    assert rates["backbone/norm/scale"] == 1.0
    assert [rates[FC1.format(i)] for i in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert rates["backbone/blocks/1/mlp/adapter/down/kernel"] == 0.25
    for stem in ("class_token", "registers", "position", "embed/kernel"):
        assert rates[f"backbone/{stem}"] == 0.0625


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("backbone/blocks/2/attn/qkv/kernel", 1),
        ("backbone/blocks/0/attn/adapter/down/kernel", 3),
        ("backbone/blocks/12/attn/qkv/kernel", 0),
        ("backbone/embed/kernel", 4),
        ("backbone/embedding", 0),
        ("backbone/class_token", 4),
        ("backbone/norm/scale", 0),
        ("head/linear/kernel", 0),
        ("backbone/adapter/prompts", 0),
    ],
)
def test_layers_below_the_output(path, below):
    assert LAYERS.below_output(path) == below


def test_a_part_that_trains_keeps_its_depth():
    """The first block is as deep where the last ones are frozen."""
    part = {"backbone": {"blocks": {0: TRAIN["backbone"]["blocks"][0]}}}
    rates = optim.rates(settings(layer_decay=0.5), part, LAYERS)
    assert set(rates.values()) == {0.125}


def test_clipping_by_the_norm_of_what_trains():
    norm = float(np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(TRAIN))))
    sgd = dict(name="sgd", momentum=0.0)
    found, _ = updates(settings(clip_norm=norm / 4, **sgd))
    plain, _ = updates(settings(**sgd))
    for path in plain:
        np.testing.assert_allclose(found[path], plain[path] / 4, rtol=1e-5)
    same, _ = updates(settings(clip_norm=2 * norm, **sgd))
    for path in plain:
        np.testing.assert_allclose(same[path], plain[path], rtol=1e-6)


def test_shapes_are_enough():
    o = settings(weight_decay=0.1, lr_mults=((".*bias", 0.0),), layer_decay=0.9)
    shapes = jax.eval_shape(lambda: TRAIN)
    state = jax.eval_shape(optim.make(o, 10, shapes, LAYERS).init, shapes)
    concrete = optim.make(o, 10, TRAIN, LAYERS).init(TRAIN)
    assert jax.tree.structure(state) == jax.tree.structure(concrete)


def test_small_leaves_of_one_rate_and_decay_are_one_vector(monkeypatch):
    monkeypatch.setattr(optim, "SMALL", 32)
    own = optim.make(settings(lr_mults=(("head/.*", 0.5),)), 10, TRAIN, LAYERS)
    packed = own.pack(TRAIN)
    large = {p for p, x in tree.leaves(TRAIN).items() if x.size > 32}
    assert large and large < packed.keys()
    vectors = {name: x for name, x in packed.items() if name not in large}
    assert len(vectors) == 4 and all(x.ndim == 1 for x in vectors.values())
    assert tree.size(packed) == tree.size(TRAIN)
    again = own.unpack(packed, jax.tree.map(jnp.zeros_like, TRAIN))
    jax.tree.map(np.testing.assert_array_equal, again, TRAIN)


def test_running_mean():
    old, new = {"a": jnp.zeros(3)}, {"a": jnp.ones(3)}
    for step, decay, rate in ((0, 0.9, 0.1), (10, 0.9, 11 / 20), (1000, 0.9, 0.9), (8, 0.2, 0.2)):
        found = optim.ema(old, new, decay, jnp.asarray(step))
        np.testing.assert_allclose(found["a"], 1 - rate, rtol=1e-5)
