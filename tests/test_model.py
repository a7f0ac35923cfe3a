import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, config, files, model, tasks, tree
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError
from tests import infos, task_streams

pytestmark = pytest.mark.usefixtures("fast_compiling")

INFO = infos.pictures()
SPEC = infos.spec(INFO)


def settings(method="iconformer", **changes):
    c = config.default(backbone="vit_mini", method=method, data_set="digits")
    c.backbone.update(dict(dim=16, depth=2, heads=2, image_size=8))
    if "rank" in c.adapter:
        c.adapter.rank = 2
    c.update(changes)
    return c


def task(c):
    return tasks.from_config(c.task, INFO)


def values(x):
    return {path: np.array(v) for path, v in tree.leaves(x).items()}


def of(c):
    return values(nnx.state(model.build(c, task(c), SPEC)))


@pytest.mark.slow
def test_a_model_is_a_head_on_a_backbone():
    c = settings()
    network = model.build(c, task(c), SPEC)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
    network.head.linear.kernel[...] = jnp.ones((16, 5))
    logits = network(x, Context())
    np.testing.assert_allclose(logits, network.head(network.backbone(x, Context()), Context()))
    assert logits.shape == (2, 5) and np.ptp(logits[:, 0]) >= 0
    assert {p.split("/")[0] for p in values(nnx.state(network))} == {"backbone", "head"}


@pytest.mark.parametrize("method", ["iconformer", "vfm_adapter", "lora", "vpt", "full"])
def test_an_abstract_model_has_the_same_paths_shapes_and_graph(method):
    c = settings(method)
    real, shapes = model.build(c, task(c), SPEC), model.abstract(c, task(c), SPEC)
    assert nnx.graphdef(real) == nnx.graphdef(shapes)
    found = {p: (x.shape, x.dtype) for p, x in tree.leaves(nnx.state(shapes)).items()}
    assert found == {p: (x.shape, x.dtype) for p, x in tree.leaves(nnx.state(real)).items()}
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(nnx.state(shapes)))


def test_random_weights_depend_on_the_seed_each_part_on_its_own():
    one, same, other = (of(settings(seed=s)) for s in (0, 0, 1))
    bare = of(settings("linear"))
    for path, x in one.items():
        np.testing.assert_array_equal(x, same[path])
        if "adapter" not in path:
            np.testing.assert_array_equal(x, bare[path])  # no method changes what lies under it
    for path in ("backbone/blocks/0/mlp/fc1/kernel", "backbone/blocks/0/mlp/adapter/down/kernel"):
        assert not np.allclose(one[path], other[path])


def test_weights_are_loaded_before_the_adapter_is_attached(tmp_path):
    c = settings()
    given = values(nnx.state(model.bare_backbone(settings(seed=5))))
    files.write_tensors(tmp_path / "w.safetensors", given)
    c.backbone.weights = str(tmp_path / "w.safetensors")
    found = of(c)
    for path, x in given.items():
        np.testing.assert_array_equal(found[f"backbone/{path}"], x)
    c.backbone.weights = str(tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match=r"did you mean 'w\.safetensors'"):
        model.build(c, task(c), SPEC)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_casts_the_frozen_half_alone(dtype):
    c = settings()
    c.compute.frozen_dtype = dtype
    for network in (model.build(c, task(c), SPEC), model.abstract(c, task(c), SPEC)):
        _, train, _, frozen = model.split(network, c)
        assert {x.dtype for x in jax.tree.leaves(train)} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.dtype(dtype)}


def test_trainable_patterns_join_the_methods():
    c = settings("bitfit", trainable=("backbone/norm/.*", "backbone/class_token"))
    assert model.patterns(c) == ("backbone/(.*/)?bias", "backbone/norm/.*", "backbone/class_token")
    _, train, _, frozen = model.split(model.abstract(c, task(c), SPEC), c)
    found = set(tree.leaves(train))
    assert {"backbone/norm/scale", "backbone/class_token", "head/linear/bias"} <= found
    assert "backbone/blocks/0/mlp/norm/bias" in found
    assert not found & set(tree.leaves(frozen))
    assert "backbone/blocks/0/mlp/norm/scale" in tree.leaves(frozen)


def test_a_trainable_pattern_that_matches_nothing_names_the_nearest():
    c = settings(trainable=("backbone/nrom/.*",))
    with pytest.raises(ConfigError, match=r"trainable 'backbone/nrom/\.\*' matches nothing; did"):
        model.split(model.abstract(c, task(c), SPEC), c)


def test_image_size_zero_is_the_variants_own():
    c = settings()
    assert model.bare_backbone(c).image_size == 8
    c.backbone.image_size = 0
    assert model.bare_backbone(c).image_size == 32


@pytest.mark.parametrize("tokens", [0, 2])
def test_the_variance_of_features_by_hand(tokens):
    rng = np.random.default_rng(2)
    m = rng.normal(size=(5, 3, 3, 4)).astype(np.float32) + 1
    t = rng.normal(size=(5, tokens, 4)).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1], np.float32)
    seen = (t[:, 0] if tokens else m.mean((1, 2)))[mask > 0]
    found = model.variance(backbones.Features((jnp.asarray(m),), jnp.asarray(t)), mask)
    np.testing.assert_allclose(found, seen.var(0).sum() / np.square(seen).mean(0).sum(), rtol=1e-5)
    same = backbones.Features((jnp.ones_like(m),), jnp.ones_like(t))
    assert model.variance(same) == 0


class Answers(nnx.Module):
    """In the place of a backbone: features of two tasks, of which the first are always finite."""

    def __call__(self, x, ctx):
        tokens, maps = jnp.zeros((len(x), 0, 3)), {"near": jnp.nan_to_num(x), "far": 1.0 + 0.1 * x}
        return {task: backbones.Features((m,), tokens) for task, m in maps.items()}


def test_of_several_tasks_the_least_variance_is_recorded_and_whether_all_are_finite():
    network = model.Model(Answers(), lambda features, ctx: sorted(features))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 3)), jnp.float32)
    ctx = Context()
    assert network(x.at[1, 0, 0, 0].set(jnp.nan), ctx) == ["far", "near"]
    assert ctx.tape[model.FINITE].tolist() == [True, False, True]
    ctx = Context()
    network(x, ctx)
    wanted = [model.variance(f) for f in Answers()(x, ctx).values()]
    assert ctx.tape[model.VARIANCE] == min(wanted) < max(wanted)


@pytest.mark.slow
def test_several_tasks_may_see_a_batch_in_parts():
    network, x = task_streams.network("vit", "mtlora"), task_streams.images("vit", 4)
    one, two = Context(), Context()
    whole, cut = network(x, one), network(x, two, parts=2)
    for task, (found,) in cut.items():
        np.testing.assert_allclose(found, whole[task][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(two.tape[model.VARIANCE], one.tape[model.VARIANCE], rtol=1e-3)


def test_one_task_has_no_head_for_the_features_of_several():
    c = settings("tadformer")
    model.abstract(c, task(c), SPEC)
    c.adapter.tasks = ("semseg", "normals")
    with pytest.raises(ConfigError, match="the adapter has the tasks normals, semseg, and this"):
        model.abstract(c, task(c), SPEC)
