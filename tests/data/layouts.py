"""Writes small dense data sets as their publishers lay them out."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 12, 16


def picture(number: int = 0, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """An image uint8 `h w 3` that differs by its number."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def blocks(values: list[int], size: tuple[int, int] = (H, W)) -> np.ndarray:
    """A map `h w` of upright stripes of these values."""
    columns = np.arange(size[1]) * len(values) // size[1]
    return np.broadcast_to(np.array(values)[columns], size)


def write(file: Path, array: np.ndarray) -> Path:
    """Saves an array as its ending says: NPY, or an image of 8 or 16 bits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, array)
    else:
        Image.fromarray(np.ascontiguousarray(array)).save(file)
    return file


def palette(file: Path, indices: np.ndarray) -> Path:
    """Saves a palette PNG, whose colours look like no indices."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(indices.astype(np.uint8)))
    image.putpalette(np.random.default_rng(9).integers(0, 256, 768, np.uint8).tobytes())
    image.save(file)
    return file


def grey_png(file: Path, values: np.ndarray, bits: int) -> Path:
    """Saves a grey PNG of 1, 2 or 4 bits, which Pillow itself does not write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    planes = values.astype(np.uint8)[..., None] >> np.arange(bits - 1, -1, -1, np.uint8) & 1
    rows = np.packbits(planes.reshape(len(values), -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return file


def masks(root: Path, splits: dict[str, int], values=(0, 1, 2, 255), names=("sky", "road", "car")):
    """`images/<split>/`, `masks/<split>/` at two depths, and `classes.txt`."""
    for split, count in splits.items():
        for i in range(count):
            stem = f"{split}/{'a' if i % 2 else 'b/c'}/{i}"
            write(root / "images" / f"{stem}.jpg", picture(i))
            write(root / "masks" / f"{stem}.png", blocks([*values]).astype(np.uint8))
    (root / "classes.txt").write_text("\n".join(names))
    return root


def camvid(root: Path):
    """`train/`, `trainannot/` and so on; 11 classes and 11 for void."""
    for split in ("train", "val"):
        for i in range(2):
            write(root / split / f"{split}_{i}.jpg", picture(i))
            values = blocks([0, 3, 10, 11]).astype(np.uint8)
            write(root / f"{split}annot" / f"{split}_{i}.png", values)
    return root


def ade20k(root: Path, info: bool = True):
    """ADEChallengeData2016 with masks of 0 to 150."""
    root = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for i in range(3):
            name = f"ADE_{short}_{i + 1:08d}"
            write(root / "images" / split / f"{name}.jpg", picture(i))
            values = blocks([0, 1, 75, 150]).astype(np.uint8)
            write(root / "annotations" / split / f"{name}.png", values)
    if info:
        rows = [f"{k}\t0.01\t10\t2\t1\tthing {k}, object" for k in range(1, 151)]
        heading = "Idx\tRatio\tTrain\tVal\tStuff\tName"
        (root / "objectInfo150.txt").write_text("\n".join([heading, *rows]) + "\n")
    return root


def voc(root: Path):
    """VOCdevkit/VOC2012 with palette masks and one image that no list has."""
    root = root / "VOCdevkit" / "VOC2012"
    ids = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    ids["trainval"] = sorted(ids["train"] + ids["val"])
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in ids.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate([*ids["trainval"], "2008_000001"]):
        write(root / "JPEGImages" / f"{name}.jpg", picture(i))
        if name != "2008_000001":
            palette(root / "SegmentationClass" / f"{name}.png", blocks([0, 15, 20, 255]))
    return root


def nyu(root: Path, train: str = "sync", test: str = "official_splits/test"):
    """Lists and files as GLPDepth prepares them: training and test images apart."""
    depth = blocks([0, 500, 2500, 9999]).astype(np.uint16)
    for split, place in (("train", train), ("test", test)):
        lines = []
        for i in range(3):
            scene = f"kitchen_000{i}" if split == "train" else "kitchen"
            image, below = f"{scene}/rgb_{i:05d}.jpg", f"{scene}/sync_depth_{i:05d}.png"
            write(root / place / image, picture(i))
            write(root / place / below, depth)
            lines.append(f"/{image} /{below} 518.8579")
        (root / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
    return root


def runs(mask: np.ndarray) -> dict:
    """COCO's run lengths of a mask `h w` as numbers: down the columns, zeros first."""
    flat = mask.T.ravel().astype(bool)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [*mask.shape], "counts": [0, *counts] if flat[0] else counts}


def filled(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """A mask `h w` of these rows and columns."""
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


def rectangle(left: float, top: float, w: float, h: float) -> list[float]:
    """A polygon of four corners."""
    return [left, top, left + w, top, left + w, top + h, left, top + h]


def annotation(number: int, image: int, category: int, box: list[float], **more) -> dict:
    """One object of a COCO file; its outline is its box unless another is given."""
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [rectangle(*box)],
        **more,
    }


def coco_document() -> dict:
    """Three images, two with objects of categories 3 and 90 of 1, 3 and 90: polygons, run lengths
    packed and not, a crowd, one outside of the image, and one without an area."""
    names = {9: "000000000009.jpg", 25: "000000000025.jpg", 30: "more/30.png"}
    packed = {"size": [H, W], "counts": "757000e4"}
    return {
        "info": {"year": 2017},
        "images": [dict(id=k, file_name=v, height=H, width=W) for k, v in names.items()],
        "categories": [
            dict(id=90, name="toothbrush", supercategory="indoor"),
            dict(id=1, name="person", supercategory="person"),
            dict(id=3, name="car", supercategory="vehicle"),
        ],
        "annotations": [
            annotation(11, 9, 3, [2, 1, 6, 4]),
            annotation(12, 9, 90, [4, 3, 3, 2], segmentation=runs(filled(3, 4, 5, 7))),
            annotation(13, 9, 3, [0, 6, 9, 6], iscrowd=1, segmentation=runs(filled(6, 0, 12, 9))),
            annotation(14, 9, 90, [20, 3, 4, 4]),
            annotation(15, 9, 90, [5, 3, 0, 4]),
            annotation(16, 30, 90, [-2, 7, 5, 9], segmentation=packed),
        ],
    }


def coco(root: Path, document: dict | None = None, splits=("train2017", "val2017")) -> Path:
    """`annotations/instances_<split>.json` and the images in `<split>/`."""
    document = document or coco_document()
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split in splits:
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        for i, row in enumerate(coco_document()["images"]):
            write(root / split / row["file_name"], picture(i))
    return root


def voc_objects(root: Path) -> Path:
    """VOC's folders with three images of cats and dogs, one of them without any."""
    things = {
        "2007_000032": [("dog", (3, 2, 8, 6), 0), ("cat", (1, 1, 16, 12), 1)],
        "2007_000039": [("cat", (5, 5, 20, 9), 0), ("cat", (7, 7, 6.5, 9), 0)],
        "2007_000033": [],
    }
    splits = {"train": ["2007_000039", "2007_000032"], "val": ["2007_000033"]}
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in splits.items():
        text = "".join(f"{name}  1\n" for name in names)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
    for i, (name, objects) in enumerate(things.items()):
        write(root / "JPEGImages" / f"{name}.jpg", picture(i))
        voc_annotation(root / "Annotations" / f"{name}.xml", objects)
    return root


def voc_annotation(file: Path, objects, size: tuple[int, int] = (H, W)) -> Path:
    """An XML file of objects: name, (xmin, ymin, xmax, ymax), difficult."""
    body = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>"
        "</bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, box, difficult in objects
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"<annotation><filename>{file.stem}.png</filename><size><width>{size[1]}</width>"
        f"<height>{size[0]}</height><depth>3</depth></size>{body}</annotation>"
    )
    return file


def instances(root: Path, values: list[int] = (0, 1, 300, 7), splits=("train", "test")) -> Path:
    """`images/<split>/` and `instances/<split>/` of upright stripes, the last row of them 0."""
    for split in splits:
        for i in range(2):
            numbers = blocks([*values]).astype(np.uint16 if max(values) > 255 else np.uint8)
            numbers[-1] = 0
            write(root / "images" / split / f"{i}.jpg", picture(i))
            write(root / "instances" / split / f"{i}.png", numbers)
    return root


def several(root: Path) -> Path:
    """`<split>/<i>_rgb.jpg` and beside it a depth of a plane, numbers of a table's parts and two
    things, normals and a white thing."""
    numbers = blocks([0, 3, 25, 31]).astype(np.uint8)
    vectors = np.full((H, W, 3), (128, 128, 0), np.uint8)
    vectors[0] = 0
    for split in ("learn", "test"):
        for i in range(3):
            stem = root / split / str(i)
            write(stem.with_name(f"{i}_rgb.jpg"), picture(i))
            write(stem.with_name(f"{i}_depth.png"), blocks([0, 1000, 2000, 900]).astype(np.uint16))
            write(stem.with_name(f"{i}_label.png"), numbers)
            write(stem.with_name(f"{i}_normals.png"), vectors)
            write(stem.with_name(f"{i}_white.png"), (numbers > 30).astype(np.uint8) * 255)
    return root


def part_file(file: Path, things: list[tuple[int, list[tuple[str, np.ndarray]]]]) -> Path:
    """A file of PASCAL-Part: each thing's category and its named masks."""
    from scipy.io import savemat

    objects = np.zeros(
        (1, len(things)), [(k, "O") for k in ("class", "class_ind", "mask", "parts")]
    )
    for i, (category, named) in enumerate(things):
        parts = np.zeros((1, len(named)), [("part_name", "O"), ("mask", "O")])
        for j, part in enumerate(named):
            parts[0, j] = part
        whole = np.ones((H, W), np.uint8)
        objects[0, i] = ("thing", category, whole, parts if named else np.zeros((0, 0)))
    anno = np.zeros((1, 1), [("imname", "O"), ("objects", "O")])
    anno[0, 0] = (file.stem, objects)
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"anno": anno}, do_compression=True)
    return file


def pascal_mt(root: Path) -> Path:
    """PASCAL_MT with two images of `train`, the first with a person, and one of `val`."""
    from scipy.io import savemat

    root = root / "PASCAL_MT"
    ids = {"train": ["2008_000001", "2008_000002"], "val": ["2008_000003"]}
    head, foot = filled(0, 0, 6, 8), filled(4, 0, 9, 4)
    things = {
        "2008_000001": [(8, []), (15, [("leye", head), ("lfoot", foot)]), (15, [])],
        "2008_000002": [(15, []), (8, [("head", head)])],
        "2008_000003": [(15, [("torso", head)])],
    }
    (root / "pascal-context" / "trainval").mkdir(parents=True)
    for i, name in enumerate([*ids["train"], *ids["val"]]):
        write(root / "JPEGImages" / f"{name}.jpg", picture(i))
        place = "pascal-context" if i else "VOC12"
        palette(root / "semseg" / place / f"{name}.png", blocks([0, 15, 20, 255]))
        part_file(root / "human_parts" / f"{name}.mat", things[name])
        vectors = np.full((H, W, 3), (255, 128, 128), np.uint8)
        write(root / "normals_distill" / f"{name}.png", vectors)
        write(root / "sal_distill" / f"{name}.png", blocks([0, 100, 128, 255]).astype(np.uint8))
        regions = blocks([258, 284, 284, 400]).astype(np.uint16)
        savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": regions})
    (root / "ImageSets" / "Context").mkdir(parents=True)
    for split, names in ids.items():
        (root / "ImageSets" / "Context" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def nyud_mt(root: Path) -> Path:
    """NYUD_MT with two images of `train` and one of `val`."""
    root = root / "NYUD_MT"
    ids = {"train": ["0001", "0002"], "val": ["0003"]}
    vectors = np.zeros((H, W, 3), np.float32)
    vectors[2:, :, 2] = -2
    (root / "gt_sets").mkdir(parents=True)
    for split, names in ids.items():
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            write(root / "images" / f"{name}.jpg", picture(int(name)))
            labels = blocks([0, 1, 40, 2]).astype(np.uint8)
            write(root / "segmentation" / f"{name}.png", labels)
            write(root / "depth" / f"{name}.npy", blocks([0, 2.5]).astype(np.float32))
            write(root / "normals" / f"{name}.npy", vectors)
            write(root / "edge" / f"{name}.npy", blocks([0, 1]).astype(np.float64))
    return root
