"""Maps of numbered objects become boxes of one class, or of the classes that values tell."""

import os
from pathlib import Path

import numpy as np
import pytest

from dynadapt.data import instances, loader
from dynadapt.errors import DataError
from tests.data import layouts

REAL = Path(os.environ.get("DYNADAPT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_every_value_is_an_object(tmp_path):
    source = instances.source("test", path=str(layouts.instances(tmp_path)))
    assert source.info.classes == ("object",) and source.info.counts == {"test": 2}
    assert source.info.fields["box_classes"].ids == ()
    example = source[1]
    assert example["boxes"].tolist() == [[4, 0, 8, 11], [12, 0, 16, 11], [8, 0, 12, 11]]
    assert example["box_ids"].tolist() == [1, 7, 300] and example["box_classes"].tolist() == [0] * 3
    assert [thing.number for thing in example["objects"]] == [1, 7, 300]
    assert [thing.area for thing in example["objects"]] == [44] * 3
    assert all(thing.segmentation is None for thing in example["objects"])
    assert example["instances"].dtype == np.int32 and example["image_id"] == 1
    batch = next(loader.train_batches(source, "resize(20)|flip", batch_size=2, seed=0))
    assert batch["box_ids"][0, :3].tolist() == [1, 7, 300]
    for ids, boxes, found in zip(batch["box_ids"], batch["boxes"], batch["instances"], strict=True):
        for number, box in zip(ids[:3], boxes, strict=False):
            xs = np.nonzero((found == number).any(0))[0]
            assert [xs.min(), xs.max() + 1] == box[[0, 2]].tolist()


def test_the_class_has_a_name(tmp_path):
    root = layouts.instances(tmp_path, values=(0, 1))
    assert instances.source("test", path=str(root), class_name="cell").info.classes == ("cell",)
    (root / "classes.txt").write_text("nucleus\n")
    assert instances.source("test", path=str(root)).info.classes == ("nucleus",)


def test_values_that_are_one_object(tmp_path):
    # a table's parts, and objects of several parts
    root = layouts.instances(tmp_path, values=(0, 5, 20, 29, 31))
    example = instances.source("test", path=str(root), merge=10)[0]
    assert example["box_ids"].tolist() == [2, 3]
    assert np.unique(example["instances"]).tolist() == [0, 2, 3]


def test_values_that_tell_the_class(tmp_path):
    root = layouts.instances(tmp_path, values=(0, 24, 24001, 26000, 26001, 29000))
    (root / "classes.txt").write_text("person\ncar\n")
    source = instances.source("train", path=str(root), divisor=1000, ids=(24, 26))
    assert source.info.classes == ("person", "car")
    assert source.info.fields["box_classes"].ids == (24, 26)
    example = source[0]
    assert example["box_ids"].tolist() == [24001, 26000, 26001]
    assert example["box_classes"].tolist() == [0, 1, 1]
    assert np.unique(example["instances"]).tolist() == [0, 24001, 26000, 26001]

    root = layouts.instances(tmp_path / "from 1", values=(0, 1, 101, 102, 205))
    (root / "classes.txt").write_text("person\ncar\n")
    source = instances.source("train", path=str(root), divisor=100)
    assert source.info.fields["box_classes"].ids == (1, 2)
    assert source[0]["box_classes"].tolist() == [0, 0, 1]
    (root / "classes.txt").write_text("person\n")
    with pytest.raises(DataError, match="holds the value 205, whose class 2 is none of the 1 of"):
        instances.source("train", path=str(root), divisor=100)[0]


def test_more_objects_than_most_are_said_once(tmp_path, caplog):
    source = instances.source("train", path=str(layouts.instances(tmp_path)), most=2)
    for i in (0, 1, 0):
        assert source[i]["box_ids"].tolist() == [1, 7] and len(source[i]["objects"]) == 3
    [record] = caplog.records
    assert record.getMessage().endswith(
        "/0.jpg has 3 objects; of images with more than data.most=2 the smallest are no targets"
    )


@pytest.mark.parametrize(
    ("settings", "classes", "message"),
    [
        (dict(merge=0), "", "data.merge=0 and data.divisor=0 must be whole numbers"),
        (dict(divisor=-1), "", "data.divisor=-1 must be whole numbers"),
        (dict(most=0), "", "data.most is 0"),
        ({}, "a\nb\n", "names 2 classes; say in data.divisor how values tell them"),
        (dict(ids=(3,)), "a\n", "names 1 classes; say in data.divisor how values tell them"),
        (dict(divisor=10), "", "names 0 classes and data.ids 0; with a divisor name each class"),
        (dict(divisor=10, ids=(1, 1)), "a\nb\n", "names 2 classes and data.ids 2"),
        (dict(divisor=10, ids=(1,)), "a\nb\n", "names 2 classes and data.ids 1"),
        (dict(instances="maps/{split}"), "", "no folder .*/maps/train; put images in"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, classes, message):
    root = layouts.instances(tmp_path)
    if classes:
        (root / "classes.txt").write_text(classes)
    with pytest.raises(DataError, match=message):
        instances.source("train", path=str(root), **settings)


def test_maps_of_colours_or_of_another_size(tmp_path):
    root = layouts.instances(tmp_path)
    layouts.write(root / "instances" / "train" / "0.png", layouts.picture())
    layouts.write(root / "instances" / "test" / "0.png", np.ones((4, 5), np.uint8))
    source = instances.source("train+test", path=str(root))
    faults = []
    for i in range(4):
        try:
            loader.example(source, loader.transforms.pipeline("pad(16)"), i, None)
        except DataError as error:
            faults.append(str(error))
    assert len(faults) == 2
    assert any("/train/0.png holds colours; save the numbers" in text for text in faults)
    assert any("instances of " in text and "12 x 16 pixels" in text for text in faults)


def test_the_fingerprint_follows_the_settings(tmp_path):
    root = layouts.instances(tmp_path)
    prints = [instances.source("train", path=str(root), **settings).info.fingerprint
              for settings in ({}, {}, {"merge": 2}, {"class_name": "a"})]  # fmt: skip
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_nuclei(caplog):
    path = REAL / "nuclei"
    if not path.is_dir():
        pytest.skip("DYNADAPT_DATA has no nuclei")
    given = dict(images="{split}/images", instances="{split}/instances", class_name="nucleus")
    source = instances.source("train+test", path=str(path), most=150, **given)
    assert source.info.counts == {"train": 224, "test": 56}
    counts = [len(example["objects"]) for example in source]
    assert min(counts) == 1 and max(counts) == 151
    assert len(caplog.records) == 1
    batch = next(
        loader.eval_batches(source, "resize_within(64,64)|pad(64)", batch_size=4, threads=0)
    )
    assert (batch["extent"].max(1) == 64).all() and batch["boxes_mask"].sum(1).min() >= 1
