import json

import ml_dtypes
import numpy as np
import pytest

from dynadapt import files
from dynadapt.errors import CheckpointError
from dynadapt.weights import source


def tensors(*names, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=(2, 3)).astype(np.float32) for n in names}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_formats_are_told_by_content_and_not_by_name(tmp_path):
    given = tensors("a", "b")
    files.write_tensors(tmp_path / "x.bin", given, {"note": "kept"})
    np.savez(tmp_path / "y.npz", **given)
    (tmp_path / "y.npz").rename(tmp_path / "y.pth")
    found = source.read(tmp_path / "x.bin")
    same(found.tensors, given)
    assert found.metadata == {"note": "kept"} and found.card == {}
    same(source.read(tmp_path / "y.pth").tensors, given)


def test_a_folder_with_its_card(tmp_path):
    given = tensors("a")
    files.write_tensors(tmp_path / "model.safetensors", given)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = source.read(path)
        same(found.tensors, given)
        assert found.card == {"num_attention_heads": 3}


def test_parts_of_a_folder_are_joined(tmp_path):
    one, two = tensors("a", "b"), tensors("c", seed=1)
    for name, part in (("model-1.safetensors", one), ("model-2.safetensors", two)):
        files.write_tensors(tmp_path / name, part)
    index = dict.fromkeys(one, "model-1.safetensors") | dict.fromkeys(two, "model-2.safetensors")
    card = tmp_path / "model.safetensors.index.json"
    card.write_text(json.dumps({"weight_map": index}))
    same(source.read(tmp_path).tensors, one | two)
    card.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(CheckpointError, match="a part outside its folder"):
        source.read(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="holds 0 files of weights"):
        source.read(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read weights '.*none': No such file"):
        source.read(tmp_path / "none")


def test_wrappers_are_taken_off(tmp_path):
    given = tensors("a")
    for wrapped in (
        given,
        {"model": given, "epoch": 3},
        {"state_dict": {"base_model": given}},
        {"student": tensors("s"), "teacher": given},
    ):
        same(source.unwrapped(wrapped, tmp_path)[0], given)
    for nothing in ({"epoch": 3}, [1, 2], {"model": {"lr": 0.1}}):
        with pytest.raises(CheckpointError, match="holds no weights"):
            source.unwrapped(nothing, tmp_path)


@pytest.mark.parametrize(
    "name, raw",
    [
        ("state_dict_ema", "state_dict"),
        ("model_ema", "model"),
        ("ema_state_dict", "state_dict"),
        ("ema", "params"),
        ("EMA", "model"),
        ("swa_model", "model"),
        ("averaged_model", "model"),
        ("teacher", "student"),
    ],
)
def test_averaged_weights_go_before_the_raw_ones_and_are_noted(tmp_path, name, raw):
    given, other = tensors("a"), tensors("a", seed=1)
    path = tmp_path / "x.pth"
    for inner in (given, {"module": given}, {"decay": 0.999, "shadow": given}):
        found, notes = source.unwrapped({raw: other, "epoch": 3, name: inner}, path)
        same(found, given)
        assert notes == [
            f"weights {str(path)!r}: took the averaged ones, {name!r}, rather than {raw!r}"
        ]
    # Those that were not kept, or are alone, are no choice.
    for kept in ({"model": given, name: None}, {"model": given, name: {"decay": 1}}, {name: given}):
        found, notes = source.unwrapped(kept, path)
        same(found, given)
        assert notes == []


def test_a_mapping_inside_itself_is_no_weights(tmp_path):
    values = {"epoch": 3}
    values |= {"model": values, "ema": {"model": values}}
    with pytest.raises(CheckpointError, match="holds no weights, only epoch, model, ema"):
        source.unwrapped(values, tmp_path)


def test_not_finite():
    good = {"a": np.ones(3, ml_dtypes.bfloat16), "index": np.arange(3)}
    assert source.not_finite(good) is None
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16):
        assert source.not_finite(good | {"b": np.array([1, np.nan], kind)}) == "b"
    assert source.not_finite({"c": np.array([np.inf])}) == "c"
