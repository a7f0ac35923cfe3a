import hashlib

import ml_dtypes
import numpy as np
import pytest

from dynadapt import files
from dynadapt.errors import CheckpointError


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a.txt"
    with files.whole(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.whole(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_json_round_trip(tmp_path):
    values = {"a": [1, 2.5, None, "ä"], "b": {"c": True}}
    files.write_json(tmp_path / "a.json", values)
    assert files.read_json(tmp_path / "a.json") == values


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"", b"[1]", b"null", b"[" * 100_000])
def test_broken_json_is_a_checkpoint_error(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*a\.json"):
        files.read_json(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
def test_tensors_keep_value_shape_and_dtype(tmp_path, dtype):
    rng = np.random.default_rng(3)
    tensors = {
        "scalar": np.asarray(rng.integers(9), dtype),
        "empty": np.zeros((0, 3), dtype),
        "a/b/kernel": rng.normal(size=(3, 4)).astype(dtype),
        # Not contiguous: the file must hold what the array says, not what its memory says.
        "turned": rng.normal(size=(3, 4)).astype(dtype).T,
        "strided": rng.normal(size=(8, 4)).astype(dtype)[::2],
    }
    files.write_tensors(tmp_path / "a.safetensors", tensors)
    found = files.read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_a_damaged_tensor_file_is_a_checkpoint_error(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"a": np.ones((4, 4), np.float32)})
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"no tensors at all", whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cannot read weights '.*a\.safetensors'"):
            files.read_tensors(path)
    with pytest.raises(CheckpointError, match="none.safetensors"):
        files.read_tensors(tmp_path / "none.safetensors")
