"""Several adapters on one frozen backbone, swapped by name or mixed in one batch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, files, serving, tree
from dynadapt.commands.config_file import read_config
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.runs import product
from tests import products

pytestmark = [pytest.mark.usefixtures("fast_compiling"), pytest.mark.slow]

TINY = str(Path(__file__).with_name("configs_tiny.py"))


def write(folder, method="iconformer", seed=0, change=None):
    """An adapter's folder as a run leaves it, with random values."""
    config = read_config(TINY, f"method={method}")
    if change:
        change(config)
    return products.leave(folder, config, seed)


def parts_of(folder):
    """The values and the card in an adapter's folder."""
    return files.read_tensors(folder / product.TENSORS), files.read_json(folder / product.CARD)


def pictures(count, seed=7):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Folders of three adapters of one method."""
    work = tmp_path_factory.mktemp("serving")
    return {name: write(work / name, seed=i) for i, name in enumerate(("a", "b", "c"))}


def test_each_name_gives_its_own_models_answer(three):
    host = serving.host(three["a"])
    answer, images = serving.make_answer(host), pictures(4)
    found = {}
    for name, folder in three.items():
        tree_ = serving.load_adapter(host, folder)
        found[name] = answer(tree_, host.frozen, images)
        wanted = products.network(folder)(images, Context())
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
    for one, other in ("ab", "bc", "ca"):
        assert np.abs(found[one] - found[other]).max() > 0.1


def test_a_swap_compiles_nothing(three):
    host = serving.host(three["a"])
    trees = {name: serving.load_adapter(host, folder) for name, folder in three.items()}
    answer, images = serving.make_answer(host), pictures(4)
    answer(trees["a"], host.frozen, images).block_until_ready()
    events = []

    def listen(event, seconds, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for name in "bcab":
            answer(trees[name], host.frozen, images).block_until_ready()
        swapped = list(events)
        answer(trees["a"], host.frozen, pictures(5)).block_until_ready()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert swapped == [] and answer._cache_size() == 2
    assert any("compile" in event for event in events)  # the listener does hear a compilation


def test_no_data_set_is_needed(tmp_path):
    """The card has the classes: a host is built where the data is not."""

    def change(config):
        config.data.name = "digits"

    folder = write(tmp_path / "adapter", change=change)
    leaves, card = parts_of(folder)
    card["config"]["data"] = {**card["config"]["data"], "name": "folder", "path": "/none"}
    product.save(folder, leaves, card)
    host = serving.host(folder)
    answer = serving.make_answer(host)(serving.load_adapter(host, folder), host.frozen, pictures(2))
    assert answer.shape == (2, 10)


QUICK = ("adapter_x", "dora", "iconformer", "norm_tune", "vfm_adapter", "vpt")


@pytest.mark.parametrize(
    "method",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in adapters.names()
        if name != "dapt"  # takes point clouds
    ],
)
def test_each_image_of_a_batch_has_its_own_adapter(method, tmp_path):
    folders = [write(tmp_path / str(i), method, seed=i) for i in range(3)]
    host = serving.host(folders[0])
    trees = [serving.load_adapter(host, folder) for folder in folders]
    mixed, bank = serving.make_mixed(host), serving.stack(trees)
    which, images = jnp.asarray([2, 0, 1, 2, 2, 0, 1], jnp.int32), pictures(7)
    found = mixed(host.frozen, bank, which, images)
    answer = serving.make_answer(host)
    each = jnp.stack([answer(t, host.frozen, images) for t in trees])
    wanted = jnp.stack([each[n, i] for i, n in enumerate(which)])
    scale = max(1.0, float(jnp.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)
    assert np.abs(each[0] - each[1]).max() > 1e-2
    # Another choice is another value, not another program.
    mixed(host.frozen, bank, which[::-1], images)
    assert mixed._cache_size() == 1


def matrix_products(jaxpr):
    """All matrix products of a jaxpr, those inside calls too, as (batched axes, shapes)."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (_, (batch, _)) = equation.params["dimension_numbers"]
            yield len(batch), *(v.aval.shape for v in equation.invars)
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from matrix_products(inner)


def test_frozen_products_stay_whole(three):
    """The frozen kernels are multiplied once for the whole batch, not copied for each image."""
    host = serving.host(three["a"])
    bank = serving.stack([serving.load_adapter(host, f) for f in three.values()])
    which, images = jnp.zeros(5, jnp.int32), pictures(5)
    traced = jax.make_jaxpr(serving.make_mixed(host))(host.frozen, bank, which, images)
    frozen = {x.shape for x in jax.tree.leaves(host.frozen) if x.ndim == 2}
    found = [p for p in matrix_products(traced.jaxpr) if p[2] in frozen]
    assert len(found) == 2 * 4  # qkv, proj, fc1, fc2 of two blocks
    assert all(batched == 0 and left[0] == 5 for batched, left, _ in found)
    own = [p for p in matrix_products(traced.jaxpr) if p[0] and p[2][-2:] in ((16, 4), (4, 16))]
    assert len(own) == 2 * 2  # down and up


def test_a_number_that_the_bank_does_not_have(three):
    host = serving.host(three["a"])
    bank = serving.stack([serving.load_adapter(host, f) for f in three.values()])
    mixed = serving.make_mixed(host)
    found = mixed(host.frozen, bank, jnp.asarray([0, 3, -1], jnp.int32), pictures(3))
    assert np.isfinite(found[0]).all() and np.isnan(found[1:]).all()
    with pytest.raises(ConfigError, match="2 images need 2 adapter numbers, not an array of shape"):
        mixed(host.frozen, bank, jnp.zeros(3, jnp.int32), pictures(2))


def test_heads_and_structures_must_agree(three):
    host = serving.host(three["a"])
    tree_ = serving.load_adapter(host, three["a"])
    with pytest.raises(ConfigError, match="at least one"):
        serving.stack([])
    other = tree.map_leaves(lambda p, x: x[..., :5] if p.startswith("train/head/") else x, tree_)
    with pytest.raises(
        ConfigError, match=r"0 and 2 differ at train/head/linear/bias \(\(10,\) and \(5,"
    ):
        serving.stack([tree_, tree_, other])


def rank(config):
    config.adapter.rank = 3


def scale(config):
    config.adapter.scale = 0.5


def seed(config):
    config.seed = 4


def width(config):
    config.backbone.dim = 32


def pool(config):
    config.task.pool = "max"


def trainable(config):
    config.trainable = ("backbone/norm/.*",)


def normalise(config):
    config.input.normalise = "imagenet"


@pytest.mark.parametrize(
    "method, change, words",
    [
        ("lora", None, "method: 'iconformer' -> 'lora'"),
        ("iconformer", rank, "adapter.rank: 4 -> 3"),
        ("iconformer", scale, "adapter.scale: 0.1 -> 0.5"),
        ("iconformer", seed, "weights: 'random, seed 0' -> 'random, seed 4'"),
        ("iconformer", width, "backbone.dim: 16 -> 32"),
        ("iconformer", pool, "for another head or structure"),
        ("iconformer", trainable, "trainable: "),
        ("iconformer", normalise, "normalise: 'inception' -> 'imagenet'"),
    ],
)
def test_an_adapter_of_another_model(three, tmp_path, method, change, words):
    host = serving.host(three["a"])
    folder = write(tmp_path / "other", method, change=change)
    with pytest.raises(CheckpointError) as caught:
        serving.load_adapter(host, folder)
    text = str(caught.value)
    assert words in text and str(folder) in text and str(three["a"]) in text and "\n" not in text


def test_what_acts_in_training_alone_may_differ(three, tmp_path):
    def change(config):
        config.adapter.dropout = 0.3
        config.backbone.remat = True
        config.task.label_smoothing = 0.1
        config.optim.lr = 0.5

    host = serving.host(three["a"])
    folder = write(tmp_path / "other", seed=5, change=change)
    found = serving.make_answer(host)(serving.load_adapter(host, folder), host.frozen, pictures(3))
    wanted = products.network(folder)(pictures(3), Context())
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_damage_and_other_weights(three, tmp_path):
    host = serving.host(three["a"])
    folder = write(tmp_path / "broken", seed=5)
    leaves, card = parts_of(folder)
    product.save(folder, {**leaves, "head/strange": leaves["head/linear/bias"]}, card)
    with pytest.raises(CheckpointError, match="head/strange"):
        serving.load_adapter(host, folder)
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="was changed"):
        serving.load_adapter(host, folder)


def test_weights_are_known_by_their_hash(tmp_path):
    """A file of other values is refused, one of another name is not."""
    from dynadapt import backbones

    sizes = dict(dim=16, depth=2, heads=2, image_size=8)
    files_ = {}
    for name, number in (("one", 0), ("same", 0), ("other", 1)):
        state = nnx.state(backbones.create("vit_mini", rngs=nnx.Rngs(number), **sizes))
        files_[name] = tmp_path / f"{name}.safetensors"
        files.write_tensors(files_[name], tree.leaves(state))

    def with_file(name):
        def change(config):
            config.backbone.weights = str(files_[name])

        return write(tmp_path / name, change=change)

    host = serving.host(with_file("one"))
    folder, other = with_file("same"), with_file("other")
    files_["same"].unlink()
    serving.load_adapter(host, folder)
    with pytest.raises(CheckpointError, match="weights: "):
        serving.load_adapter(host, other)
    files_["one"].write_bytes(files_["other"].read_bytes())
    with pytest.raises(CheckpointError, match="not those that the adapter was trained on"):
        serving.host(tmp_path / "one")
