"""What readers refuse: connections that nobody asked for, what unpacks to far more than it is, and
whatever is damaged, in one sentence; nothing in a file is ever run."""

import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import socket
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dynadapt import backbones, data, files, tree, weights
from dynadapt.backbones import vit
from dynadapt.data import decode, idx, lists, loader, transforms, vtab
from dynadapt.errors import CheckpointError, ConfigError, DataError, DynadaptError
from dynadapt.main import main
from dynadapt.plans import compare, weights_table
from dynadapt.runs import product
from dynadapt.weights import peft, published
from tests import saved_runs
from tests.faults import mutants
from tests.tiny_sweep import TINY
from tests.weights import test_pth as pickles

pytestmark = pytest.mark.usefixtures("fast_compiling")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "tests" / "configs_tiny.py")
SWEEP = str(ROOT / "tests" / "configs_sweep.py")
SECONDS, BYTES = 2, 300e6  # of a core, that a refusal may cost
STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def cheap():
    """Fails where what is done inside takes more than 2 s or 300 MB; gives its figures."""
    used = {}
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    held, began = memory("VmRSS"), time.process_time()
    yield used
    used |= {"seconds": time.process_time() - began, "bytes": memory("VmHWM") - held}
    assert used["seconds"] < SECONDS and used["bytes"] < BYTES, used


def memory(name):
    if not STATUS.exists():
        return 0
    return int(re.search(rf"{name}:\s*(\d+)", STATUS.read_text())[1]) * 1024


def refusal(read, *args, error=DynadaptError, **kwargs):
    """The sentence in which something is refused, at little cost."""
    with cheap(), pytest.raises(error) as caught:
        read(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and "BytesIO" not in message
    return message


# No connection.


@pytest.fixture
def asked(monkeypatch):
    """What connections were asked for; there is none."""
    found = []

    def refuse(*args, **kwargs):
        found.append(args)
        raise OSError("there is no network")

    for owner, name in (
        *((socket.socket, name) for name in ("connect", "connect_ex", "sendto")),
        *((socket, name) for name in ("getaddrinfo", "create_connection", "gethostbyname")),
    ):
        monkeypatch.setattr(owner, name, refuse)
    return found


@pytest.mark.slow
def test_no_command_connects(asked, pets, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(vit.VARIANTS, "vit_tiny", TINY)
    monkeypatch.setattr(weights_table, "PUBLISHED", weights_table.PUBLISHED[:1])
    run, sweep, photos = tmp_path / "run", tmp_path / "sweep", tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (9, 9)).save(photos / "a.png")
    config, work = f"--config={CONFIG}:method=lora,steps=2", f"--workdir={run}"
    out = tmp_path / "merged.safetensors"
    commands = [
        ["train", config, work],
        ["eval", work],
        ["predict", work, f"--images={photos}", f"--out={tmp_path / 'answers'}", "--pictures"],
        ["plan", config],
        ["plan", "--methods=linear", "--backbone=vit_mini"],
        ["verify", work],
        ["convert", str(run), str(out)],
        ["convert", "vit_mini", str(tmp_path / "timm.safetensors"), "--to=timm"],
        ["weights"],
        ["weights", "vit_ti16_augreg_in21k"],
        [
            *("vtab", "run", f"--config={SWEEP}:steps=2,lrs=2", "--suite=offline", "--seeds=0"),
            *("--tasks=digits", "--methods=linear", "--backbone=vit_tiny", "--weights=random"),
            f"--workdir={sweep}",
        ],
        ["vtab", "report", f"--workdir={sweep}", "--partial"],
        ["data", "status", "offline", "--tasks=digits"],
        ["data", "status", "vtab", "--form=tfds", f"--path={pets}", "--tasks=dtd"],
        ["data", "status", "vtab", "--form=tfds", f"--path={tmp_path}", "--tasks=dtd"],
        ["bench", "forward", "--backbone=vit_mini", "--batch=1", "--rounds=1"],
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)

    assert asked == []
    folder = f"--download={tmp_path}"
    assert main(["weights", "vit_ti16_augreg_in21k", folder]) == 2 and asked  # this one asks
    assert "cannot download" in capsys.readouterr().err


ELSEWHERE = (
    *("huggingface:mnist", "huggingface:a/b", "kaggle:x", "mlds:x/y:1.0.0", "cifar10,try_gcs=True"),
    *("cifar10/data_dir=gs:", "../cifar10", "x" * 1000, "\0"),
)


@pytest.mark.parametrize("builder", ELSEWHERE, ids=lambda name: name[:20])
def test_builders_of_elsewhere_are_refused_unasked(asked, builder, tmp_path):
    section = dict(name="tfds", builder=builder, data_dir=str(tmp_path))
    message = refusal(data.from_config, section, "train", error=DataError)
    assert "name one of its own, such as cifar100" in message and asked == []


@pytest.mark.parametrize("folder", ["gs://tfds-data/datasets", "https://x.y/z", "s3://x"])
def test_data_folders_of_elsewhere_are_refused_unasked(asked, folder):
    section = dict(name="tfds", builder="cifar10", data_dir=folder)
    message = refusal(data.from_config, section, "train", error=DataError)
    assert f"{folder!r} is not on this machine" in message and asked == []


def test_an_adapter_that_names_a_builder_of_elsewhere(asked, tmp_path, capsys):
    saved_runs.save(tmp_path, dim=16, depth=1, heads=2)
    card = tmp_path / "adapter" / "adapter.json"
    values = json.loads(card.read_text())
    values["config"]["data"] = dict(name="tfds", builder="huggingface:mnist", data_dir="")
    values["card_sha256"] = product.card_hash(values)
    card.write_text(json.dumps(values))
    assert main(["eval", f"--workdir={tmp_path}"]) == 2
    assert "name one of its own" in capsys.readouterr().err and asked == []


# What unpacks to far more than it is.


def chunk(kind, content):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png(side, content=b"", end=True):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(content or bytes(side * (side + 1)), 9))
    return b"\x89PNG\r\n\x1a\n" + head + body + (chunk(b"IEND", b"") if end else b"")


def test_pictures_of_too_many_pixels():
    large = png(13_000)
    assert len(large) < 1e6
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(large), 22) + large
    for picture in (large, icon):
        message = refusal(decode.decode, picture, "cats/7.png", error=DataError)
        assert message == "cannot decode cats/7.png: it has more than 64,000,000 pixels"


def test_pictures_that_end_early():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 65), np.uint8)
    pixels[:, 0] = 0
    whole = png(64, pixels.tobytes())
    assert decode.decode(whole).shape == decode.decode(whole + b"junk").shape == (64, 64, 3)
    broken = [whole[:-keep] for keep in (1, 4, 12, 13, 16, 17, 30, 400, 4000)]
    for picture in (*broken, png(64, pixels.tobytes(), end=False)):
        assert "cannot decode a.png" in refusal(decode.decode, picture, "a.png", error=DataError)


def idx_bytes(shape, content=b""):
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content


IDX = {
    "announces all": (idx_bytes((2**32 - 1,) * 3), "more than the 67,108,864"),
    "announces 4 GiB": (idx_bytes((65536, 256, 256)), "announces 4,294,967,296 bytes"),
    "announces less": (idx_bytes((4, 8, 8), bytes(300 << 20)), "holds more"),
    "announces more": (idx_bytes((1000, 200, 200), bytes(99)), "holds 99"),
    "is cut short": (idx_bytes((4, 8, 8))[:9], "ends within its header"),
    "is empty": (b"", "is not an IDX file"),
}


@pytest.mark.parametrize("name", IDX)
def test_idx_files(tmp_path, name):
    content, part = IDX[name]
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content, 1))
    assert part in refusal(idx.read, path, 3, error=DataError)


def test_an_idx_file_that_unpacks_to_4_gib(tmp_path):
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(
        gzip.compress(idx_bytes((65536, 256, 256))) + 32 * gzip.compress(bytes(1 << 27))
    )
    assert path.stat().st_size < 5e6
    assert "may unpack to" in refusal(idx.read, path, 3, error=DataError)


@pytest.mark.parametrize("label", ["1000000000", "999999999999999999", "-7"])
def test_a_label_that_would_make_many_classes(tmp_path, label):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "train.txt").write_text(f"a.png {label}\na.png 0\n")
    section = dict(name="folder", path=str(tmp_path))
    assert label in refusal(data.from_config, section, "train", error=DataError)


@pytest.mark.parametrize(
    "line", ["1 " * 100_000, "a b " * 250_000, ".jpg " * 20_000, "," * 10**6], ids=lambda x: x[:4]
)
def test_lines_without_end_are_read_in_little_time(tmp_path, line):
    (tmp_path / "train.txt").write_text(line + "x\n")
    with cheap(), contextlib.suppress(DataError):
        lists.parse(tmp_path / "train.txt", known=("b x", "1 x"))


def test_classes_without_number():
    for classes in (10**15, 10**400, -(10**15)):
        assert "at most 1,000,000" in refusal(compare.run, "vit_mini", ["linear"], classes)


HUGE = (
    *("resize(30000)", "resize(8, 100000)", "pad((100000, 1))", "random_crop(8, padding=99999)"),
    *("random_resized_crop(8, ratio=(1e-300, 1e300))", "jitter(1e308)", "rotate((-1e308, 1e308))"),
    *("resize(" + "-" * 4000 + "1)", "resize" + "(" * 300 + ")" * 300, "resize(8)" + "+1" * 3000),
    *("resize(1" + "0" * 5000 + ")", "resize(1e400)", "x" * 10**6, "flip|" * 5000 + "flip"),
)


@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:30])
def test_transforms_of_absurd_settings(text):
    refusal(transforms.pipeline, text, error=ConfigError)


def test_a_picture_that_a_transform_makes_too_large():
    strip = {"image": np.zeros((1, 1_000_000, 3), np.uint8), "name": "strip.png"}
    message = refusal(transforms.pipeline("resize_short(224)"), strip, error=DataError)
    assert message.startswith("strip.png would get (224, 224000000) pixels")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("depth", 10**9), ("depth", 3000), ("dim", 10**19), ("image_size", 100_000)),
        *(("heads", "x"), ("registers", 10**15), ("mlp_ratio", float("nan"))),
        *(("epsilon", "x"), ("grid", (10**9, 2)), ("grid", (1,) * 10**5)),
    ],
)
def test_backbones_of_absurd_sizes(name, value):
    assert name in refusal(backbones.config, "vit_b16", error=ConfigError, **{name: value})


def test_generated_images_without_number():
    for settings in (dict(size=10**12), dict(image_size=10**6), dict(seed=10**30), dict(size=0)):
        refusal(data.from_config, dict(name="generated", **settings), "train", error=DataError)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_has_no_end_is_no_file(tmp_path, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / f"{kind}.pth"
    if kind != "device":
        {"pipe": os.mkfifo, "folder": os.mkdir}[kind](path)
    readers = (weights.from_checkpoint, weights.digest, files.read_json, files.read_tensors)
    for read in (*readers, files.read_npz, published.read, lists.read_lines):
        assert path.name in refusal(read, path)


def test_files_of_a_terabyte(tmp_path):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "train.txt").write_text("a.png x\n")
    source = data.from_config(dict(name="folder", path=str(tmp_path)), "train")
    assert "more than the 1,073,741,824" in refusal(source.__getitem__, 0, error=DataError)
    assert "that are read" in refusal(lists.read_lines, path, error=DataError)
    assert "that are read" in refusal(files.read_json, path, error=CheckpointError)


NESTED = "[" * 200_000


def test_json_that_is_nested_without_end(tmp_path):
    own, index, adapter = (tmp_path / name for name in ("own.safetensors", "index", "adapter"))
    values = {"norm/scale": np.ones(2, np.float32)}
    files.write_tensors(own, values, {published.METADATA: NESTED})
    for folder, name in ((index, mutants.INDEX), (adapter, peft.CONFIG)):
        folder.mkdir()
        (folder / name).write_text('{"weight_map": ' + NESTED)
    refusal(weights.from_checkpoint, own, error=CheckpointError)
    refusal(weights.from_checkpoint, index, error=CheckpointError)
    refusal(peft.read, adapter, error=CheckpointError)


def lying_zip(path, kind, claimed, content):
    """An entry that unpacks to more than the archive says."""
    with zipfile.ZipFile(path, "w", kind, compresslevel=1) as archive:
        archive.writestr("x.npy", content)
    made = bytearray(path.read_bytes())
    place = made.rindex(b"PK\1\2")
    made[place + 24 : place + 28] = struct.pack("<I", claimed)
    path.write_bytes(made)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_lie(tmp_path, kind):
    head = pickles.npy("<f4", (16,))
    zeros = bytes(1 << (29 if kind == zipfile.ZIP_DEFLATED else 20))
    for content in (head + zeros, b"\x93NUMPY\2\0\xff\xff\xff\xff" + zeros):
        lying_zip(tmp_path / "x.npz", kind, len(head) + 64, content)
        refusal(files.read_npz, tmp_path / "x.npz", error=CheckpointError)


# One sentence.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return mutants.write(tmp_path_factory.mktemp("whole"), pickles)


MAPS = ([], 5, "x", None, {}, {"a": 5}, {"a": ["x"]}, {"a": "../x"}, {"a": ".."}, {"a": "\0"})


@pytest.mark.parametrize("value", MAPS, ids=str)
def test_an_index_of_wrong_types(whole, tmp_path, value):
    shutil.copytree(whole["index"], tmp_path, dirs_exist_ok=True)
    (tmp_path / mutants.INDEX).write_text(json.dumps({"weight_map": value}))
    refusal(weights.from_checkpoint, tmp_path, error=CheckpointError)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "X9", "", 5])
def test_safetensors_of_dtypes_that_are_not_read(tmp_path, dtype):
    size = {"C64": 16, "F4": 1}.get(dtype, 2)
    path = tmp_path / "x.safetensors"
    entry = pickles.entry((2,), end=size, dtype=dtype)
    path.write_bytes(pickles.safe({"norm/scale": entry}, bytes(size)))
    assert "x.safetensors" in refusal(weights.from_checkpoint, path, error=CheckpointError)


# Fields of an entry in the list of contents: (offset, value).
ZIP = {
    "version": (6, b"\xff\xff"),
    "packing": (10, b"\x63\x00"),
    "encrypted": (8, b"\1\0"),
    "size": (24, b"\xff\xff\xff\xff"),
    "offset": (42, b"\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("name", ZIP)
@pytest.mark.parametrize("kind", ["zip", "google"])
def test_archives_of_unknown_kinds(whole, tmp_path, kind, name):
    path, made = tmp_path / whole[kind].name, bytearray(whole[kind].read_bytes())
    offset, value = ZIP[name]
    place = made.rindex(b"PK\1\2") + offset
    made[place : place + len(value)] = value
    path.write_bytes(made)
    assert path.name in refusal(weights.from_checkpoint, path, error=CheckpointError)


@pytest.mark.parametrize("dtype", ["U2", "S2", "M8[s]", [("a", "f4")]], ids=str)
def test_arrays_that_are_no_numbers(tmp_path, dtype):
    np.savez(tmp_path / "x.npz", np.zeros(2, dtype))
    assert "which are no numbers" in refusal(files.read_npz, tmp_path / "x.npz")


LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["attn.qkv"]}
FIELDS = {
    "r": ("x", 1.5, None, [], True, 0, float("nan")),
    "lora_alpha": ("x", [], None, True, float("nan"), float("inf"), 10**400),
    "lora_dropout": ("x", [1], {"a": 1}, float("nan")),
    "target_modules": (5, {"a": 1}, [5], [None], True, "(", ["q"]),
    "use_dora": ("yes", 5, [1]),
    "use_rslora": ("yes", 5, {"a": 1}),
    "bias": (5, [], "some"),
    "modules_to_save": (5, "x", [5], {"a": 1}),
    "rank_pattern": ([1], "x", {"a": "x"}, {"(": 1}),
    "alpha_pattern": ([1], {"a": None}, {"a": float("nan")}),
    "init_lora_weights": ([1], "pissa", {}),
    "peft_type": (None, [], "VERA"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_wrong_types_in_a_config_of_peft(tmp_path, name):
    a, b = np.ones((2, 8), np.float32), np.ones((24, 2), np.float32)
    start = "base_model.model.blocks.0.attn.qkv.lora_"
    files.write_tensors(tmp_path / peft.TENSORS, {f"{start}A.weight": a, f"{start}B.weight": b})
    (tmp_path / peft.CONFIG).write_text(json.dumps(LORA))
    peft.read(tmp_path)
    for value in FIELDS[name]:
        (tmp_path / peft.CONFIG).write_text(json.dumps({**LORA, name: value}))
        refusal(peft.read, tmp_path, error=CheckpointError)


@pytest.mark.parametrize("name", ["train.txt", "classes.txt"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32", "nul", "utf-16"])
def test_texts_in_other_encodings(tmp_path, name, encoding):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / label / "0.png")
    rows = {"train.txt": "a/0.png eins\nb/0.png zw\u00f6lf\n", "classes.txt": "a\nb\nzw\u00f6lf\n"}
    text = rows[name]
    content = text.encode() + b"\0" if encoding == "nul" else text.encode(encoding)
    (tmp_path / name).write_bytes(content)
    section = dict(name="folder", path=str(tmp_path))
    if encoding == "utf-16":  # says itself what it is
        assert "zw\u00f6lf" in data.from_config(section, "train").info.classes
    else:
        assert name in refusal(data.from_config, section, "train", error=DataError)


@pytest.fixture(scope="module")
def pets(fabricate, tmp_path_factory):
    """TFDS's folder with one small builder."""
    folder = tmp_path_factory.mktemp("pets")
    fabricate.tfds(folder, ["dtd"])
    return folder


ALIEN = json.dumps({"a": {"b": [{"pythonClassName": "antigravity.X"}]}})
TFDS = {  # a file, what it holds instead
    "info garbage": ("dataset_info.json", "{"),
    "info empty": ("dataset_info.json", ""),
    "info list": ("dataset_info.json", "[]"),
    "info fields": ("dataset_info.json", '{"splits": 5}'),
    "info nested": ("dataset_info.json", NESTED),
    "features garbage": ("features.json", "{"),
    "features empty": ("features.json", ""),
    "features binary": ("features.json", "\xff\0"),
    "features of elsewhere": ("features.json", ALIEN),
    "features nested": ("features.json", NESTED),
}


def read_dtd(folder, builder="dtd:3.*.*"):
    source = data.from_config(dict(name="tfds", builder=builder, data_dir=str(folder)), "train")
    return [source[i] for i in (0, len(source) - 1)]


@pytest.mark.parametrize("name", TFDS)
def test_damaged_metadata_of_tfds(pets, tmp_path, name):
    shutil.copytree(pets, tmp_path, dirs_exist_ok=True)
    file, text = TFDS[name]
    [path] = tmp_path.glob(f"dtd/*/{file}")
    path.write_text(text, encoding="latin-1")
    for builder in ("dtd:3.*.*", "dtd"):
        refusal(read_dtd, tmp_path, builder, error=DataError)


def test_classes_of_tfds_without_number(pets, tmp_path):
    shutil.copytree(pets, tmp_path, dirs_exist_ok=True)
    [path] = tmp_path.glob("dtd/*/features.json")
    text, count = re.subn(r'("numClasses": )"47"', r'\1"1000000000000000"', path.read_text())
    assert count == 1
    path.write_text(text)
    for names in tmp_path.glob("dtd/*/label.labels.txt"):
        names.unlink()
    refusal(read_dtd, tmp_path, error=DataError)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_damaged_shards_of_tfds(pets, tmp_path, damage):
    shutil.copytree(pets, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("dtd/*/*train*array_record*"):
        content = path.read_bytes()
        made = {"empty": b"", "cut": content[: len(content) // 2], "noise": bytes(len(content))}
        path.unlink() if damage == "missing" else path.write_bytes(made[damage])
    refusal(read_dtd, tmp_path, error=DataError)


@pytest.fixture
def closed(tmp_path):
    """Files and folders of mode 000, for a user who is not root."""
    for name in ("a", "b"):
        (tmp_path / "open" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "open" / "train" / name / "0.png")
    (tmp_path / "open" / "x.pth").write_bytes(b"x")
    (tmp_path / "open" / "list.txt").write_text("train/a/0.png x\n")
    shutil.copytree(tmp_path / "open", tmp_path / "shut")
    for path in (*tmp_path.glob("open/*.*"), *tmp_path.glob("open/train/*/0.png")):
        path.chmod(0)
    (tmp_path / "shut").chmod(0)
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents)}
    root = not os.geteuid()
    if root:
        for path, mode in modes.items():
            path.chmod(mode | 0o055)
        os.seteuid(65534)
    yield tmp_path
    if root:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
    (tmp_path / "shut").chmod(0o700)


def test_what_is_closed_is_said(closed):
    shut, file = str(closed / "shut"), closed / "open" / "x.pth"

    def first(name, split="train", **settings):
        return data.from_config(dict(name=name, **settings), split)[0]

    for read in (
        lambda: first("folder", path=str(closed / "open")),
        lambda: first("folder", path=shut),
        lambda: first("folder", path=f"{shut}/train"),
        lambda: first("folder", path=str(closed / "open"), list="list"),
        lambda: first("folder", path=shut, list="list"),
        lambda: first("idx", path=shut),
        lambda: first("offline", "test", task="bccd", path=shut),
        lambda: vtab.source("train800", "dtd", "folder", shut),
        lambda: weights.from_checkpoint(file),
        lambda: weights.from_checkpoint(f"{shut}/x.pth"),
        lambda: weights.from_checkpoint(shut),
        lambda: weights.digest(file),
        lambda: published.read(shut),
        lambda: files.read_json(Path(shut) / "x.json"),
    ):
        with pytest.raises(DynadaptError, match="[Pp]ermission denied") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_paths_that_can_be_none():
    for path in ("~nobody-of-that-name/x", "x" * 5000, "\0"):
        for name in ("folder", "idx"):
            refusal(data.from_config, dict(name=name, path=path[:500]), "train", error=DataError)
        refusal(weights.from_checkpoint, path, error=CheckpointError)


def test_a_broken_picture_of_a_batch_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "7.png").write_bytes(b"no picture")
    source = data.from_config(dict(name="folder", path=str(tmp_path)), "train")
    message = refusal(loader.example, source, transforms.pipeline("resize(8)"), 0, None)
    assert message == f"cannot decode {tmp_path}/a/7.png: cannot identify image file"


# Whatever else.


def hostile():
    """Pieces of pickles that would run something, or take much."""
    programs = [*pickles.UNSAFE.values(), *(p for _, p in pickles.PICKLES.values())]
    found = [pickles.emit(program).removeprefix(b"\x80\x04") for program in programs]
    return [fragment for fragment in found if len(fragment) < 10_000]


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [range(40), pytest.param(range(40, 900), marks=[pytest.mark.slow, pytest.mark.exhaustive])],
    ids=["few", "all"],
)
def test_mutants_run_nothing_and_cost_little(whole, tmp_path, monkeypatch, numbers):
    monkeypatch.chdir(tmp_path)
    fragments, seconds, most, good = hostile(), 0, 0, 0
    for number, kind in itertools.product(numbers, mutants.KINDS):
        path = mutants.mutate(kind, whole[kind], tmp_path, number, fragments)
        known = {} if kind in ("own", "index") else {"heads": 2}
        with cheap() as used:
            try:
                made = weights.from_checkpoint(path, **known)
            except DynadaptError as error:
                assert len(str(error)) < 4000, (kind, number)
            except Exception as error:
                raise AssertionError(f"mutant {number} of {kind}") from error
            else:
                good += 1
                leaves = tree.leaves(nnx.state(made)).values()
                assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in leaves)
        seconds, most = max(seconds, used["seconds"]), max(most, used["bytes"])
        # Nothing else appears, such as the canary that the hostile pieces would write.
        assert {p.name for p in tmp_path.iterdir()} <= {p.name for p in whole.values()}
    total = len(numbers) * len(mutants.KINDS)
    print(f"{total:,} mutants, {good:,} read, at most {seconds:.2f} s and {most / 1e6:.1f} MB each")
    assert 0 < good < total
