"""Files of weights of a tiny ViT in every format, and random changes of them, for tests.

A mutant is a pure function of a number. Half of the changes keep what a format checks, such as the
checksums of a zip file, so that what lies behind the check is tried too.
"""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dynadapt import backbones, files, tree
from dynadapt.weights.published import METADATA, layout_for

SIZES = dict(dim=16, depth=1, heads=2, image_size=32)
KINDS = ("own", "timm", "google", "packed", "zip", "stream", "index")
INDEX = "model.safetensors.index.json"
# What a value of JSON is changed into.
VALUES = (
    *(None, True, 0, -1, 7, 2**31, 10**15, 10**400, 1e308, 0.5, float("nan"), float("-inf")),
    *("", "x", "\0", "../x", "/dev/zero", "x" * 5000, "F8_E5M2", "BF16", "I64", "vit", "swin"),
    *([], {}, [1, 2], [0], [-1, 2], [2**40, 2**40], {"a": 1}, ["x"], [[]]),
)
WORDS = [n.to_bytes(size, "little") for size in (2, 4, 8) for n in (0, 1, 2 ** (8 * size - 1))]
WORDS += [b"\xff" * size for size in (1, 2, 4, 8)] + [b"PK\1\2", b"PK\5\6", b"PK\6\7", b"\x80\2"]


def write(folder: Path, pickles: Any) -> dict[str, Path]:
    """Whole files by kind; `pickles` writes torch's formats (tests/weights/test_pth.py)."""
    backbone = backbones.create("vit_b16", rngs=nnx.Rngs(0), **SIZES)
    values = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(backbone)).items()}
    timm, google = (
        {k: np.ascontiguousarray(v, "<f4") for k, v in layout.to_source(values, "", 2).items()}
        for layout in (layout_for(name, "vit", backbone.config) for name in ("timm", "google"))
    )
    ends = dict(own=".safetensors", timm=".safetensors", google=".npz", packed=".npz", index="")
    paths = {kind: folder / f"{kind}{ends.get(kind, '.pth')}" for kind in KINDS}
    files.write_tensors(
        paths["own"], values, {METADATA: json.dumps(dict(family="vit", config=SIZES))}
    )
    files.write_tensors(paths["timm"], timm, {"format": "pt"})
    np.savez(paths["google"], **google)
    np.savez_compressed(paths["packed"], **google)
    tensors = {
        name: pickles.tensor("Float", str(i), v.size, 0, v.shape, _strides(v))
        for i, (name, v) in enumerate(timm.items())
    }
    content = {str(i): v.tobytes() for i, v in enumerate(timm.values())}
    pickles.archive(paths["zip"], {"model": tensors, "epoch": 3}, content)
    pickles.stream(
        paths["stream"], {"model": tensors}, {k: (len(v) // 4, v) for k, v in content.items()}
    )
    paths["index"].mkdir()
    places = {name: f"{i % 2}.safetensors" for i, name in enumerate(timm)}
    for part in sorted(set(places.values())):
        held = {name: timm[name] for name in places if places[name] == part}
        files.write_tensors(paths["index"] / part, held)
    files.write_json(paths["index"] / INDEX, {"metadata": {"total_size": 1}, "weight_map": places})
    card = dict(architecture="vit_tiny_patch16_224", model_type="vit", image_size=32, patch_size=16)
    card |= dict(num_attention_heads=2, hidden_act="gelu", input_size=[3, 32, 32])
    files.write_json(paths["index"] / "config.json", card)
    return paths


def _strides(value: np.ndarray) -> tuple[int, ...]:
    return tuple(n // value.itemsize for n in value.strides)


def mutate(kind: str, whole: Path, out: Path, number: int, fragments: list[bytes]) -> Path:
    """Writes the mutant of a number in the folder `out`; `fragments` are hostile pieces of pickles.

    Returns:
        its file, or its folder for an index.
    """
    rng = random.Random(f"{kind} {number}")
    if kind == "index":
        folder = out / kind
        folder.mkdir(exist_ok=True)
        changed = rng.choice((INDEX, INDEX, "config.json", "0.safetensors"))
        for file in whole.iterdir():
            data = file.read_bytes()
            (folder / file.name).write_bytes(_change(data, rng) if file.name == changed else data)
        return folder
    data = whole.read_bytes()
    if kind in ("google", "packed", "zip") and rng.random() < 0.6:
        data = _inside_zip(data, rng, fragments)
    elif kind == "stream" and rng.random() < 0.6:
        data = _insert(data, rng, fragments, 5000)
    else:
        data = _change(data, rng)
    path = out / whole.name
    path.write_bytes(data)
    return path


def _change(data: bytes, rng: random.Random) -> bytes:
    """A few changes of bytes, or of a value where there is JSON."""
    start = 8 if data[8:9] == b"{" else 0
    if data[start : start + 1] == b"{" and rng.random() < 0.7:
        end = start + int.from_bytes(data[:8], "little") if start else len(data)
        head = json.dumps(_change_json(json.loads(data[start:end]), rng)).encode()
        return (struct.pack("<Q", len(head)) if start else b"") + head + data[end:]
    return _bytes(data, rng)


def _change_json(value: Any, rng: random.Random) -> Any:
    """The value with one of those inside it changed, lost or doubled; text of JSON from within."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        made = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        key = rng.choice([*made, *(k for k in made if str(k).startswith("__"))])
        if rng.random() < 0.1:
            made.pop(key)
        else:
            made[key] = _change_json(made[key], rng)
        return made if isinstance(value, dict) else list(made.values())
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:
        return json.dumps(_change_json(json.loads(value), rng))
    return rng.choice(VALUES)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, mostly at both ends, where headers are."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = rng.choice((40, 2000, len(made)))
        place = rng.randrange(max(1, min(near, len(made))))
        place = rng.choice((place, max(0, len(made) - 1 - place)))
        action: Callable = rng.choice((_flip, _flip, _word, _cut, _double, _drop))
        action(made, place, rng)
    return bytes(made)


def _flip(made: bytearray, place: int, rng: random.Random) -> None:
    if made:
        made[min(place, len(made) - 1)] = rng.randrange(256)


def _word(made: bytearray, place: int, rng: random.Random) -> None:
    word = rng.choice(WORDS)
    made[place : place + len(word)] = word


def _cut(made: bytearray, place: int, rng: random.Random) -> None:
    if rng.random() < 0.3:
        del made[place:]


def _double(made: bytearray, place: int, rng: random.Random) -> None:
    made[place:place] = made[place : place + rng.choice((1, 8, 300))]


def _drop(made: bytearray, place: int, rng: random.Random) -> None:
    del made[place : place + rng.choice((1, 4, 50))]


def _insert(data: bytes, rng: random.Random, fragments: list[bytes], near: int) -> bytes:
    """A pickle with a hostile piece in it, or changed bytes."""
    place = rng.randrange(min(near, len(data)))
    if rng.random() < 0.5:
        return data[:place] + rng.choice(fragments) + data[place + rng.choice((0, 0, 20)) :]
    return _bytes(data[:near], rng) + data[near:]


def _inside_zip(data: bytes, rng: random.Random, fragments: list[bytes]) -> bytes:
    """A zip file of which one entry was changed before it was written, its checksum after."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info: archive.read(info) for info in archive.infolist()}
    infos = list(entries)
    pickled = [info for info in infos if info.filename.endswith("data.pkl")]
    chosen = rng.choice(pickled or infos)
    near = len(entries[chosen]) if pickled else 128
    entries[chosen] = _insert(entries[chosen], rng, fragments, near)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info, content in entries.items():
            packed = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            unusual = info is chosen and rng.random() < 0.1
            archive.writestr(info.filename, content, packed if unusual else info.compress_type)
    return out.getvalue()
