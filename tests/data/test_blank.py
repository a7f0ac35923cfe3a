import numpy as np
import pytest

from dynadapt.data import blank, loader, transforms
from dynadapt.errors import DataError, UnknownName


def test_a_batch_has_the_fields_that_were_asked_for():
    source = blank.source("test", fields=("labels", "depth", "label"), class_count=7, size=(8, 12))
    assert source.info.classes == tuple("0123456") and source.info.counts["train"] == 20210
    plain = transforms.pipeline("")
    spec = loader.spec(source.info, plain, 2)
    assert spec["labels"].shape == spec["depth"].shape == (2, 8, 12) and spec["label"].shape == (2,)
    found, about = loader.example(source, plain, 0, None)
    assert about["name"] == "test[0]" and not found["labels"].any()
    assert (found["image"] == 128).all() and found["depth"].dtype == np.float32


def test_boxes_have_what_belongs_to_them():
    source = blank.source("train", fields=("boxes", "instances"), class_count=3, size=(8, 12))
    canvas = transforms.pipeline("pad(16)")
    spec = loader.spec(source.info, canvas, 2)
    assert spec["boxes"].shape == (2, 100, 4) and spec["box_ids_mask"].shape == (2, 100)
    assert spec["instances"].shape == (2, 16, 16) and spec["extent"].shape == (2, 2)
    batch = next(loader.eval_batches(source, canvas, batch_size=2, stored=("objects", "image_id")))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    assert not batch["boxes_mask"].any() and batch["extent"].tolist() == [[8, 12]] * 2
    assert (batch["box_classes"] == -1).all() and source.info.classes == ("0", "1", "2")
    assert set(blank.source("train", fields=("box_classes",)).info.fields) == {
        *("image", "boxes", "box_classes", "extent")
    }


@pytest.mark.parametrize(
    "given",
    [dict(count=0), dict(class_count=0), dict(size=(8, 0)), dict(class_count=999999999),
     dict(size=(8, 1 << 40)), dict(size=(8, 0.5))],
)  # fmt: skip
def test_bad_numbers(given):
    with pytest.raises(DataError, match="must be a whole number from 1 to"):
        blank.source("train", **given)


def test_an_unknown_field():
    with pytest.raises(UnknownName, match="labels"):
        blank.source("train", fields=("lables",))


def test_clouds_have_points_and_no_image():
    source = blank.source("test", ("parts", "label", "points"), 16, points=64, part_count=50)
    assert source.info.classes == tuple(map(str, range(16)))
    owners = source.info.fields["parts"].owners
    assert len(owners) == 50 and set(owners) == set(range(16)) and list(owners) == sorted(owners)
    plain = transforms.pipeline("")
    spec = loader.spec(source.info, plain, 2)
    assert set(spec) == {"points", "label", "parts", "index", "mask"}
    assert spec["points"].shape == (2, 64, 3) and spec["parts"].shape == (2, 64)
    batch = next(loader.eval_batches(source, "", batch_size=2))
    assert {k: v.shape for k, v in batch.items()} == {k: v.shape for k, v in spec.items()}
    assert set(blank.source("test", ("points", "label")).info.fields) == {"points", "label"}


def test_fields_of_clouds_and_pictures_do_not_mix():
    with pytest.raises(DataError, match="depth is of pictures"):
        blank.source("train", fields=("points", "depth"))
    with pytest.raises(DataError, match="parts is of clouds; name points"):
        blank.source("train", fields=("label", "parts"))
    for given in (dict(points=0), dict(part_count=0)):
        with pytest.raises(DataError, match="must be a whole number from 1 to"):
            blank.source("train", fields=("points",), **given)
