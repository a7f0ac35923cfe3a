import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dynadapt import adapters, attach, config, model, optim, step, tasks, tree
from dynadapt.context import Context
from dynadapt.data import images
from dynadapt.errors import TrainingError
from dynadapt.layers.batch_norm import BatchNorm
from dynadapt.train import check_bad, check_collapse
from tests import infos

pytestmark = pytest.mark.usefixtures("fast_compiling")

SIDE = 8
INFO = infos.pictures(side=SIDE)


def settings(method="iconformer", batch_size=8, **changes):
    """The config of a tiny model, without warm-up and decay."""
    c = config.default(backbone="vit_mini", method=method, data_set="digits")
    c.backbone.update(dict(dim=16, depth=2, heads=2, image_size=SIDE))
    if "rank" in c.adapter:
        c.adapter.rank = 3
    if "dropout" in c.adapter:
        c.adapter.dropout = 0.0
    c.input.batch_size = batch_size
    c.optim.update(dict(steps=10, lr=1e-2, warmup=0.0, weight_decay=0.0) | changes)
    return c


def batch(seed, size=8, mask=None):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(256, size=(size, SIDE, SIDE, 3), dtype=np.uint8),
        "label": rng.integers(5, size=size).astype(np.int32),
        "index": rng.integers(1000, size=size).astype(np.int32),
        "mask": np.ones(size, np.float32) if mask is None else np.asarray(mask, np.float32),
    }


class NormedHead(nnx.Module):
    """A head whose outputs are normalised over the batch."""

    def __init__(self, head):
        self.head, self.norm = head, BatchNorm(5)

    def __call__(self, features, ctx):
        return self.norm(self.head(features, ctx), ctx)


def ready(c, normed=False):
    """Task, parts of a model in which nothing is zero, optimizer, state and step."""
    task = tasks.from_config(c.task, INFO)
    network = model.build(c, task, infos.spec(INFO))
    if normed:
        network.head = NormedHead(network.head)
    rng = np.random.default_rng(4)
    noise = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), nnx.state(network))
    nnx.update(network, jax.tree.map(lambda x: x.astype(jnp.float32), noise))
    graph, train, stats, frozen = model.split(network, c)
    optimizer = optim.make(c.optim, c.optim.steps, train, model.layers(c))
    return (
        task,
        graph,
        frozen,
        optimizer,
        step.initial_state(train, stats, optimizer, c),
        step.make_step(graph, task, optimizer, c),
    )


def test_one_program_serves_all_rates_and_lengths():
    texts = []
    for rate, steps in ((1e-2, 10), (3e-2, 20)):
        c = settings("lora", lr=rate, steps=steps)
        task, graph, frozen, _, state, _ = ready(c)
        train, layers = state["train"], model.layers(c)
        tx_of = functools.partial(optim.traced, c.optim, train=train, layers=layers)
        rates = optim.hyper(c.optim, steps)
        key = jax.random.key(0)
        run = step.make_step(graph, task, tx_of, c)
        texts.append(run.lower(state, frozen, batch(0), key, rates).as_text())
    assert texts[0] == texts[1]


def values(x):
    return {path: np.array(v) for path, v in tree.leaves(x).items()}


def gradient_of(c, examples):
    """The gradient that a step hands to the optimizer: plain SGD's momentum after one step."""
    _, _, frozen, optimizer, state, run = ready(c)
    state, logs = run(state, frozen, examples, jax.random.key(0))
    return momentum(optimizer, state), logs


def momentum(optimizer, state):
    found = optax.tree.get(state["opt"], "trace")
    return values(optimizer.unpack(found, state["train"]))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 1, 0, 0, 1]])
def test_accumulation_changes_no_gradient(mask):
    examples = batch(1, mask=mask)
    c = settings(name="sgd")
    whole, logs = gradient_of(c, examples)
    c.optim.accumulate = 4
    parts, part_logs = gradient_of(c, examples)
    assert whole.keys() == parts.keys()
    for path, g in whole.items():
        assert np.linalg.norm(g) > 0
        assert np.linalg.norm(parts[path] - g) <= 1e-6 * np.linalg.norm(g), path
    np.testing.assert_allclose(part_logs["loss"], logs["loss"], rtol=1e-6)


def test_a_batch_without_an_example_teaches_nothing():
    found, logs = gradient_of(settings(name="sgd"), batch(1, mask=np.zeros(8)))
    assert float(logs["loss"]) == float(logs["gradient_norm"]) == 0.0
    assert not any(g.any() for g in found.values())


@pytest.mark.slow
def test_statistics_move_with_the_steps_that_count():
    """Those of the whole batch, however it is cut; a step that is not finite moves nothing."""
    found = []
    for accumulate in (1, 4):
        c = settings(name="sgd", accumulate=accumulate)
        _, _, frozen, _, state, run = ready(c, normed=True)
        before = values(state["stats"])
        assert set(before) == {"head/norm/mean", "head/norm/var"}
        state, _ = run(state, frozen, floats(batch(1)), jax.random.key(0))
        after = values(step.best(state)["stats"])
        assert all((after[p] != x).all() for p, x in before.items())
        broken = floats(batch(7))
        broken["image"][3] = np.nan
        state, _ = run(state, frozen, broken, jax.random.key(0))
        for path, x in values(state["stats"]).items():
            np.testing.assert_array_equal(x, after[path])
        found.append(after | values(state["train"]))
    for path, x in found[0].items():
        np.testing.assert_allclose(found[1][path], x, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_masked_example_has_no_gradient():
    mask = [1, 1, 0, 1, 1, 1, 0, 1]
    one, other = batch(2, mask=mask), batch(2, mask=mask)
    other["image"][[2, 6]] = 255
    other["label"][[2, 6]] = 0
    found, wanted = (gradient_of(settings(name="sgd"), b)[0] for b in (one, other))
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path])


@pytest.mark.slow
def test_the_gradient_is_that_of_the_trained_leaves():
    c = settings(name="sgd")
    found, logs = gradient_of(c, batch(3))
    task, graph, frozen, _, state, _ = ready(c)
    examples = batch(3)
    pixels = images.normalise(examples["image"], "inception")
    labels = examples["label"]

    def loss(train):
        logits = nnx.merge(graph, train, state["stats"], frozen)(pixels, Context())
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, wanted = jax.jit(jax.value_and_grad(loss))(state["train"])
    np.testing.assert_allclose(logs["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(logs["gradient_norm"], optax.tree.norm(wanted), rtol=1e-4)
    for path, g in values(wanted).items():
        np.testing.assert_allclose(found[path], g, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_running_mean():
    c = settings(ema=0.8)
    _, _, frozen, _, state, run = ready(c)
    mean = values(state["train"])
    assert values(state["ema"]).keys() == mean.keys()
    for number in range(4):
        state, _ = run(state, frozen, batch(number), jax.random.key(0))
        rate = min(0.8, (1 + number) / (10 + number))
        new = values(state["train"])
        mean = {p: rate * x + (1 - rate) * new[p] for p, x in mean.items()}
    for path, x in values(state["ema"]).items():
        np.testing.assert_allclose(x, mean[path], rtol=1e-4, atol=1e-6)
    assert step.best(state)["train"] is state["ema"]
    del state["ema"]
    assert step.best(state)["train"] is state["train"]
    assert step.best(state)["stats"] is state["stats"]


def test_the_variance_of_features_is_followed():
    _, _, frozen, _, state, run = ready(settings())
    assert not step.collapsed(state["variance"])
    seen = []
    for number in range(3):
        state, logs = run(state, frozen, batch(number), jax.random.key(0))
        value = float(logs[model.VARIANCE])
        assert 0 < value < 1
        seen.append(0.9 * seen[-1] + 0.1 * value if seen else value)
    found = {k: float(v) for k, v in state["variance"].items()}
    assert found == pytest.approx({"now": seen[-1], "most": max(seen)}, rel=1e-4)


def test_features_that_are_the_same_for_all_images_have_collapsed(capsys):
    _, _, frozen, _, state, run = ready(settings())
    state, _ = run(state, frozen, batch(0), jax.random.key(0))
    same = batch(1)
    same["image"][:] = same["image"][:1]
    for _ in range(25):
        state, logs = run(state, frozen, same, jax.random.key(0))
    assert logs[model.VARIANCE] < 1e-6 and step.collapsed(state["variance"])
    assert check_collapse(state, False, 26, print) and check_collapse(state, True, 27, print)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "at step 26 the features hardly differ" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_skipped_and_named(accumulate):
    c = settings(ema=0.5, accumulate=accumulate, bad_steps=2)
    _, _, frozen, _, state, run = ready(c)
    key, said = jax.random.key(0), []

    def kept(state):
        return {f"{k}/{p}": x for k in ("train", "opt", "ema") for p, x in values(state[k]).items()}

    for number in range(2):
        state, _ = run(state, frozen, floats(batch(number)), key)
    assert check_bad(state, c, 0, said.append) == 0 and not said
    before = kept(state)
    broken = floats(batch(7))
    broken["image"][3, 2, 2, 1] = np.nan
    state, logs = run(state, frozen, broken, key)
    assert not np.isfinite(logs["loss"]) and logs["bad"] == 1
    for path, x in kept(state).items():
        np.testing.assert_array_equal(x, before[path], err_msg=path)
    assert check_bad(state, c, 0, said.append) == 1
    assert "not finite at step 3;" in said[0] and str(broken["index"].tolist()) in said[0]
    # It goes on, up to as many as end a run; from there on nothing moves.
    state, logs = run(state, frozen, floats(batch(8)), key)
    assert logs["bad"] == 0
    last = kept(state)
    assert any((last[p] != x).any() for p, x in before.items())
    for number in (9, 10):
        again = floats(batch(number))
        again["image"][:] = np.nan if number == 9 else 1.0
        state, _ = run(state, frozen, again, key)
    for path, x in kept(state).items():
        np.testing.assert_array_equal(x, last[path], err_msg=path)
    with pytest.raises(TrainingError, match="not finite at step 5;.*bad step 2"):
        check_bad(state, c, 1, said.append)
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [dict(lr=3e38), dict(lr=3e38, name="sgd"), dict(ema=0.5, lr=3e38)]
)
def test_an_update_that_is_not_finite_is_skipped(given):
    """The loss and its gradient are finite, the step or the second one after it is not."""
    c = settings(**given)
    _, _, frozen, _, state, run = ready(c)
    for number in range(4):
        state, logs = run(state, frozen, batch(number), jax.random.key(0))
        assert step.finite((state["train"], state["opt"], state.get("ema", ())))
    assert logs["bad"] == 1 and state["bad"]["count"] >= 3


def floats(examples):
    return {**examples, "image": examples["image"].astype(np.float32)}


def test_keys_differ_from_step_to_step():
    """A rate of zero keeps the model: only the key can change the loss."""
    c = settings("adaptformer", lr_mults=((".*", 0.0),))
    c.adapter.dropout = 0.5
    _, _, frozen, _, state, run = ready(c)
    losses = []
    for _ in range(3):
        state, logs = run(state, frozen, batch(5), jax.random.key(0))
        losses.append(float(logs["loss"]))
    assert len(set(losses)) == 3


@pytest.mark.slow
def test_losses_of_layers_join_the_loss():
    c = settings(name="sgd")
    task, graph, frozen, optimizer, state, _ = ready(c)
    network = nnx.merge(graph, state["train"], state["stats"], frozen)

    class Balance(nnx.Module):
        def __init__(self, weight):
            self.weight = nnx.Param(jnp.asarray(weight))

        def __call__(self, host, x, ctx):
            ctx.record("loss/balance", self.weight[...] ** 2)
            ctx.record("other", self.weight[...])
            return host.bare(x, ctx)

    attach.attach(network, r"backbone/blocks/\d+/attn", lambda host: Balance(3.0))
    graph, train, stats, frozen = model.split(network, c)
    optimizer = optim.make(c.optim, 10, train, model.layers(c))
    run = step.make_step(graph, task, optimizer, c)
    state = step.initial_state(train, stats, optimizer, c)
    state, logs = run(state, frozen, batch(1), jax.random.key(0))
    assert "other" not in logs and float(logs["loss/balance"]) == pytest.approx(18)
    plain, plain_logs = gradient_of(settings(name="sgd"), batch(1))
    assert float(logs["loss"]) == pytest.approx(float(plain_logs["loss"]) + 18, rel=1e-5)
    found = momentum(optimizer, state)
    assert found["backbone/blocks/0/attn/adapter/weight"] == pytest.approx(6)


@pytest.mark.parametrize(
    "method", ["iconformer", pytest.param("lora", marks=pytest.mark.exhaustive)]
)
@pytest.mark.slow
def test_a_step_costs_what_a_step_by_hand_costs(method, compiled_as_for_users):
    """Frozen weights get no gradient: the FLOPs are those of the trained leaves' alone."""
    c = settings(method, batch_size=16)
    c.backbone.update(dict(dim=32, image_size=16))
    task, graph, frozen, optimizer, state, run = ready(c)
    examples = batch(1, size=16)
    examples["image"] = np.zeros((16, 16, 16, 3), np.uint8)
    flops = run.lower(state, frozen, examples, jax.random.key(0)).compile().cost_analysis()["flops"]

    adam = optax.adamw(optax.cosine_decay_schedule(1e-2, 10), weight_decay=0.0)

    @jax.jit
    def by_hand(train, opt, frozen, examples):
        pixels = images.normalise(examples["image"], "inception")

        def loss(train):
            logits = nnx.merge(graph, train, state["stats"], frozen)(pixels, Context(train=True))
            return optax.softmax_cross_entropy_with_integer_labels(logits, examples["label"]).mean()

        value, gradient = jax.value_and_grad(loss)(train)
        updates, opt = adam.update(gradient, opt, train)
        return optax.apply_updates(train, updates), opt, value

    train = state["train"]
    lowered = by_hand.lower(train, adam.init(train), frozen, examples)
    wanted = lowered.compile().cost_analysis()["flops"]
    assert 0.9 * wanted < flops <= 1.02 * wanted


def test_the_state_is_donated():
    c = settings("linear")
    _, _, frozen, _, state, run = ready(c)
    before = jax.tree.leaves(state["train"])[0]
    kept = jax.tree.leaves(frozen)[0]
    run(state, frozen, batch(0), jax.random.key(0))
    assert before.is_deleted() and not kept.is_deleted()


def test_one_compilation_for_all_steps():
    c = settings("linear")
    _, _, frozen, _, state, run = ready(c)
    for number in range(3):
        state, _ = run(state, frozen, batch(number), jax.random.key(number))
    assert run._cache_size() == 1


@pytest.mark.slow
def test_layers_below_what_trains_get_no_gradient(compiled_as_for_users):
    """A linear probe's gradient needs no backward pass through the backbone."""
    c = settings("linear")
    task, graph, frozen, optimizer, state, run = ready(c)
    lowered = run.lower(state, frozen, batch(0), jax.random.key(0))
    forward = jax.jit(
        functools.partial(lambda g, t, f, x: nnx.merge(g, t, {}, f)(x, Context()), graph)
    )
    x = np.zeros((8, SIDE, SIDE, 3), np.float32)
    base = forward.lower(state["train"], frozen, x).compile().cost_analysis()["flops"]
    assert lowered.compile().cost_analysis()["flops"] < 1.2 * base
    assert adapters.trains("linear") == ()
