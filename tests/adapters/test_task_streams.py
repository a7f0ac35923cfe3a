"""Methods of several tasks: their equations by hand, and how tasks depend on each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, model, tree
from dynadapt.adapters import tadformer
from dynadapt.backbones import Features
from dynadapt.context import Context
from dynadapt.errors import AttachError
from tests import task_streams
from tests.task_streams import METHODS, TASKS, backbone, features, images, network

pytestmark = pytest.mark.usefixtures("fast_compiling")

every_method = pytest.mark.parametrize("method", METHODS)
FILTERED = [("mtlora", {}), *(("tadformer", dict(filter=f)) for f in ("dynamic", "static"))]


@pytest.mark.parametrize(
    ("method", "given"), [*FILTERED, ("tadformer", dict(prompts=0, filter="dynamic"))]
)
def test_a_vit_equals_numpy(method, given):
    ours = backbone("vit", method, **given)
    x, grid, lead = images("vit", 2), (2, 2), 2
    found = features(ours, x)
    tokens = np.asarray(ours.entered(x, Context())[0], np.float64)
    for i in range(2):
        *_, last = stages = task_streams.ByHand(ours, len(TASKS), grid).run(tokens[i], 2)
        for t, task in enumerate(TASKS):
            *maps, leading = found[task]
            for m, streams in zip(maps, stages, strict=True):
                wanted = streams[t][lead:].reshape(*grid, -1)
                np.testing.assert_allclose(m[i], wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(leading[i], last[t][:lead], rtol=1e-4, atol=1e-4)


def test_scores_are_raw_or_scaled():
    """Without any weight on the scores, task attention is gelu(0): nothing of it is left."""
    none = backbone("vit", "tadformer", tpc_logit_scale=0.0)
    x, by_hand = images("vit", 1), task_streams.ByHand(none, len(TASKS), (2, 2))
    gates = none.adapter.gates
    gates[...] = jnp.full_like(gates[...], 30.0)  # the skip alone
    for m in features(none, x)["semseg"][:1]:
        np.testing.assert_allclose(m, 0.0, atol=1e-5)
    tokens = np.asarray(none.entered(x, Context())[0], np.float64)[0]
    by_hand.w["adapter/gates"] = np.full(2, 30.0)
    assert np.abs(by_hand.run(tokens, 2)[0][0]).max() > 0.1


def with_values(ours, values):
    """The network with these leaves, whose shapes are its own."""
    state = nnx.state(ours)
    assert {k: v.shape for k, v in tree.leaves(state).items()} == {
        k: v.shape for k, v in values.items()
    }
    nnx.update(ours, tree.replace(state, values))
    return ours


def only(values, rows):
    """The leaves of these tasks alone, in this order."""

    def chosen(path, x):
        own = path == "adapter/prompts" or path.endswith(("adapter/a", "adapter/b", "filter/taps"))
        return x[rows] if own or ("filter/bias" in path) else x

    return {path: chosen(path, x) for path, x in values.items()}


@pytest.mark.parametrize(("method", "given"), FILTERED)
def test_the_order_of_tasks_means_nothing(method, given):
    family = "vit" if given.get("filter") == "static" else "swin"
    ours, x = backbone(family, method, **given), images(family, 2)
    turned = backbone(family, method, tasks=TASKS[::-1], **given)
    with_values(turned, only(tree.leaves(nnx.state(ours)), np.array([1, 0])))
    found, wanted = features(turned, x), features(ours, x)
    for task in TASKS:
        for one, other in zip(found[task], wanted[task], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "given"), [*FILTERED, ("tadformer", dict(prompts=0, filter="static"))]
)
def test_a_task_that_is_left_out(method, given):
    """It changes nothing for the others, but where its prompt was in the attention of all."""
    ours, x = backbone("swin", method, **given), images("swin", 2)
    alone = backbone("swin", method, tasks=TASKS[:1], **given)
    with_values(alone, only(tree.leaves(nnx.state(ours)), np.array([0])))
    found, wanted = features(alone, x), features(ours, x)
    assert list(found) == ["semseg"]
    pairs = zip(found["semseg"][:-1], wanted["semseg"], strict=False)
    gaps = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]
    if method == "tadformer" and given.get("prompts", 1):
        assert min(gaps) > 1e-3
    else:
        assert max(gaps) < 1e-5


@every_method
def test_one_task_without_a_name(method):
    named = backbone("swin", method, tasks=("depth",))
    plain, x = backbone("swin", method, tasks=()), images("swin", 2)
    found = jax.jit(lambda network, x: network(x, Context()))(plain, x)
    assert isinstance(found, Features) and found.strides == (4, 4)
    for one, other in zip(found.maps, features(named, x)["depth"], strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@every_method
def test_the_maps_of_stages(method):
    found = features(backbone("swin", method), images("swin", 2))
    shapes = [(2, 3, 3, 16), (2, 3, 3, 16), (2, 0, 16)]  # behind the merging, and the last
    assert {t: [x.shape for x in v] for t, v in found.items()} == {t: shapes for t in TASKS}
    a, b = (found[t] for t in TASKS)
    assert all(np.abs(x - y).max() > 1e-3 for x, y in zip(a[:2], b[:2], strict=True))


@pytest.mark.parametrize("family", ["swin", "vit"])
def test_the_attention_of_tasks_is_recorded(family):
    """Of each stage the mean over heads, `1 b h w t`."""
    ours, x = backbone(family, "tadformer"), images(family, 2)

    def tape(network, x):
        ctx = Context()
        network(x, ctx)
        return [v for k, v in ctx.tape.items() if k.startswith(tadformer.ATTENTION)]

    found = jax.jit(tape)(ours, x)
    assert all(v.min() > -0.18 and v.std() > 1e-3 for v in found)  # behind a GELU
    if family == "swin":
        assert [v.shape for v in found] == [(1, 2, 6, 6, 2), (1, 2, 3, 3, 2)]
        return
    by_hand = task_streams.ByHand(ours, len(TASKS), (2, 2))
    by_hand.run(np.asarray(ours.entered(x, Context())[0], np.float64)[1], 2)
    wanted = np.reshape(by_hand.seen, (2, len(TASKS), -1))[..., 2:]  # two leading tokens
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one[0, 1].reshape(4, -1).T, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "given"), FILTERED)
def test_images_are_seen_one_by_one(method, given):
    ours, x = backbone("swin", method, **given), images("swin", 2)
    whole = features(ours, x)
    turned = features(ours, x[::-1])
    alone = features(ours, x[np.array([1, 1])])
    for task in TASKS:
        for own, a, b in zip(whole[task], turned[task], alone[task], strict=True):
            np.testing.assert_allclose(a, own[::-1], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(b[0], own[1], rtol=1e-4, atol=1e-4)


@every_method
@pytest.mark.slow
def test_bfloat16_is_close(method):
    ours = network("swin", method)
    x = images("swin", 2).astype(jnp.bfloat16)
    frozen = adapters.trainable(adapters.trains(method))
    graph, train, rest = nnx.split(ours, frozen, ...)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), nnx.filter_state(rest, nnx.Param))
    rest = nnx.merge_state(rest, half)

    @jax.jit
    def run(train, rest, x):
        return {t: o[0] for t, o in nnx.merge(graph, train, rest)(x, Context()).items()}

    found = run(train, rest, x)
    full = jax.jit(lambda n, x: n(x, Context()))(ours, x.astype(jnp.float32))
    for task, own in found.items():
        wanted = full[task][0]
        assert own.dtype == jnp.float32
        gap = np.linalg.norm(own - wanted) / np.linalg.norm(wanted - wanted.mean())
        assert 0 < gap < 6e-2, (task, gap)


@functools.cache
def slopes(method, **how):
    """Loss and gradients of all that trains, with all that is random on."""
    ours = network("swin", method, sizes=how, dropout=0.2)
    graph, train, stats, rest = nnx.split(
        ours, adapters.trainable(adapters.trains(method)), nnx.BatchStat, ...
    )
    x, key = images("swin", 2), jax.random.key(4, impl="unsafe_rbg")

    @jax.jit
    def run(train):
        def loss(train):
            network = nnx.merge(graph, train, stats, rest, copy=True)
            ctx = Context(train=True, key=key, drop_path=0.1)
            outputs = network(x, ctx)
            tape = {k: ctx.tape[k] for k in (model.VARIANCE, model.FINITE)}
            return sum(jnp.square(o - 1.0).mean() for (o,) in outputs.values()), tape

        return jax.value_and_grad(loss, has_aux=True)(train)

    (value, tape), gradient = run(train)
    return float(value), tape, {k: np.asarray(v) for k, v in tree.leaves(gradient).items()}


# What reaches no output: norms that are there as published, and what only the next stage would see.
SILENT = {
    "mtlora": "backbone/stages/1/blocks/2/mlp/fc2/adapter/low/[ab]|head/.*/mix/conv/bias",
    "tadformer": r"backbone/stages/1/blocks/[01]/attn/proj/adapter/norm/.*"
    "|head/.*/mix/conv/bias",
}


@every_method
@pytest.mark.slow
def test_all_that_trains_gets_a_gradient(method):
    value, tape, found = slopes(method)
    assert np.isfinite(value) and tape[model.FINITE].all() and 0 < tape[model.VARIANCE] < 1
    for path, g in found.items():
        assert np.isfinite(g).all(), path
        quiet = np.abs(g).max() < 1e-6
        assert quiet == tree.matches(SILENT[method], path), path


@pytest.mark.parametrize(
    "method", [pytest.param("mtlora", marks=pytest.mark.exhaustive), "tadformer"]
)
@pytest.mark.slow
def test_gradients_do_not_depend_on_the_form(method):
    value, _, found = slopes(method, scan=True, remat=True)
    wanted = slopes(method)
    assert value == pytest.approx(wanted[0], rel=1e-4)
    for path, g in wanted[2].items():
        assert np.abs(found[path] - g).max() <= 1e-3 * np.abs(g).max() + 1e-6, path


@pytest.mark.parametrize("kind", ["dynamic", "static", "none"])
def test_filters_of_a_window_see_their_window_alone(kind):
    """At proj a far window's tokens reach no other's filter; behind the MLP's they do."""
    ours = backbone("swin", "tadformer", filter=kind, sizes=dict(depths=(1,), heads=(1,), dim=8))
    layer = ours.stages[0].blocks[0].attn.proj.adapter
    u = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2, 16, 8)), jnp.float32)
    ctx = Context(grid=(4, 4))
    run = jax.jit(lambda u: layer.increments(u, ctx, 4))
    before, after = run(u), run(u.at[3].add(1.0))
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.abs(before[3] - after[3]).max() > 1e-3
    # A filter mixes the positions of its window; without one, a position is by itself.
    moved = np.abs(run(u.at[0, 0, 0].add(1.0)) - before)[0].max(-1)
    reached = {"dynamic": 16, "static": 4, "none": 1}[kind]
    assert (moved[0] > 1e-6).sum() == reached and not moved[1].any()


@every_method
def test_an_adapter_on_a_branch_that_is_re_wired_is_refused(method):
    ours = backbone("vit", method)
    adapters.adapt(ours, "adaptformer", rngs=nnx.Rngs(0), rank=2)
    with pytest.raises(AttachError, match="so the AdaptMlp on 'mlp' would do nothing"):
        jax.eval_shape(lambda x: ours(x, Context()), images("vit", 1))
