import json
import os
import re
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from dynadapt import files
from dynadapt.errors import CheckpointError, UnsafeCheckpointError
from dynadapt.weights import pth, source

KINDS = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "BFloat16": ml_dtypes.bfloat16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


# Pickles are written opcode by opcode: no class of torch is needed, and any fault can be made.
def emit(value):
    """Opcodes that make a value; bytes are opcodes already."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        packed = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(packed)]) + packed
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b"}(" + b"".join(emit(k) + emit(v) for k, v in value.items()) + b"u"
    opened, closed = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
    return opened + b"".join(map(emit, value)) + closed


def named(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(name, *args):
    return named(name) + emit(args) + b"R"


def storage(kind, key, numel, *view):
    return emit(("storage", named(f"torch.{kind}Storage"), key, "cpu", numel, *view)) + b"Q"


def tensor(kind="Float", key="0", numel=6, offset=0, shape=(2, 3), strides=(3, 1), view=()):
    stored = storage(kind, key, numel, *view)
    end = (False, call("collections.OrderedDict"))
    return call("torch._utils._rebuild_tensor_v2", stored, offset, shape, strides, *end)


def pickled(value):
    return b"\x80\x02" + emit(value) + b"."


SIX = np.arange(6, dtype="<f4").tobytes()


def archive(path, value, storages=None, *, order=b"little", extra=(), **options):
    """Writes torch's zip format; `extra` are more entries, (name or ZipInfo, content)."""
    storages = {"0": SIX} if storages is None else storages
    entries = [("x/data.pkl", pickled(value)), ("x/byteorder", order), ("x/version", b"3\n")]
    entries += [(f"x/data/{key}", content) for key, content in storages.items()]
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in [*entries, *extra]:
            file.writestr(name, content)


def stream(path, value, storages=None, *, keys=None, protocol=1001, little=True):
    """Writes torch's older format; a storage is (number of values, content)."""
    storages = {"0": (6, SIX)} if storages is None else storages
    parts = [0x1950A86A20F9469CFC6C, protocol, {"little_endian": little}, value]
    parts = [pickled(part) for part in [*parts, list(storages) if keys is None else keys]]
    for numel, content in storages.values():
        parts += [struct.pack("<q", numel), content]
    path.write_bytes(b"".join(parts))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pth"


@pytest.mark.parametrize("write", [archive, stream])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(path, write, kind):
    rng = np.random.default_rng(list(KINDS).index(kind))
    wanted = rng.integers(0, 2 if kind == "Bool" else 99, (5, 4)).astype(KINDS[kind])
    value = {
        "plain": tensor(kind, "7", 20, 0, (5, 4), (4, 1)),
        "transposed": tensor(kind, "7", 20, 0, (4, 5), (1, 4)),
        "column": tensor(kind, "7", 20, 2, (5,), (4,)),
        "scalar": tensor(kind, "7", 20, 19, (), ()),
        "none": tensor(kind, "7", 20, 0, (0, 3), (3, 1)),
        "parameter": call("torch._utils._rebuild_parameter", tensor(kind, "7", 20), True, b"N"),
        "first": call("torch._utils._rebuild_tensor", storage(kind, "7", 20), 1, (2,), (2,)),
    }
    content = wanted.tobytes()
    write(path, value, {"7": content if write is archive else (20, content)})
    found = pth.read(path)
    np.testing.assert_array_equal(found["plain"], wanted)
    np.testing.assert_array_equal(found["transposed"], wanted.T)
    np.testing.assert_array_equal(found["column"], wanted[:, 2])
    np.testing.assert_array_equal(found["scalar"], wanted[4, 3])
    np.testing.assert_array_equal(found["parameter"], wanted.reshape(-1)[:6].reshape(2, 3))
    np.testing.assert_array_equal(found["first"], wanted.reshape(-1)[1:5:2])
    assert found["none"].shape == (0, 3)
    assert {x.dtype for x in found.values()} == {np.dtype(KINDS[kind])}
    assert np.shares_memory(found["plain"], found["column"])
    assert not any(x.flags.writeable for x in (found["plain"], found["scalar"]))


def test_storages_of_a_stream_keep_their_order(path):
    stored = {k: (2, np.full(2, float(k), "<f4").tobytes()) for k in ("3", "1", "2")}
    stream(path, {k: tensor("Float", k, 2, 0, (2,), (1,)) for k in "123"}, stored)
    assert {k: v.tolist() for k, v in pth.read(path).items()} == {k: [int(k)] * 2 for k in "123"}


def test_published_layouts(oracles):
    paths = sorted(oracles.rglob("*.pth"))
    assert paths
    for path in paths:
        found, tensors = pth.read(path), []
        todo = [found]
        while todo:
            value = todo.pop()
            if isinstance(value, np.ndarray):
                tensors.append(value)
            elif isinstance(value, dict | list | tuple):
                todo += value.values() if isinstance(value, dict) else value
        assert len(tensors) > 20
        assert source.not_finite({str(i): x for i, x in enumerate(tensors)}) is None
        if zipfile.is_zipfile(path):  # every tensor of these files fills a storage of its own
            with zipfile.ZipFile(path) as file:
                raw = [file.read(n) for n in file.namelist() if "/data/" in n]
            same = sorted(x.astype(x.dtype, order="K").tobytes("A") for x in tensors)
            assert same == sorted(raw)


def npz(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", content)


def npy(descr, shape, content=b""):
    head = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def safe(header, content=b"\0" * 24, length=None):
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + content


def entry(shape=(2, 3), begin=0, end=24, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def flipped(write, *args, at, **options):
    def make(path):
        write(path, *args, **options)
        content = bytearray(path.read_bytes())
        content[content.index(at) if isinstance(at, bytes) else at] ^= 4
        path.write_bytes(content)

    return make


def cut(write, value, keep):
    def make(path):
        write(path, value)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return make


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def twice(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, tensor(), extra=[("x/data/0", SIX)])


def overlapping(path):
    """An entry that lies within another."""
    inner = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 8, 0) + b"x/data/0" + SIX
    archive(path, tensor(), {"0": SIX, "1": inner})
    content = path.read_bytes()
    place = re.search(rb"PK\x01\x02.{42}x/data/0", content, re.DOTALL).start() + 42
    offset = struct.pack("<I", content.index(inner))
    path.write_bytes(content[:place] + offset + content[place + 4 :])


def crowded(path):
    """A list of contents of 100 thousand entries."""
    with zipfile.ZipFile(path, "w") as file:
        for i in range(100_000):
            info = zipfile.ZipInfo(f"x/data/{i}")
            info.file_size = info.compress_size = info.CRC = info.header_offset = 0
            file.filelist.append(info)
        file.writestr("x/data.pkl", pickled(1))


# `CANARY` is a file that appears in the working folder if a case gets what it wants.
TOUCH = "touch CANARY"
WRITE = "open('CANARY', 'w')"
N = 600_000
SECOND = "refuses {}: not part of weights"
UNSAFE = {  # the global that is refused -> a pickle that uses it
    "os.system": call("os.system", TOUCH),
    "posix.system": call("posix.system", TOUCH),
    "nt.system": call("nt.system", TOUCH),
    "builtins.eval": call("builtins.eval", WRITE),
    "builtins.exec": call("builtins.exec", WRITE),
    "__builtin__.eval": call("__builtin__.eval", WRITE),
    "builtins.getattr": call("builtins.getattr", named("builtins.dict"), "__class__"),
    "builtins.open": call("builtins.open", "CANARY", "w"),
    "builtins.__import__": call("builtins.__import__", "os"),
    "subprocess.Popen": call("subprocess.Popen", ["touch", "CANARY"]),
    "importlib.import_module": call("importlib.import_module", "os"),
    "runpy.run_path": call("runpy.run_path", "CANARY"),
    "operator.attrgetter": call("operator.attrgetter", "system"),
    "functools.partial": call("functools.partial", named("collections.OrderedDict")),
    "torch.load": call("torch.load", "CANARY"),
    "torch.storage._load_from_bytes": call("torch.storage._load_from_bytes", b"C\x01x"),
    "torch.hub.load": call("torch.hub.load", "a/b", "c"),
    "torch._utils._rebuild_tensor_v2.__globals__": b"\x80\x04"
    + emit("torch._utils")
    + emit("_rebuild_tensor_v2.__globals__")
    + b"\x93",
    "numpy.load": call("numpy.load", "CANARY"),
    "numpy.testing._private.utils.runstring": call(
        "numpy.testing._private.utils.runstring", WRITE, {}
    ),
    "pickle.loads": call("pickle.loads", b"C\x01N"),
    "codecs.decode": call("codecs.decode", "x", "rot13"),
    "_codecs.lookup": call("_codecs.lookup", "rot13"),
    "copyreg._reconstructor": call("copyreg._reconstructor", named("builtins.object"), None),
    "os.system.x": b"\x80\x04" + emit("os") + emit("system.x") + b"\x93",
    ".os": b"\x80\x04" + emit("") + emit("os") + b"\x93",
    "argparse._sys.modules": b"\x80\x04" + emit("argparse") + emit("_sys.modules") + b"\x93",
    "__main__.Model": named("__main__.Model") + b")\x81}b",
    "webbrowser.open": {"model": tensor(), "late": [call("webbrowser.open", "http://x")]},
    "shutil.rmtree": call("collections.defaultdict", call("shutil.rmtree", "CANARY")),
}
NUMPY = "numpy.core.multiarray."
PICKLES = {  # a name -> (part of the message, a pickle)
    "reduce a value": ("calls a value", emit("os") + b")R"),
    "reduce no tuple": ("calls a value", named("collections.OrderedDict") + b"NR"),
    "new of a function": ("damaged", named("torch._utils._rebuild_tensor_v2") + b")\x81"),
    "new of a dict": ("no class", named("collections.OrderedDict") + b")\x81"),
    "build a function": ("attributes", named("_codecs.encode") + b"}b"),
    "build a class": (
        "attributes",
        named("collections.OrderedDict") + emit({"__init__": 1}) + b"b",
    ),
    "build a list": ("attributes", emit([1]) + emit({"__class__": 1}) + b"b"),
    "build a tensor": ("attributes", tensor() + emit({"__class__": 1}) + b"b"),
    "append to a dict": ("no list", b"}Na"),
    "items into a list": ("no dict", b"]NNs"),
    "codec by name": ("encodes no text", call("_codecs.encode", "x", "rot13")),
    "make a storage": ("out of nothing", call("torch.FloatStorage", 10**9)),
    "objects of numpy": ("unusual dtype", call("numpy.dtype", "O8", False, True)),
    "array of 2**62": (
        "does not fit",
        call(NUMPY + "_reconstruct", named("numpy.ndarray"), (0,), "b")
        + emit((1, (2**61,), call("numpy.dtype", "f4"), False, b"C\x01x"))
        + b"b",
    ),
    "scalar of nothing": ("scalar", call(NUMPY + "scalar", call("numpy.dtype", "f8"), b"C\x01x")),
    "extension 1": ("EXT1", b"\x82\x01"),
    "extension 2": ("EXT2", b"\x83\x01\x00"),
    "extension 4": ("EXT4", b"\x84\x01\x00\x00\x00"),
    "inst": ("INST", f"(X\x0c\0\0\0{TOUCH}ios\nsystem\n".encode()),
    "obj": ("OBJ", b"(cargparse\nNamespace\no"),
    "new with keywords": ("NEWOBJ_EX", named("argparse.Namespace") + b")}\x92"),
    "persistent text": ("PERSID", b"Pstorage\n"),
    "next buffer": ("NEXT_BUFFER", b"\x97"),
    "storage of no tuple": ("cannot read", b"NQ"),
    "storage of text": (
        "not described",
        emit(("storage", "torch.FloatStorage", "0", "", 6)) + b"Q",
    ),
    "view of a storage": ("view", tensor(view=(("0", 0, 6),))),
    "protocol 9": ("protocol 9", b"\x80\x09N"),
    "unknown opcode": ("unknown", b"\xff"),
    "no stop": ("", b"N" * 9 + b"\x80\x02"),
    "empty stack": ("cannot read", b"0"),
    "two values": ("damaged", b"NN"),
    "memo of nothing": ("cannot read", b"h\x07"),
    "text that lies": ("expected", b"X\xff\xff\xff\x7fabc"),
    "bytes that lie": ("expected", b"\x8e" + b"\xff" * 7 + b"\x7fabc"),
    "bytes beyond all": ("byte count", b"\x8e" + b"\xff" * 8),
    "integer that lies": ("not enough data", b"\x8b\xff\xff\xff\x7f\x01"),
    "integer of a megabyte": ("256 bits", b"\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20)),
    "integer in digits": ("digits", b"I" + b"1" * 1_000_000 + b"\n"),
    "stack": ("steps", b"N" + b"2" * N),
    "marks": ("steps", b"(" * N),
    "sets": ("steps", b"(" + b"\x8f" * N + b"t"),
    "memo": ("steps", b"N" + b"".join(b"r" + struct.pack("<I", i * 7000) for i in range(N))),
    "classes": ("too many classes", b"".join(b"comegaconf.a%d\nb\n" % i for i in range(9000))),
    "deep tuples": ("nested deeper", b"N" + b"\x85" * 200_000),
    "deep lists": ("nested deeper", b"]" * 100_000 + b"a" * 99_999),
    "deep key": ("no plain value", b"}N" + b"\x85" * 200_000 + b"Ns"),
    "deep calls": ("damaged", named("omegaconf.A") * 70_000 + b")" + b"R\x85" * 70_001),
    "unfolds": ("too many values", b"(NNtq\x00" + b"0(h\x00h\x00h\x00tq\x00" * 60),
    "contains itself": ("contains itself", b"]q\x00h\x00a"),
    "copies": (
        "copies too much",
        emit("a" * (8 << 20)) + b"q\x010(" + call("_codecs.encode", b"h\x01", "latin1") * 90 + b"t",
    ),
    "big set again": (
        "copies too much",
        emit(list(range(99_999))) + b"q\x010(" + call("builtins.set", b"h\x01") * 99 + b"t",
    ),
    "arrays again": (
        "copies too much",
        (b"B" + struct.pack("<I", 8 << 20) + bytes(8 << 20) + b"q\x010(")
        + 90
        * (
            call(NUMPY + "_reconstruct", named("numpy.ndarray"), (0,), "b")
            + emit((1, (8 << 20,), call("numpy.dtype", "i1"), False, b"h\x01"))
            + b"b"
        )
        + b"t",
    ),
    "huge shape": ("larger than its storage", tensor(shape=(10**6, 10**6), strides=(0, 0))),
    "shape of 2**63": ("absurd", tensor(shape=(2**63, 2), strides=(1, 1))),
    "shape of -1": ("negative", tensor(shape=(-1, 3))),
    "shape that wraps": ("larger", tensor(shape=(2**32, 2**32), strides=(1, 1))),
    "shape of text": ("absurd", tensor(shape=("2", "3"))),
    "empty and huge": ("cannot read", tensor(shape=(0, 2**61), strides=(1, 1))),
    "negative stride": ("negative", tensor(offset=5, strides=(-3, -1))),
    "huge stride": ("larger", tensor(strides=(2**61, 1))),
    "negative offset": ("negative", tensor(offset=-1)),
    "offset beyond": ("larger", tensor(offset=1)),
    "strides missing": ("wrong number", tensor(strides=(3,))),
    "many axes": ("wrong number", tensor(shape=(1,) * 99, strides=(1,) * 99)),
    "storage missing": ("'7' is missing", tensor(key="7")),
    "storage elsewhere": ("is missing", tensor(key="../data/0")),
    "storage too small": ("24 bytes, not 7", tensor(numel=7)),
    "storage too large": ("24 bytes, not 5", tensor(numel=5, shape=(5,), strides=(1,))),
    "storage of another dtype": ("not 6 values of float64", tensor("Double")),
    "storage of -1": ("not described", tensor(numel=-1)),
}


def spelled(write, *args, **options):
    return lambda path: write(path, *args, **options)


def raw(content):
    return lambda path: path.write_bytes(content)


NAN = np.array([1, 2, np.nan, 4, 5, 6], "<f4").tobytes()
FILES = {  # a file's name -> (part of the message, what writes it)
    "up.pth": ("leads out", spelled(archive, tensor(), extra=[("x/../../y", b"")])),
    "root.pth": ("leads out", spelled(archive, tensor(), extra=[("/etc/x", b"")])),
    "drive.pth": ("leads out", spelled(archive, tensor(), extra=[("C:/x", b"")])),
    "back.pth": ("leads out", spelled(archive, tensor(), extra=[("x\\..\\y", b"")])),
    "link.pth": ("is a link", spelled(archive, tensor(), extra=[(link("x/y"), b"/etc/passwd")])),
    "twice.pth": ("is there twice", twice),
    "overlap.pth": ("overlaps another", overlapping),
    "crowded.pth": ("too many entries", crowded),
    "bomb.pth": (
        "is compressed",
        spelled(archive, tensor(), {"0": bytes(30 << 20)}, compression=zipfile.ZIP_DEFLATED),
    ),
    "two.pth": ("exactly one", spelled(archive, tensor(), extra=[("y/data.pkl", b"N.")])),
    "none.pth": ("exactly one", spelled(npz, b"")),
    "long.pth": ("more than weights need", spelled(archive, "a" * (17 << 20))),
    "big.pth": ("big-endian", spelled(archive, tensor(), order=b"big")),
    "flip.pth": ("wrong checksum", flipped(archive, tensor(), at=SIX)),
    "flip pickle.pth": ("wrong checksum", flipped(archive, tensor(), at=b"_rebuild")),
    "flip name.pth": ("another name", flipped(archive, tensor(), at=b"x/data/0")),
    "nan.pth": ("w is not finite", spelled(archive, {"w": tensor()}, {"0": NAN})),
    "cut 0.99.pth": ("no zip file", cut(archive, tensor(), 0.99)),
    "cut 0.5.pth": ("cut short", cut(archive, tensor(), 0.5)),
    "cut 0.01.pth": ("", cut(archive, tensor(), 0.01)),
    "stream cut 0.99.pth": ("cut short", cut(stream, tensor(), 0.99)),
    "stream cut 0.5.pth": ("", cut(stream, tensor(), 0.5)),
    "stream big.pth": ("big-endian", spelled(stream, tensor(), little=False)),
    "stream old.pth": ("version 1000", spelled(stream, tensor(), protocol=1000)),
    "stream keys.pth": ("list of storages", spelled(stream, tensor(), keys=["1"])),
    "stream twice.pth": ("list of storages", spelled(stream, tensor(), keys=["0", "0"])),
    "stream count.pth": ("'0' is damaged", spelled(stream, tensor(), {"0": (7, SIX)})),
    "stream huge.pth": ("larger than the file", spelled(stream, tensor(numel=10**12))),
    "stream kinds.pth": ("two ways", spelled(stream, [tensor(), tensor("Int")])),
    "stream system.pth": ("refuses os.system", spelled(stream, call("os.system", TOUCH))),
    "stream keys system.pth": ("refuses os.system", spelled(stream, 1, keys=UNSAFE["os.system"])),
    "empty.pth": ("is empty", raw(b"")),
    "page.pth": ("web page", raw(b"\n<!DOCTYPE html><html>404</html>")),
    "text.pth": ("text file", raw(b"not found\n")),
    "pointer.pth": ("Git LFS pointer", raw(b"version https://git-lfs.github.com/spec/v1\noid 1")),
    "tar.pth": ("old tar format", raw(b"\0" * 257 + b"ustar" + b"\0" * 999)),
    "plain.pth": ("torch did not write", raw(pickled(call("os.system", TOUCH)))),
    "noise.pth": ("none of torch's", raw(b"\x07\x91" * 999)),
    "other.pth": ("safetensors", raw(safe({"x": entry()}))),
    "folder.pth": ("directory", lambda path: path.mkdir()),
    "beyond.safetensors": ("cannot read", raw(safe({"x": entry()}, length=1 << 40))),
    "empty.safetensors": ("cannot read", raw(b"")),
    "cut.safetensors": ("cannot read", raw(safe({"x": entry()})[:-1])),
    "overlap.safetensors": ("cannot read", raw(safe({"x": entry(), "y": entry(begin=12, end=36)}))),
    "shape.safetensors": ("cannot read", raw(safe({"x": entry((2, 4))}))),
    "wrap.safetensors": ("cannot read", raw(safe({"x": entry((2**32, 2**32))}))),
    "dtype.safetensors": ("cannot read", raw(safe({"x": entry(dtype="F64")}))),
    "unknown.safetensors": ("cannot read", raw(safe({"x": entry(dtype="X9")}))),
    "json.safetensors": ("cannot read", raw(struct.pack("<Q", 9) + b"{'no': 1}")),
    "objects.npz": ("array of objects", lambda path: np.savez(path, x=np.array([{}], object))),
    "claim.npz": ("does not fit", spelled(npz, npy("<f4", (10**15,), b"abcd"))),
    "negative.npz": ("does not fit", spelled(npz, npy("<f4", (-1,), b"abcd"))),
    "bomb.npz": (
        "would unpack",
        spelled(npz, npy("<f4", (25 << 20,), bytes(100 << 20)), zipfile.ZIP_DEFLATED),
    ),
    "flip.npz": ("CRC", flipped(npz, npy("<f4", (6,), SIX), at=SIX)),
    "cut.npz": ("cannot read", cut(npz, npy("<f4", (6,), SIX), 0.9)),
    "code.npz": ("cannot read", spelled(npz, npy("<f4", "__import__('os')"))),
}
CASES = {f"{name}.pth": (SECOND.format(name), spelled(archive, v)) for name, v in UNSAFE.items()}
CASES |= {f"{name}.pth": (part, spelled(archive, v)) for name, (part, v) in PICKLES.items()}
assert not CASES.keys() & FILES.keys()
CASES |= FILES


def attempt(path):
    """Reads a file the way its suffix says."""
    if path.suffix == ".safetensors":
        return files.read_tensors(path)
    if path.suffix == ".npz":
        return files.read_npz(path)
    value = pth.read(path)
    bad = source.not_finite(value) if isinstance(value, dict) else None
    if bad:
        raise CheckpointError(f"{path}: {bad} is not finite")
    return value


@pytest.mark.parametrize("name", CASES)
def test_what_is_hostile_or_broken_is_refused_in_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    part, write = CASES[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointError) as caught:
        attempt(path)
    message = str(caught.value)
    assert part in message and name in message and "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert isinstance(caught.value, UnsafeCheckpointError) == ("refuses" in message)
    assert os.listdir(tmp_path) == [name]


MEASURED = """
import json, os, pathlib, resource, sys, time
began = time.process_time()
for _ in range(40_000_000):
    pass
most = time.process_time() - began
sys.path.insert(0, sys.argv[2])
import test_pth
from dynadapt.errors import CheckpointError

resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
os.chdir(sys.argv[1])
found = {}
for path in sorted(pathlib.Path.cwd().iterdir()):
    child = os.fork()
    if not child:
        try:
            test_pth.attempt(path)
            os._exit(1)
        except CheckpointError:
            os._exit(0)
        finally:
            os._exit(2)
    _, status, used = os.wait4(child, 0)
    seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    found[path.name] = os.waitstatus_to_exitcode(status), seconds, peak
least = min(peak for _, _, peak in found.values())
found = {name: (code, seconds, peak - least) for name, (code, seconds, peak) in found.items()}
print(json.dumps([most, found]))
"""


@pytest.mark.slow
def test_no_refusal_is_costly(tmp_path):
    """A refusal takes at most 200 MB and 2 s of one core, whatever the file asks for.

    The seconds are those of a core that counts to 40 million in 2 s.
    """
    for name, (_, write) in CASES.items():
        write(tmp_path / name)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    most, found = json.loads(done.stdout)
    assert found.keys() == CASES.keys() and len(found) >= 45
    print("slowest", max((s, n) for n, (_, s, _) in found.items()))
    print("largest", max((g, n) for n, (_, _, g) in found.items()))
    assert {n: f for n, f in found.items() if f[0] or f[1] > most or f[2] > 200e6} == {}
    assert not (tmp_path / "CANARY").exists()


KEPT = """
import re, sys
from dynadapt.weights import pth, source

def most():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

values, before = pth.read(sys.argv[1]), most()
assert source.not_finite(values) is None
print(most() - before, *(float(v[3, 5]) for v in values.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_values_of_a_mapped_file_that_were_seen_take_no_memory(tmp_path):
    shape, keys = (1000, 1024), [str(i) for i in range(16)]  # 4 MB each
    value = {k: tensor(key=k, numel=1024000, shape=shape, strides=(1024, 1)) for k in keys}
    storages = {k: np.full(shape, int(k), np.float32).tobytes() for k in keys}
    archive(tmp_path / "large.pth", value, storages)
    command = [sys.executable, "-W", "error", "-c", KEPT, str(tmp_path / "large.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, *seen = map(float, done.stdout.split())
    assert kept < 24e6 and seen == list(range(16))
