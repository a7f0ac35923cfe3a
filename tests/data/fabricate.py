"""Small stand-ins for the data of VTAB-1K, in the formats that the real data have.

`tfds` writes ArrayRecord through each builder's own class, so that the real builder reads it, and
`community` the shared folder of JPEG files and lists. Images are blocks of colour that tell the
label, plus noise: what a model learns from them shows that images and labels belong together.
"""

import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dynadapt.data import vtab

CELLS = 8  # an image is this many blocks high and wide
TEST = 60  # images of a test split, where the builder's own rule doesn't ask for more
SIZES = {  # the smallest that VTAB-1K's splits fit into
    "caltech101": {"train": 2000, "test": TEST},
    "cifar100": {"train": 2000, "test": TEST},
    "dtd": {"train": 800, "validation": 200, "test": TEST},
    "oxford_flowers102": {"train": 800, "validation": 200, "test": TEST},
    "oxford_iiit_pet": {"train": 1000, "test": TEST},
    "svhn_cropped": {"train": 2000, "test": TEST},
    "sun397": {"train": 800, "validation": 200, "test": TEST},
    "patch_camelyon": {"train": 800, "validation": 200, "test": TEST},
    "eurosat": {"train": 1340},
    "resisc45": {"train": 1340},
    "diabetic_retinopathy_detection": {"train": 800, "validation": 200, "test": TEST},
    "clevr": {"train": 2000, "validation": TEST, "test": 5},
    "dmlab": {"train": 800, "validation": 200, "test": TEST},
    "kitti": {"train": 800, "validation": 200, "test": TEST},
    "dsprites": {"train": 2000},
    "smallnorb": {"train": 800, "test": 400},
}


def stem(task: str) -> str:
    """The name of the task's builder without config and version, as in `SIZES`."""
    return vtab.TASKS[task].builder.split(":")[0].split("/")[0]


@functools.cache
def colours() -> np.ndarray:
    """Blocks of each label, `label cells cells 3`, 0 to 255: a colour and a pattern around it."""
    rng = np.random.default_rng(17)
    mean = rng.integers(50, 206, (400, 1, 1, 3))
    return mean + rng.integers(-50, 50, (400, CELLS, CELLS, 3))


def blocks(labels: tuple[int, ...]) -> np.ndarray:
    """Blocks `cells cells 3` that show one label, or two, one above the other."""
    half = CELLS // 2
    return np.concatenate([colours()[labels[0], :half], colours()[labels[-1], half:]])


def picture(labels: tuple[int, ...], height: int, width: int, rng: np.random.Generator):
    """uint8 `height width 3`."""
    shown = blocks(labels) + rng.normal(0, 12, (CELLS, CELLS, 3))
    small = Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def sprite(labels: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """0 and 1, `64 64 1`; the share of ones in the upper and lower half tells the labels of 16."""
    field = np.random.default_rng(18).permuted(np.tile(np.arange(32.0), (2, 1)), axis=1) / 32
    share = (np.array(labels)[:, None] + 0.5) / 16
    ones = (field < share) ^ (rng.random((2, 32)) < 0.02)
    return np.kron(ones.reshape(CELLS, CELLS), np.ones((8, 8)))[..., None].astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> io.BytesIO:
    """An image file. TFDS stores bytes as they are; for an array it would import TensorFlow."""
    file = io.BytesIO()
    grey = pixels.shape[-1] == 1
    options = {"compress_level": 1} if kind == "PNG" else {"quality": 75}
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, kind, **options)
    file.seek(0)
    return file


def tfds(
    folder: str | Path,
    tasks: Iterable[str] = (),
    sizes: Mapping[str, Mapping[str, int]] | None = None,
    seed: int = 0,
) -> None:
    """Writes the builders of `tasks` (all by default) as TFDS's data folder `folder`.

    `sizes` gives the splits of a builder other sizes than those of `SIZES`.
    """
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    for builder in dict.fromkeys(vtab.TASKS[task].builder for task in tasks or vtab.TASKS):
        name = builder.split(":")[0]
        base = name.split("/")[0]
        _write(tensorflow_datasets, builder, str(folder), {**SIZES, **(sizes or {})}[base], seed)


def _write(library, builder: str, folder: str, sizes: Mapping[str, int], seed: int) -> None:
    name, version = builder.split(":")
    name, _, config = name.partition("/")
    real = library.builder_cls(name)

    def examples(self, split, number):
        rng = np.random.default_rng([seed, number])
        for i in range(sizes[split]):
            yield f"{split}_{i:06d}", _example(library, name, self.info.features, rng, i)

    body = {
        "_split_generators": lambda self, manager: {
            split: examples(self, split, number) for number, split in enumerate(sizes)
        },
        "_generate_examples": lambda self: iter(()),
        "MANUAL_DOWNLOAD_INSTRUCTIONS": None,
        "name": real.name,
        "pkg_dir_path": real.pkg_dir_path,
        "url_infos": {},  # TFDS would look for its checksums with importlib_resources
        "__module__": __name__,
    }
    options = {"config": config} if config else {}
    if "*" not in version:
        options["version"] = version
    with library.core.registered.skip_registration():
        made = type(real.__name__, (real,), body)(
            data_dir=folder, file_format="array_record", **options
        )
        made.download_and_prepare()


def _example(library, name: str, features, rng: np.random.Generator, i: int) -> dict:
    """An example of a builder: what tells its labels, and anything in the other features."""
    example = {key: _anything(library, feature, rng) for key, feature in features.items()}
    if name == "clevr":
        count, interval = int(rng.integers(8)), int(rng.integers(6))
        example["objects"] = _clevr(library, features, rng, count, interval)
        labels = (count, interval)
    elif name == "kitti":
        labels = (int(rng.integers(4)),)
        example["objects"] = _kitti(library, features, rng, labels[0])
    elif name == "dsprites":
        example["label_x_position"] = int(rng.integers(32))
        example["label_orientation"] = int(rng.integers(40))
        labels = (example["label_x_position"] // 2, int(example["label_orientation"] / 2.5))
        return {**example, "image": encode(sprite(labels, rng))}
    elif name == "smallnorb":
        labels = (example["label_azimuth"], example["label_elevation"])
    else:
        labels = (i % features["label"].num_classes,)
        example["label"] = labels[0]
    height, width, channels = features["image"].shape
    photographs = height is None or name in ("resisc45", "dmlab")
    pixels = picture(labels, height or 40 + i % 5, width or 48, rng)
    if channels == 1:
        pixels = pixels.mean(-1, keepdims=True).astype(np.uint8)
    return {
        **example,
        "image": encode(pixels, "JPEG" if photographs and name != "clevr" else "PNG"),
    }


def _clevr(library, features, rng, count: int, interval: int) -> list[dict]:
    objects = [_anything(library, features["objects"].feature, rng) for _ in range(count + 3)]
    nearest = (4.0, 8.25, 8.75, 9.25, 9.75, 12.0)[interval]
    depths = nearest + rng.permutation(len(objects)) * 0.5
    for thing, depth in zip(objects, depths, strict=True):
        thing["pixel_coords"] = np.array([1.0, 2.0, depth], np.float32)
    return objects


def _kitti(library, features, rng, interval: int) -> list[dict]:
    """A walker nearer than all vehicles (types 0 to 2), and two of these unless `interval` is 3."""
    depths = [] if interval == 3 else [(5.0, 14.0, 40.0)[interval], 60.0]
    objects = []
    for kind, depth in [(4, 2.0), *((int(rng.integers(3)), depth) for depth in depths)]:
        thing = _anything(library, features["objects"].feature, rng)
        location = np.array([0.0, 1.0, depth], np.float32)
        objects.append({**thing, "type": kind, "location": location})
    return objects


def _anything(library, feature, rng: np.random.Generator):
    """A valid value of any feature that the 16 builders have."""
    kinds = library.features
    if isinstance(feature, kinds.FeaturesDict):
        return {key: _anything(library, value, rng) for key, value in feature.items()}
    if isinstance(feature, kinds.Sequence):
        return [_anything(library, feature.feature, rng)]
    if isinstance(feature, kinds.Image):
        height, width, channels = feature.shape
        return encode(np.zeros((height or 4, width or 4, channels), np.uint8))
    if isinstance(feature, kinds.BBoxFeature):
        return kinds.BBox(ymin=0.1, xmin=0.2, ymax=0.6, xmax=0.7)
    if isinstance(feature, kinds.Text):
        return "text"
    if isinstance(feature, kinds.ClassLabel):
        return int(rng.integers(feature.num_classes))
    return np.zeros(feature.shape, feature.np_dtype)


def community(
    folder: str | Path,
    tasks: Iterable[str] = (),
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> None:
    """Writes `folder/vtab-1k/<name>/` of `tasks` (all by default): lists and JPEG files.

    `sizes` gives a split of train800, val200 and test another size.
    """
    counts = {"train800": 800, "val200": 200, "test": TEST, **(sizes or {})}
    for task in tasks or vtab.TASKS:
        name = vtab.TASKS[task].folder or task
        root = Path(folder) / "vtab-1k" / name
        rng = np.random.default_rng([seed, *name.encode()])
        lists = {split: list(_files(root, task, split, n, rng)) for split, n in counts.items()}
        both = lists["train800"] + lists["val200"]
        (root / "images" / "train800val200").mkdir(parents=True)
        lists["train800val200"] = []
        for i, (file, label) in enumerate(both):
            again = f"images/train800val200/{i:06d}.jpg"
            os.link(root / file, root / again)
            lists["train800val200"].append((again, label))
        for split, rows in lists.items():
            text = "".join(f"{file} {label}\n" for file, label in rows)
            (root / f"{split}.txt").write_text(text)


def _files(root: Path, task: str, split: str, count: int, rng) -> Iterator[tuple[str, int]]:
    (root / "images" / split).mkdir(parents=True)
    for i in range(count):
        label = int(rng.integers(vtab.TASKS[task].classes))
        file = f"images/{split}/{i:06d}.jpg"
        (root / file).write_bytes(encode(picture((label,), 32, 32, rng), "JPEG").getvalue())
        yield file, label
