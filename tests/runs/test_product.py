"""Adapters on disk: exact, every damage is noticed, and every one ever written can be read."""

import csv
import dataclasses
import json
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, config, data, evaluate, files, inputs, model, sharding, tasks, tree
from dynadapt.commands.config_file import read_config
from dynadapt.data import labelled
from dynadapt.errors import CheckpointError, UnknownName
from dynadapt.runs import product
from tests import infos, products

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")
FORMATS = Path(__file__).with_name("formats")
TENSORS = {
    "backbone/blocks/0/mlp/adapter/up/kernel": np.random.default_rng(3).normal(size=(5, 7)),
    "head/linear/bias": np.arange(3, dtype=np.float32),
}

COUNTS = {"trained": 38, "backbone": 1000}


def card(**changes):
    """What a run on digits says of its adapter."""
    c = config.resolve(config.default(backbone="vit_mini", method="lora", data_set="digits"))
    return product.card(c, labelled("digits", "abc", size=(8, 8)), COUNTS, {"top1": 1.0}) | changes


def save(folder, leaves=None, **changes):
    leaves = {k: v.astype(np.float32) for k, v in TENSORS.items()} if leaves is None else leaves
    return product.save(folder, leaves, card(**changes))


@pytest.fixture
def adapter(tmp_path):
    save(tmp_path / "adapter")
    return tmp_path / "adapter"


def flip(file, position, bit):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def test_a_round_trip(adapter):
    found = product.read(adapter)
    assert set(found.leaves) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found.leaves[name], value.astype(np.float32))
    assert found.card["method"] == found.config.adapter.name == "lora"
    assert found.card["backbone"] == found.config.backbone.name == "vit_mini"
    assert found.card["counts"] == COUNTS
    assert found.card["format"] == product.FORMAT
    assert found.card["bytes"] == (adapter / product.TENSORS).stat().st_size
    assert set(found.card["tensor_sha256"]) == set(TENSORS)
    assert found.info == labelled("digits", "abc", size=(8, 8))
    assert found.info.classes == ("a", "b", "c")
    assert found.spec["image"].shape == (1, 32, 32, 3)  # resized, as the config says
    assert found.task.headline == "top1"


def test_every_flipped_bit_is_noticed(adapter):
    rng = random.Random(2)
    for name in (product.TENSORS, product.CARD):
        file = adapter / name
        whole = file.read_bytes()
        edges = [0, 1, 7, 8, 9, len(whole) - 1]  # the header's length and its first bytes
        for position in {*edges, *rng.sample(range(len(whole)), 60)}:
            flip(file, position, rng.randrange(8))
            if name == product.CARD and same_json(file, whole):
                file.write_bytes(whole)  # white space, which holds nothing
                continue
            with pytest.raises(CheckpointError):
                product.read(adapter)
            file.write_bytes(whole)
    product.read(adapter)


def same_json(file, whole):
    try:
        return json.loads(file.read_bytes()) == json.loads(whole)
    except ValueError:
        return False


def test_faults_name_the_tensor(adapter):
    file = adapter / product.TENSORS
    flip(file, file.stat().st_size - 1, 0)
    found = list(product.faults(adapter, files.read_json(adapter / product.CARD)))
    assert found == ["adapter.safetensors was changed", "tensor head/linear/bias was changed"]


def test_a_missing_tensor_is_noticed(adapter):
    leaves = {"head/linear/bias": np.arange(3, dtype=np.float32)}
    files.write_tensors(adapter / product.TENSORS, leaves)
    with pytest.raises(CheckpointError, match="adapter/up/kernel"):
        product.read(adapter)


@pytest.mark.parametrize("name", [product.TENSORS, product.CARD])
def test_a_missing_file_is_named(name, adapter):
    (adapter / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        product.read(adapter)


def test_no_adapter_at_all(adapter):
    shutil.rmtree(adapter)
    with pytest.raises(CheckpointError):
        product.read(adapter)


def test_an_edited_card_is_noticed(adapter):
    values = files.read_json(adapter / product.CARD)
    files.write_json(adapter / product.CARD, {**values, "method": "linear"})
    with pytest.raises(CheckpointError, match="adapter.json was changed"):
        product.read(adapter)


def test_a_card_of_another_adapter_is_noticed(adapter, tmp_path):
    save(tmp_path / "other", {"x": np.ones(3, np.float32)})
    shutil.copy(tmp_path / "other" / product.CARD, adapter / product.CARD)
    with pytest.raises(CheckpointError, match="adapter.safetensors was changed"):
        product.read(adapter)


def test_saving_over_an_adapter(adapter):
    save(adapter, {"x": np.ones(3, np.float32)})
    assert list(product.read(adapter).leaves) == ["x"]


def test_a_later_format_is_refused_by_name(tmp_path):
    save(tmp_path, format=product.FORMAT + 1, versions={"dynadapt": "9.0"})
    with pytest.raises(CheckpointError, match=r"of format 3, .* up to 2; .* by dynadapt 9\.0"):
        product.read(tmp_path)


def test_a_field_that_a_later_version_added_takes_its_default(tmp_path):
    values = card()
    del values["config"]["optim"]["ema"]
    product.save(tmp_path, {"x": np.ones(3, np.float32)}, values)
    assert product.read(tmp_path).config.optim.ema == config.default().optim.ema


@pytest.mark.parametrize("method", adapters.names())
def test_the_file_holds_what_is_trained_and_no_more(method, tmp_path):
    c = read_config(TINY, f"method={method}")
    info = infos.fitting(c)
    network = model.build(c, tasks.from_config(c.task, info), infos.spec(info))
    parts = model.split(network, c)
    leaves = product.leaves({"train": parts.train, "stats": parts.stats})
    written = product.save(tmp_path, leaves, {})
    held = set(files.read_tensors(tmp_path / product.TENSORS))
    assert held == set(tree.leaves(parts.train)) and not held & set(tree.leaves(parts.frozen))
    size = tree.nbytes(parts.train)
    assert size < written["bytes"] <= size + 8 * 1024


def test_leaves_that_do_not_fit_are_named(tmp_path):
    c = read_config(TINY, "method=lora")
    folder = products.leave(tmp_path, c)
    leaves = files.read_tensors(folder / product.TENSORS)
    values = files.read_json(folder / product.CARD)
    lost = leaves.pop("head/linear/bias")
    for wrong in (leaves, {**leaves, "head/linear/bias": lost[:-1]}):
        product.save(folder, wrong, values)
        with pytest.raises(CheckpointError, match=r"does not fit its model at \['head/linear/bias"):
            product.load(folder)


@pytest.mark.slow
def test_a_loaded_model_has_the_trained_values(tmp_path):
    c = read_config(TINY, "method=lora")
    found = product.load(products.leave(tmp_path, c, seed=3))
    own = product.leaves({"train": found.parts.train, "stats": found.parts.stats})
    assert own.keys() == found.adapter.leaves.keys()
    for path, x in own.items():
        np.testing.assert_array_equal(x, found.adapter.leaves[path])
    assert (found.config, found.card) == (found.adapter.config, found.adapter.card)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
    logits = nnx.merge(*found.parts)(images, model.Context())
    assert logits.shape == (2, 10) and np.ptp(logits) > 0.1


def test_no_data_set_is_opened(tmp_path, monkeypatch):
    folder = products.leave(tmp_path, read_config(TINY, "method=linear"))
    monkeypatch.setattr(data, "from_config", None)
    assert product.load(folder).task.classes == tuple("0123456789")


def test_hash_of_weights(tmp_path):
    c = config.resolve(config.default(data_set="digits"))
    assert product.weights_hash(c) == ""
    file = tmp_path / "w.safetensors"
    files.write_tensors(file, {"a": np.arange(3.0)})
    c.backbone.weights = str(file)
    first = product.weights_hash(c)
    files.write_tensors(file, {"a": np.arange(4.0)})
    assert len(first) == 64 and product.weights_hash(c) != first
    found = product.SavedAdapter(tmp_path, c, labelled("x", "ab"), {}, {"weights_sha256": first})
    with pytest.raises(CheckpointError, match="are not those that the adapter was trained on"):
        product.check_backbone(found)
    product.check_backbone(
        dataclasses.replace(found, card={"weights_sha256": product.weights_hash(c)})
    )


def test_a_method_that_is_gone_is_named(tmp_path):
    values = card()
    values["config"]["adapter"]["name"] = "lorra"
    product.save(tmp_path, {"x": np.ones(3, np.float32)}, values)
    with pytest.raises(UnknownName, match="did you mean 'lora'"):
        product.load(tmp_path)


def answered(folder):
    """Class and probability of every digit of the test split, as an adapter answers here."""
    found = product.load(folder)
    assert found.config.input.eval_split == "test"
    mesh, parts = sharding.make_mesh(devices=jax.devices()[:1]), found.parts
    split = inputs.open_split(found.config, "eval")
    rows = []

    def record(answer, row):
        rows.append((int(row["index"]), answer["classes"][0], answer["probabilities"][0]))

    step = evaluate.make_step(parts.graph, found.task, found.config)
    kept = {"train": parts.train, "stats": parts.stats}
    batches = inputs.eval_batches(found.config, split, mesh)
    values = evaluate.evaluate(step, found.task, kept, parts.frozen, batches, mesh, record)
    return found, rows, values


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(FORMATS.iterdir()), ids=lambda p: p.name)
def test_every_format_is_read_and_answers_as_it_did(folder):
    """Folders as they were written in their time, beside the predictions of then."""
    found, rows, values = answered(folder)
    assert found.card.get("format", 1) == int(folder.name)
    with open(folder / "predictions.csv", newline="") as file:
        then = list(csv.DictReader(file))
    assert [i for i, *_ in rows] == list(range(797)) and len(then) == 797
    assert [str(n) for _, n, _ in rows] == [row["prediction"] for row in then]
    shares = [float(row["probability"]) for row in then]
    np.testing.assert_allclose([p for *_, p in rows], shares, atol=1e-5)
    was = found.card["metrics"]
    assert values == pytest.approx({k: was[k] for k in values}, rel=1e-5)
    assert found.task.classes == tuple("0123456789")


def test_a_folder_of_each_format_is_kept():
    assert sorted(p.name for p in FORMATS.iterdir()) == [str(n + 1) for n in range(product.FORMAT)]
