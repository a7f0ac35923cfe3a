"""Checkpoints on disk: exact, and every damage is noticed."""

import logging
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.errors import CheckpointError
from dynadapt.runs.checkpoint import MANIFEST, Checkpoints, fault


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
