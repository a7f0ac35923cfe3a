"""COCO's files become boxes, classes and maps of instances; what is wrong in them is said."""

import json
import re

import numpy as np
import pytest

from dynadapt import config, data
from dynadapt.data import coco, loader, outlines, transforms
from dynadapt.errors import ConfigError, DataError, MissingSplit
from tests.data import layouts


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return layouts.coco(tmp_path_factory.mktemp("coco"))


def changed(tmp_path, change):
    """A folder whose file of annotations was changed by hand."""
    document = layouts.coco_document()
    change(document)
    return str(layouts.coco(tmp_path, document, splits=("train2017",)))


def test_boxes_and_classes(root, caplog):
    source = coco.source("train2017", path=str(root))
    assert source.info.classes == ("person", "car", "toothbrush")
    assert source.info.fields["box_classes"].ids == (1, 3, 90)
    assert set(source.info.fields) == {"image", "boxes", "box_classes", "extent"}
    assert source.info.counts == {"train2017": 3}
    first, empty, last = (source[i] for i in range(3))
    assert [e["image_id"] for e in (first, empty, last)] == [9, 25, 30]
    assert first["boxes"].tolist() == [[2, 1, 8, 5], [4, 3, 7, 5]]
    assert first["box_classes"].tolist() == [1, 2]
    assert empty["boxes"].shape == (0, 4) and empty["objects"] == []
    assert last["boxes"].tolist() == [[0, 7, 3, 12]]  # clipped, the object itself is not
    assert last["objects"][0].box == (-2, 7, 3, 16) and last["name"].endswith("more/30.png")
    # an evaluation hears of all of them
    assert [thing.crowd for thing in first["objects"]] == [False, False, True, False, False]
    assert [thing.area for thing in first["objects"]] == [24, 6, 54, 16, 0]
    assert all(thing.segmentation is None for thing in first["objects"])
    [record] = caplog.records
    assert re.fullmatch(
        "train2017 of .*: 2 objects have no area, a side under a pixel, or lie outside of their "
        "images; they are no targets",
        record.getMessage(),
    )


def test_outlines_become_a_map_in_which_smaller_objects_lie_over_larger(root):
    pytest.importorskip("pycocotools")
    source = coco.source("val2017", path=str(root), masks=True)
    assert {"instances", "box_ids"} <= set(source.info.fields)
    first, empty, last = (source[i] for i in range(3))
    wanted = np.zeros((layouts.H, layouts.W), int)
    wanted[1:5, 2:8], wanted[3:5, 4:7] = 1, 2
    assert np.array_equal(first["instances"], wanted) and first["instances"].dtype == np.int32
    assert first["box_ids"].tolist() == [1, 2] and not empty["instances"].any()
    whole = [outlines.unpacked(thing.segmentation) for thing in first["objects"]]
    # the larger one's own mask is whole, whatever lies over it
    assert np.array_equal(whole[0], layouts.filled(1, 2, 5, 8))
    assert np.array_equal(whole[1], layouts.filled(3, 4, 5, 7))
    assert np.array_equal(whole[2], layouts.filled(6, 0, 12, 9))
    assert [thing.number for thing in first["objects"]] == [1, 2, 0, 0, 0]
    assert np.array_equal(last["instances"], layouts.filled(7, 0, 12, 3))


def test_of_equal_objects_the_later_lies_over_the_earlier(tmp_path):
    pytest.importorskip("pycocotools")

    def change(document):
        document["annotations"] = [
            layouts.annotation(k, 9, 1, [k, 2, 4, 4]) for k in (1, 2)
        ]  # fmt: skip

    source = coco.source("train2017", path=changed(tmp_path, change), masks=True)
    assert source[0]["instances"][3, :7].tolist() == [0, 1, 2, 2, 2, 2, 0]


def test_more_objects_than_most(tmp_path, caplog):
    def change(document):
        document["annotations"] = [
            layouts.annotation(k, 25, 1, [0, 0, w, 2]) for k, w in enumerate((3, 1, 9, 2))
        ]

    source = coco.source("train2017", path=changed(tmp_path, change), most=2)
    assert source[1]["boxes"][:, 2].tolist() == [3, 9] and len(source[1]["objects"]) == 4
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        "1 images have more than data.most=2 objects; the 2 smallest are no targets"
    ]


def test_images_without_targets_are_left_out_where_asked_for(root):
    source = coco.source("train2017+val2017", path=str(root), filled=("train2017",))
    assert source.info.counts == {"train2017": 2, "val2017": 3}
    assert [source[i]["image_id"] for i in range(5)] == [9, 30, 9, 25, 30]


def test_batches(root):
    pytest.importorskip("pycocotools")
    source = coco.source("train2017", path=str(root), masks=True, most=4)
    change = transforms.pipeline("resize_random(24,24)|crop(20)|flip|pad(24)")
    spec = loader.spec(source.info, change, 3)
    batch = next(loader.train_batches(source, change, batch_size=3, seed=0))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    assert batch["extent"].max() <= 20
    for ids, mask, instances in zip(
        batch["box_ids"], batch["box_ids_mask"], batch["instances"], strict=True
    ):
        assert set(np.unique(instances)) - {0} <= set(ids[mask > 0].tolist())
    told = loader.eval_batches(
        source, "pad(32)", batch_size=3, stored=("objects", "image_id", "instances")
    )
    next(told)
    assert told.about[0]["stored"]["image_id"] == 9 and len(told.about[0]["stored"]["objects"]) == 5


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("train/_annotations.coco.json", "train"),
        ("train/annotations.json", "train"),
        ("annotations/instances_train.json", "train"),
    ],
)
def test_other_layouts(tmp_path, file, images):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(json.dumps(layouts.coco_document()))
    for i, row in enumerate(layouts.coco_document()["images"]):
        layouts.write(tmp_path / images / row["file_name"], layouts.picture(i))
    assert len(coco.source("train", path=str(tmp_path))) == 3
    with pytest.raises(MissingSplit, match="no split 'trian'; did you mean 'train'"):
        coco.source("trian", path=str(tmp_path))


def test_places_of_ones_own(tmp_path):
    layouts.coco(tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "marks")
    given = dict(path=str(tmp_path), annotations="marks/instances_{split}.json")
    assert len(coco.source("val2017", **given)) == 3
    one = dict(path=str(tmp_path), annotations="marks/instances_val2017.json", images="val2017")
    assert len(coco.source("train[:2]", **one)) == 2
    with pytest.raises(MissingSplit, match="no split 'test'; use slices of train"):
        coco.source("test", **one)
    with pytest.raises(MissingSplit, match="no split 'val'; did you mean 'val2017'"):
        coco.source("val", **given)


def test_categories_of_one_name_are_told_apart_and_plain_ids_are_not_kept(tmp_path):
    def change(document):
        document["annotations"] = []
        document["categories"] = [dict(id=k, name=n) for k, n in enumerate("aba")]

    source = coco.source("train2017", path=changed(tmp_path, change))
    assert source.info.classes == ("a 0", "b", "a 2")
    assert source.info.fields["box_classes"].ids == ()


def test_the_fingerprint_follows_the_annotations(tmp_path, root):
    first = coco.source("train2017", path=str(root)).info.fingerprint
    assert first == coco.source("train2017", path=str(root)).info.fingerprint

    def change(document):
        document["annotations"][0]["bbox"][0] += 1

    assert first != coco.source("train2017", path=changed(tmp_path, change)).info.fingerprint


def row(name, position, /, **more):
    """Changes a row of a document."""

    def change(document):
        document[name][position].update(more)

    return change


def without(name, position, key):
    return lambda document: document[name][position].pop(key)


FAULTS = {
    "no list": (lambda d: d.pop("annotations"), "has no list of annotations; a COCO file has"),
    "no rows": (lambda d: d.update(images=[1]), "has no list of images"),
    "no images": (lambda d: d.update(images=[], annotations=[]), "lists no images"),
    "no categories": (lambda d: d.update(categories=[], annotations=[]), "has 0 categories"),
    "twice an image": (row("images", 1, id=9), "has two images with the id 9"),
    "twice a category": (row("categories", 1, id=3), "has two categories with the id 3"),
    "a category that is not there": (
        row("annotations", 1, category_id=7), "annotation 12 of .* has the category 7, which"
    ),
    "no name": (row("categories", 1, name=" "), "the category 1 of .* has no name"),
    "no file": (without("images", 0, "file_name"), "the image 9 of .* has no file_name"),
    "no id": (without("images", 0, "id"), "an image of .* has id None, which is no whole number"),
    "a truth value": (row("images", 0, id=True), "has id True, which is no whole number"),
    "no height": (without("images", 0, "height"), "the image 9 of .* has height None"),
    "no pixels": (row("images", 0, height=0), "the image 9 of .* has 0 x 16 pixels"),
    "no box": (without("annotations", 0, "bbox"), "annotation 11 of .* has no bbox"),
    "a short box": (row("annotations", 0, bbox=[1, 2, 3]), "annotation 11 of .* has no bbox"),
    "words": (row("annotations", 0, bbox="abcd"), "annotation 11 of .* has no bbox"),
    "not finite": (row("annotations", 0, area=float("nan")), "annotation 11 of .* has no bbox"),
    "a missing image": (
        row("images", 2, file_name="gone.png"),
        "names 1 of 3 images that are not under .*, the first of them train2017/gone.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_said_in_one_sentence(tmp_path, fault):
    change, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as raised:
        coco.source("train2017", path=changed(tmp_path, change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_is_said(tmp_path, content):
    layouts.coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(DataError, match="instances_val2017.json is no JSON file: ") as raised:
        coco.source("val2017", path=str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (row("annotations", 3, image_id=8),
         "1 annotations are of images that it does not list; they are passed over"),
        (row("annotations", 1, id=11), "1 annotations have the id of another; all of them count"),
    ],
)  # fmt: skip
def test_what_is_passed_over_is_counted(tmp_path, caplog, change, message):
    coco.source("train2017", path=changed(tmp_path, change))
    assert any(r.getMessage().endswith(f"instances_train2017.json: {message}")
               for r in caplog.records)  # fmt: skip


def test_objects_without_an_outline_are_no_targets_where_outlines_are_asked_for(tmp_path, caplog):
    pytest.importorskip("pycocotools")
    path = changed(tmp_path, row("annotations", 0, segmentation=[[1, 2, 3, 4]]))
    assert len(coco.source("train2017", path=path)[0]["boxes"]) == 2
    caplog.clear()
    example = coco.source("train2017", path=path, masks=True)[0]
    assert example["boxes"].tolist() == [[4, 3, 7, 5]] and example["box_ids"].tolist() == [1]
    assert example["objects"][0].difficult
    said = [record.getMessage() for record in caplog.records]
    assert any("1 polygons have less than three corners" in text for text in said)
    assert any("1 objects have no outline; they are neither" in text for text in said)


def test_masks_of_another_size_are_named(tmp_path):
    pytest.importorskip("pycocotools")
    turned = {"size": [layouts.W, layouts.H], "counts": [9]}
    path = changed(tmp_path, row("annotations", 1, segmentation=turned))
    with pytest.raises(DataError, match=r"annotation 12 of .* has a mask of size \[16, 12\]"):
        coco.source("train2017", path=path, masks=True)
    assert len(coco.source("train2017", path=path)) == 3


def test_an_image_of_another_size_is_named(tmp_path):
    root = layouts.coco(tmp_path)
    layouts.write(root / "val2017" / "000000000025.jpg", layouts.picture(1, (9, 16)))
    source = coco.source("val2017", path=str(root))
    with pytest.raises(DataError, match="25.jpg has 9 x 16 pixels .* annotations are of 12 x 16"):
        source[1]


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no folder .*; unpack train2017.zip"):
        coco.source("train2017")
    with pytest.raises(DataError, match="no file .*instances_train2017.json; unpack train2017"):
        coco.source("train2017", path=str(tmp_path))


def test_other_categories_in_another_split(tmp_path):
    layouts.coco(tmp_path, splits=("train2017",))
    document = layouts.coco_document()
    row("categories", 0, name="brush")(document)
    layouts.coco(tmp_path, document, splits=("val2017",))
    with pytest.raises(DataError, match="instances_val2017.json are not those of the splits"):
        coco.source("train2017+val2017", path=str(tmp_path))
    c = config.default(data_set="coco")
    c.data.path = str(tmp_path)
    with pytest.raises(DataError, match="has the classes brush, where person, car, toothbrush"):
        data.from_config(c.data, "val2017", ("person", "car", "toothbrush"))


def test_pycocotools_is_asked_for_in_one_sentence(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert len(coco.source("train2017", path=str(root))[0]["boxes"]) == 2
    with pytest.raises(ConfigError, match=r'pip install "dynadapt\[coco\]"'):
        coco.source("train2017", path=str(root), masks=True)
