"""Checkpoints and adapters on disk: exact, and every damage is noticed."""

import json
import logging
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import files
from dynadapt.errors import CheckpointError
from dynadapt.runs.checkpoint import (
    MANIFEST,
    Checkpoints,
    adapter_faults,
    fault,
    load_adapter,
    save_adapter,
)


def values(step):
    """Train leaves and an optimizer state that differ at every step."""
    key = jax.random.key(step)
    train = {
        "backbone": {"blocks": {"0": {"adapter": jax.random.normal(key, (5, 3))}}},
        "head": {"bias": jnp.full(4, step, jnp.float32), "scale": jnp.float32(step)},
    }
    opt = (jnp.int32(step), {"mu": jax.random.normal(key, (7,)), "empty": ()})
    return train, opt


def save(folder, *steps, keep=2):
    with Checkpoints(folder, keep=keep) as saved:
        for step in steps:
            train, opt = values(step)
            saved.save(step, train, opt, {"batches": step}, {"note": [step, "x"]})


def restore(folder):
    with Checkpoints(folder) as saved:
        return saved.restore(*jax.tree.map(jnp.zeros_like, values(0)))


def assert_is(found, step):
    assert found[0] == step
    want = jax.tree.leaves(values(step))
    got = jax.tree.leaves(found[1:3])
    assert jax.tree.structure(found[1:3]) == jax.tree.structure(values(step))
    for a, b in zip(want, got, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert found[3:] == ({"batches": step}, {"note": [step, "x"]})


def flip(file, position, bit):
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


def test_exact_round_trip(tmp_path):
    assert restore(tmp_path / "none") is None
    save(tmp_path / "c", 3, 7)
    assert_is(restore(tmp_path / "c"), 7)


def test_the_newest_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
    assert fault(tmp_path / "3") is None and fault(tmp_path / "4") is None


def test_saving_a_step_twice_changes_nothing(tmp_path):
    save(tmp_path, 5)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    save(tmp_path, 5)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_interrupted_one_is_passed_over(tmp_path, caplog):
    save(tmp_path, 3, 7)
    (tmp_path / "7" / MANIFEST).unlink()
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    with caplog.at_level(logging.WARNING):
        assert_is(restore(tmp_path), 3)
    assert "checkpoint 7 is passed over: it was interrupted" in caplog.text
    save(tmp_path, 7)
    assert_is(restore(tmp_path), 7)


def test_only_interrupted_ones_are_as_none(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "3" / MANIFEST).unlink()
    assert restore(tmp_path) is None
    save(tmp_path, 3)
    assert_is(restore(tmp_path), 3)


def test_any_damage_is_noticed(tmp_path):
    """One flipped bit in each file, one file missing, one file too many."""
    save(tmp_path, 3)
    whole = tmp_path / "3"
    rng = random.Random(5)
    for file in sorted(p for p in whole.rglob("*") if p.is_file()):
        content = file.read_bytes()
        if content:
            flip(file, rng.randrange(len(content)), rng.randrange(8))
            assert damaged(whole), file
        file.unlink()
        assert damaged(whole), file
        file.write_bytes(content)
        assert not damaged(whole), file
    (whole / "stranger").write_text("")
    assert "stranger" in fault(whole)


def damaged(folder):
    try:
        return fault(folder) is not None
    except CheckpointError:  # of a manifest that cannot be read
        return True


def test_a_damaged_manifest_does_not_stop_the_search(tmp_path):
    save(tmp_path, 3, 7)
    (tmp_path / "7" / MANIFEST).write_text("{")
    assert_is(restore(tmp_path), 3)


def test_all_damaged_is_an_error_that_stays(tmp_path):
    save(tmp_path, 3, 7)
    for step in ("3", "7"):
        files_of = [p for p in (tmp_path / step / "train").rglob("*") if p.is_file()]
        largest = max(files_of, key=lambda p: p.stat().st_size)
        flip(largest, 11, 2)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no whole checkpoint .*7 \(.*3 \("):
            restore(tmp_path)


def test_another_structure_is_refused(tmp_path):
    save(tmp_path, 3)
    train, opt = values(0)
    for wrong in (
        {**train, "more": jnp.zeros(3)},
        {"backbone": train["backbone"]},
        {**train, "head": {"bias": jnp.zeros(5), "scale": jnp.float32(0)}},
    ):
        with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match="does not fit"):
            saved.restore(wrong, opt)


TENSORS = {
    "backbone/blocks/0/mlp/adapter/up/kernel": np.random.default_rng(3).normal(size=(5, 7)),
    "head/linear/bias": np.arange(3, dtype=np.float32),
}


@pytest.fixture
def adapter(tmp_path):
    tensors = {k: v.astype(np.float32) for k, v in TENSORS.items()}
    save_adapter(tmp_path / "adapter", tensors, {"format": 1, "method": "lora"})
    return tmp_path / "adapter"


def test_adapter_round_trip(adapter):
    leaves, card = load_adapter(adapter)
    assert set(leaves) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(leaves[name], value.astype(np.float32))
    assert card["method"] == "lora"
    assert card["bytes"] == (adapter / "adapter.safetensors").stat().st_size
    assert set(card["tensor_sha256"]) == set(TENSORS)


def test_every_flipped_bit_of_the_adapter_is_noticed(adapter):
    rng = random.Random(2)
    for name in ("adapter.safetensors", "adapter.json"):
        file = adapter / name
        whole = file.read_bytes()
        edges = [0, 1, 7, 8, 9, len(whole) - 1]  # the header's length and its first bytes
        for position in {*edges, *rng.sample(range(len(whole)), 60)}:
            flip(file, position, rng.randrange(8))
            if name == "adapter.json" and same_json(file, whole):
                file.write_bytes(whole)  # white space, which holds nothing
                continue
            with pytest.raises(CheckpointError):
                load_adapter(adapter)
            file.write_bytes(whole)
    load_adapter(adapter)


def same_json(file, whole):
    try:
        return json.loads(file.read_bytes()) == json.loads(whole)
    except ValueError:
        return False


def test_faults_name_the_tensor(adapter):
    file = adapter / "adapter.safetensors"
    flip(file, file.stat().st_size - 1, 0)
    found = list(adapter_faults(adapter, files.read_json(adapter / "adapter.json")))
    assert found == ["adapter.safetensors was changed", "tensor head/linear/bias was changed"]


def test_a_missing_tensor_is_noticed(adapter):
    file = adapter / "adapter.safetensors"
    files.write_tensors(file, {"head/linear/bias": np.arange(3, dtype=np.float32)})
    with pytest.raises(CheckpointError, match="adapter/up/kernel"):
        load_adapter(adapter)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_a_missing_file_is_named(name, adapter):
    (adapter / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_adapter(adapter)


def test_no_adapter_at_all(tmp_path, adapter):
    shutil.rmtree(adapter)
    with pytest.raises(CheckpointError):
        load_adapter(adapter)


def test_an_edited_card_is_noticed(adapter):
    card = files.read_json(adapter / "adapter.json")
    files.write_json(adapter / "adapter.json", {**card, "method": "linear"})
    with pytest.raises(CheckpointError, match="adapter.json was changed"):
        load_adapter(adapter)


def test_a_card_of_another_adapter_is_noticed(adapter, tmp_path):
    save_adapter(tmp_path / "other", {"x": np.ones(3, np.float32)}, {"format": 1})
    shutil.copy(tmp_path / "other" / "adapter.json", adapter / "adapter.json")
    with pytest.raises(CheckpointError, match="adapter.safetensors was changed"):
        load_adapter(adapter)


def test_saving_over_an_adapter(adapter):
    save_adapter(adapter, {"x": np.ones(3, np.float32)}, {"format": 1})
    leaves, _ = load_adapter(adapter)
    assert list(leaves) == ["x"]
