"""The table of published weights, and their download; nothing else here downloads anything."""

import functools
import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from dynadapt import backbones, files, tree
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.runs.journal import markdown_table, show_table
from dynadapt.runs.speed import matmul_flops
from dynadapt.weights.catalogue import PUBLISHED, Published
from dynadapt.weights.published import layout_for

CHUNK = 1 << 20
SECONDS = 60  # without a byte, after which a connection is given up
HASHES = {"sha256": "SHA-256", "md5": "MD5"}


def rows(published: tuple[Published, ...] | None = None) -> list[dict[str, Any]]:
    """One row for each of the published weights: sizes are computed, nothing is read."""
    return [row(p) for p in (PUBLISHED if published is None else published)]


def row(p: Published) -> dict[str, Any]:
    """What is known of published weights, without opening them."""
    parameters, flops = sizes(p.backbone, tuple(sorted(p.fields.items())), p.points)
    return dict(
        name=p.name,
        backbone=p.backbone,
        fields=dict(p.fields),
        parameters=parameters,
        input=f"{p.points} points" if p.points else f"{side(p)} x {side(p)}",
        normalise=p.normalise or "none",
        gflops=round(flops / 1e9, 1),
        data=p.data,
        licence=p.licence,
        file=p.file,
        url=p.url,
        digest=p.digest,
    )


def side(p: Published) -> int:
    """Side of the images that the weights are made for."""
    return backbones.config(p.backbone, **p.fields).image_size


@functools.cache
def sizes(backbone: str, fields: tuple[tuple[str, Any], ...], points: int) -> tuple[int, int]:
    """Parameters of a backbone, and FLOPs of its matrix products for one input of its size."""
    config = backbones.config(backbone, **dict(fields))
    # A scan is traced once a block and counted in full.
    network = backbones.abstract(backbone, scan=True, **dict(fields))
    graph, state = nnx.split(network)
    shape = (1, points, 3) if points else (1, config.image_size, config.image_size, 3)
    flops = matmul_flops(
        lambda s, x: nnx.merge(graph, s)(x, Context()).maps,
        state,
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    trained = nnx.split(network, nnx.Param, ...)[1]
    return tree.size(trained), flops


def download(p: Published, folder: Path) -> dict[str, Any]:
    """Brings published weights to `folder`, whole and verified, or leaves nothing there.

    A file of that name with the hash that is known of it is taken as it is.

    Raises:
        ConfigError: if a file has the folder's name.
        CheckpointError: if they cannot be had, end early or have another hash than is known.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--download={folder} must be a folder, not a file")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    out = folder / p.file
    if not (p.digest and out.is_file() and not _fault(out, p.digest)):
        request = urllib.request.Request(p.url, headers={"User-Agent": "dynadapt"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                _receive(answer, p, out)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server says {error.code} {error.reason}"
            raise CheckpointError(f"cannot download {p.url}: {reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CheckpointError(f"cannot download {p.url}: {_reason(error)}") from error
    return dict(name=p.name, file=str(out), sha256=files.sha256(out), verified=p.digest)


def _receive(answer: http.client.HTTPResponse, p: Published, out: Path) -> None:
    """Writes what is sent; the file gets its name after its size and hash were compared."""
    announced = answer.headers.get("Content-Length")
    total = int(announced) if announced else None
    with files.whole(out) as partial:
        with open(partial, "wb") as file:
            received = _copy(answer, file, p.file, total)
        if total is not None and received != total:
            raise CheckpointError(
                f"the download of {p.url} ended early, after {received:,} of {total:,} bytes"
            )
        if p.digest and (fault := _fault(partial, p.digest)):
            raise CheckpointError(f"{p.url} gave another file than expected: {fault}")


def _copy(answer: BinaryIO, file: BinaryIO, name: str, total: int | None) -> int:
    """Copies all that is sent, with a line of progress on standard error; the bytes."""
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, received = progress.add_task(name, total=total), 0
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            received += len(chunk)
            progress.update(task, completed=received)
    return received


def _fault(path: Path, digest: str) -> str:
    """How a file's hash differs from the digits that are known; "" if it doesn't."""
    kind, _, known = digest.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found.startswith(known):
        return ""
    return f"its {HASHES[kind]} starts with {found[: len(known)]}, not with {known}"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


# Where publishers differ: whose, publisher, a backbone of theirs, what sets it apart.
_SOURCES = (
    ("AugReg and ViT, `.npz`", "google", "vit_ti16", {}),
    ("big_vision, `.npz`", "big_vision", "vit_ti16", {}),
    ("timm: ViT, AugReg, DeiT", "timm", "vit_ti16", {}),
    ("Meta: MAE", "meta", "mae_b16", {}),
    ("Meta: DINOv2", "meta", "dinov2_s14", {}),
    ("Meta: DINOv2 with registers", "meta", "dinov2_s14_reg", {}),
    ("Hugging Face: ViT, ViTMAE", "hf", "vit_ti16", {}),
    ("Hugging Face: DINOv2", "hf", "dinov2_s14", {}),
    ("Hugging Face: DINOv2 with registers", "hf", "dinov2_s14_reg", {}),
    ("Meta: SAM", "meta", "sam_b16", {}),
    ("timm: SAM", "timm", "sam_b16", {}),
    ("Hugging Face: SAM", "hf", "sam_b16", {}),
    ("Microsoft: Swin", "microsoft", "swin_t", {}),
    ("Microsoft: Swin for detection", "microsoft", "swin_t", dict(level_norms=True)),
    ("OpenMMLab: Swin", "openmmlab", "swin_t", dict(level_norms=True)),
    ("timm: Swin", "timm", "swin_t", {}),
    ("Hugging Face: Swin", "hf", "swin_t", {}),
    ("Point-MAE", "point_mae", "point_mae_s", {}),
)


# One block tells as much as all.
_SHORT = {
    "point_mae": dict(depth=1),
    "sam": dict(depth=1, whole=()),
    "swin": dict(depths=(1, 1, 1, 1)),
    "vit": dict(depth=1),
}


def differences() -> list[dict[str, Any]]:
    """What each publisher's layout says of the options that no tensor tells."""
    found = []
    for source, publisher, backbone, fields in _SOURCES:
        short = _SHORT[backbones.family(backbone)]
        config = told(publisher, backbone, **short, **fields)
        picked = {k: config.get(k, "") for k in ("epsilon", "act", "resample", "pad", "small")}
        found.append(dict(source=source, **picked))
    return found


def told(publisher: str, backbone: str, **fields: Any) -> dict[str, Any]:
    """The config that a publisher's layout tells from the shapes of a backbone's tensors."""
    network = backbones.abstract(backbone, **fields)
    family, config = backbones.family(backbone), network.config
    layout = layout_for(publisher, family, config)
    # Zeros that take no memory: only shapes count.
    zeros = {
        k: np.broadcast_to(np.float32(0), v.shape)
        for k, v in tree.leaves(nnx.state(network)).items()
    }
    heads = config.heads if isinstance(config.heads, int) else 0
    shapes = {k: v.shape for k, v in layout.to_source(zeros, "", heads).items()}
    return layout.config(shapes, {})


def page(table: list[dict[str, Any]], measured: dict[str, Any] | None = None) -> str:
    """The page `docs/models.md`: the table, how to load, and where publishers differ."""
    text = _text()
    main = [
        [
            *(f"`{r['name']}`", f"`{r['backbone']}`", f"{r['parameters']:,}", r["input"]),
            *(r["normalise"], f"{r['gflops']:,}", r["data"], r["licence"]),
            f"[{_short(r['file'])}]({r['url']})",
        ]
        for r in table
    ]
    columns = ["name", "backbone", "parameters", "input", "normalise", "GFLOPs", "trained on"]
    rules = [[r["source"], f"{r['epsilon']:g}", *list(r.values())[2:]] for r in differences()]
    headings = ["source", "norm epsilon", "GELU", "positions", "Swin's borders", "small stages"]
    text = text.replace("TABLE", markdown_table([*columns, "licence", "file"], main))
    text = text.replace("RULES", markdown_table(headings, rules))
    if measured is None:
        return text
    timed = [[f"`{k}`", v] for k, v in measured["images_per_second"].items()]
    heading = (
        f"\n## Speed\n\nOne forward pass in float32, batch {measured['batch']}, all in turn, "
        f"the median of {measured['rounds']} readings, on {measured['machine']}. Those above "
        f"{measured['limit']} GFLOPs were not measured.\n\n"
    )
    return text + heading + markdown_table(["backbone", "inputs/s"], timed)


def _text() -> str:
    return Path(__file__).parents[1].joinpath("assets", "models.md.in").read_text(encoding="utf-8")


def _short(file: str) -> str:
    return file if len(file) <= 40 else f"{file[:24]}…{file[-12:]}"


def write_page(out: Path, text: str) -> None:
    """Writes the page."""
    with files.whole(out) as partial:
        partial.write_text(text, encoding="utf-8")


def show(table: list[dict[str, Any]]) -> None:
    """Prints the table."""
    keys = ["name", "backbone", "parameters", "input", "normalise", "gflops", "licence"]
    if any("images_per_second" in r for r in table):
        keys.append("images_per_second")
    lines = [["-" if r[k] is None else r[k] for k in keys] for r in table]
    columns = [k.replace("images_per_second", "inputs/s") for k in keys]
    show_table("published weights", columns, lines)
    print("how to obtain one: dynadapt weights NAME")


def show_one(r: dict[str, Any]) -> None:
    """Prints one row, how to obtain the file and how to load it."""
    for key in ("name", "backbone", "parameters", "input", "normalise", "gflops", "data"):
        print(f"{key:12}{r[key]:,}" if isinstance(r[key], int) else f"{key:12}{r[key]}")
    print(f"{'licence':12}{r['licence']}\n{'url':12}{r['url']}")
    print(f"{'hash':12}{r['digest'] or 'none is known'}")
    print(f"obtain it:  dynadapt weights {r['name']} --download=DIR")
    options = dict(name=r["backbone"], weights=f"DIR/{r['file']}", **r["fields"])
    print("load it:    " + " ".join(f"--config.backbone.{k}={v}" for k, v in options.items()))
