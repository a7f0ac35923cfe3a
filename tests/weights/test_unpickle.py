import argparse
import collections
import io
import pathlib
import pickle

import numpy as np
import pytest

from dynadapt.errors import UnsafeCheckpointError
from dynadapt.weights import unpickle
from dynadapt.weights.unpickle import Damaged, Inert, Machine


def run(data):
    return Machine(None).run(io.BytesIO(data))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_plain_values_come_back(protocol):
    values = {
        "text": ["", "ä", "x" * 300],
        "numbers": (0, -1, 255, 70_000, -(2**40), 2**100, 1.5, float("inf"), 2 + 1j),
        "constants": (None, True, False),
        "nested": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1: {2.5: {None: b"key"}}}],
        "bytes": [b"", b"\x00\xff", b"y" * 300],
        "set": {1, 2},
    }
    values["again"] = values["text"]
    if protocol < 3:
        values.pop("set"), values.pop("bytes")
    found = run(pickle.dumps(values, protocol))
    assert found == values
    assert found["again"] is found["text"]


def test_the_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1], 2) + b"rest")
    assert Machine(None).run(stream) == [1] and stream.read() == b"rest"


def test_ordered_and_default_dicts_are_dicts():
    first = collections.OrderedDict(a=1)
    first._metadata = {"version": 2}
    found = run(pickle.dumps([first, collections.defaultdict(list, b=[2])], 2))
    assert found == [{"a": 1}, {"b": [2]}] and {type(x) for x in found} == {dict}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "?", "S3", "c8"])
def test_arrays_and_scalars_of_numpy(protocol, dtype):
    rng = np.random.default_rng(7)
    wanted = rng.integers(0, 9, (3, 4)).astype(dtype)
    found = run(pickle.dumps([wanted, wanted.T, wanted[1, 2], np.zeros((0, 2), dtype)], protocol))
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(found[1], wanted.T)
    assert found[2] == wanted[1, 2] and found[0].dtype == wanted.dtype
    assert found[3].shape == (0, 2)


@pytest.mark.parametrize(
    "array", [np.array([{}]), np.zeros(2, "f4,i4"), np.zeros(2, ">f4"), np.array(["ä"])]
)
def test_unusual_arrays_are_refused(array):
    with pytest.raises(Damaged, match="unusual dtype"):
        run(pickle.dumps(array, 2))


@pytest.mark.parametrize("protocol", [2, 4])
def test_classes_of_the_list_become_inert(protocol):
    given = {"args": argparse.Namespace(lr=0.1), "out": pathlib.PurePosixPath("a/b")}
    found = run(pickle.dumps(given, protocol))
    assert {type(x) for x in found.values()} == {Inert}
    assert found["args"].name == "argparse.Namespace" and found["args"].state == {"lr": 0.1}
    assert found["out"].args == ("a", "b")
    assert repr(found["args"]) == "Inert('argparse.Namespace')"


def test_an_inert_dict_and_list_keep_what_is_put_in():
    head = b"\x80\x02cyacs.config\nCfgNode\n)\x81q\x00"
    found = run(head + b"X\x01\x00\x00\x00aK\x05sK\x07a.")
    assert found.content == [("a", 5), 7]


@pytest.mark.parametrize("name", sorted(unpickle.INERT))
def test_every_name_of_the_list_is_inert(name):
    module, _, last = (name + "X" if name.endswith(".") else name).rpartition(".")
    found = run(b"\x80\x02c" + f"{module}\n{last}\n".encode() + b")\x81.")
    assert type(found) is Inert and found.name == f"{module}.{last}"


@pytest.mark.parametrize(
    "module, name",
    [("omegaconf", "a.b"), ("omegaconfx", "A"), ("argparse", "_os"), ("argparse.Namespace", "x")],
)
def test_near_misses_of_the_list_are_refused(module, name):
    with pytest.raises(UnsafeCheckpointError, match=rf"^{module}\.{name}$"):
        run(b"\x80\x04" + b"".join(pickle.dumps(x, 4)[11:-2] for x in (module, name)) + b"\x93.")
