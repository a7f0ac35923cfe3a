"""VOC's files become boxes from edge to edge, without what is difficult or has no area."""

import os
from pathlib import Path

import numpy as np
import pytest

from dynadapt.data import objects, voc
from dynadapt.errors import DataError
from tests.data import layouts

REAL = Path(os.environ.get("DYNADAPT_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def root(tmp_path):
    return layouts.voc_objects(tmp_path)


def test_boxes_span_from_the_edge_of_the_first_pixel_to_that_of_the_last(root, caplog):
    source = voc.source("train", path=str(root))
    assert source.info.classes == ("cat", "dog") and source.info.counts == {"train": 2}
    assert source.info.fields["box_classes"].ids == ()
    cut, two = source[0], source[1]
    assert [e["image_id"] for e in (cut, two)] == [0, 1]
    assert two["boxes"].tolist() == [[2, 1, 8, 6]] and two["box_classes"].tolist() == [1]
    dog, cat = two["objects"]
    assert dog.area == 30 and not dog.difficult
    assert cat.box == (0, 0, 16, 12) and cat.difficult and not cat.crowd
    assert cut["boxes"].tolist() == [[4, 4, 16, 9]] and len(cut["objects"]) == 1
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{root}: 1 boxes have a side under a pixel and are passed over, the first in "
        "2007_000039.xml"
    ]
    assert voc.source("val", path=str(root))[0]["boxes"].shape == (0, 4)


def test_classes_are_those_of_all_splits_or_named(root):
    assert voc.source("val", path=str(root)).info.classes == ("cat", "dog")
    assert voc.source("val", path=str(root), classes=("dog", "cat")).info.classes == ("dog", "cat")
    (root / "classes.txt").write_text("dog\ncat\nbird\n")
    source = voc.source("train", path=str(root))
    assert source.info.classes == ("dog", "cat", "bird")
    assert source[1]["box_classes"].tolist() == [0]
    (root / "classes.txt").write_text("dog\ncats\n")
    with pytest.raises(DataError, match="39.xml has the unknown class 'cat'; did you mean 'cats'"):
        voc.source("train", path=str(root))


def test_the_devkit_and_its_years(tmp_path):
    layouts.voc_objects(tmp_path / "VOCdevkit" / "VOC2012")
    assert len(voc.source("train+val", path=str(tmp_path))) == 3


def test_files_without_a_size_or_of_another_ending(root):
    layouts.voc_annotation(root / "Annotations" / "2007_000033.xml", [], size=("?", 0))
    (root / "JPEGImages" / "2007_000033.jpg").unlink()
    layouts.write(root / "JPEGImages" / "2007_000033.png", layouts.picture(5, (9, 7)))
    example = voc.source("val", path=str(root))[0]
    assert example["name"].endswith("2007_000033.png")


def test_the_fingerprint_follows_the_annotations(root):
    first = voc.source("train", path=str(root)).info.fingerprint
    assert first == voc.source("train", path=str(root)).info.fingerprint
    layouts.voc_annotation(
        root / "Annotations" / "2007_000039.xml", [("cat", (5, 5, 19, 9), 0), ("dog", (1,) * 4, 0)]
    )
    assert first != voc.source("train", path=str(root)).info.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "33.xml is no XML file: no element found"),
        ("", "is no XML file: no element found"),
        ("<svg/>", "holds <svg>, where VOC has <annotation>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "declares a document type"),
        ('<?xml version="1.0" encoding="cp037"?><annotation>&b;</annotation>', "is no XML file"),
        (
            "<annotation><object><name>cat</name></object></annotation>",
            "without a name or a bndbox",
        ),
        ("<annotation><object/></annotation>", "33.xml has an object without a name or a bndbox"),
        ("\0", "is no text in UTF-8"),
        ("<a>" * 100_000, "is no XML file"),
    ],
)
def test_strange_files_are_named(root, text, message):
    (root / "Annotations" / "2007_000033.xml").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        voc.source("val", path=str(root))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("box", [("a", 1, 2, 3), ("nan", 1, 2, 3), ("1e999", 1, 2, 3)])
def test_boxes_are_numbers(root, box):
    layouts.voc_annotation(root / "Annotations" / "2007_000033.xml", [("cat", box, 0)])
    with pytest.raises(DataError, match="without a name or a bndbox of xmin, ymin, xmax, ymax"):
        voc.source("val", path=str(root))


def test_what_is_not_there_is_said(root):
    with pytest.raises(DataError, match="no list .*/test.txt"):
        voc.source("test", path=str(root))
    with pytest.raises(DataError, match="no folder .*; unpack VOCtrainval"):
        voc.source("val")
    (root / "ImageSets" / "Main" / "test.txt").write_text("2007_000033\n2011_000001\n")
    with pytest.raises(DataError, match="cannot read .*2011_000001.xml: No such file"):
        voc.source("test", path=str(root))
    layouts.voc_annotation(root / "Annotations" / "2011_000001.xml", [])
    with pytest.raises(DataError, match="test.txt names 1 of 2 images .* JPEGImages/2011_000001.j"):
        voc.source("test", path=str(root))
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n")
    with pytest.raises(DataError, match="test.txt lists no images"):
        voc.source("test", path=str(root))


def test_files_without_any_object(root):
    for file in (root / "Annotations").iterdir():
        layouts.voc_annotation(file, [])
    with pytest.raises(DataError, match="no annotation in .* has an object"):
        voc.source("train", path=str(root))


def test_blood_cells():
    path = REAL / "bccd"
    if not path.is_dir():
        pytest.skip("DYNADAPT_DATA has no bccd")
    source = voc.source("train+val+test", path=str(path))
    assert source.info.classes == ("Platelets", "RBC", "WBC")
    assert sum(source.info.counts.values()) == len(source) == 364
    found = [thing for example in source for thing in example["objects"]]
    counts = np.bincount([thing.category for thing in found])
    assert counts.tolist() == [361, 4155, 372]
    assert all(objects.is_target(thing, (480, 640)) for thing in found)
