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
