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
