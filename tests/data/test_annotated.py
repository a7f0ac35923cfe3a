"""A source over images and their objects gives targets, and tells an evaluation of all objects."""

import numpy as np
import pytest

from dynadapt.data import annotated
from dynadapt.data.annotated import Picture
from dynadapt.data.objects import Object
from dynadapt.errors import DataError
from tests.data import layouts

SIZE = (layouts.H, layouts.W)
THINGS = [Object(1, (1, 2, 5, 6), 16.0), Object(0, (2, 2, 9, 9), 49.0, crowd=True)]


def pictures(root, count=3, **more):
    rows = []
    for i in range(count):
        layouts.write(root / "images" / f"{i}.png", layouts.picture(i))
        rows.append(Picture(f"images/{i}.png", SIZE, THINGS, **more))
    return rows


def opened(root, rows, split="train", said=b"", **more):
    found = {"train": (root / "list.txt", rows)}
    return annotated.opened(
        "set", split, root, found, ("a", "b"), 5, "draw it", said, **more
    )  # fmt: skip


def test_examples(tmp_path):
    source = opened(tmp_path, pictures(tmp_path), split="train[1:]")
    assert len(source) == 2 and source.info.classes == ("a", "b")
    example = source[0]
    assert set(example) == {"image", "name", "image_id", "objects", "boxes", "box_classes"}
    assert example["name"].endswith("images/1.png") and example["image_id"] == 0
    assert source[-1]["image_id"] == 1
    assert example["boxes"].tolist() == [[1, 2, 5, 6]] and example["box_classes"].tolist() == [1]
    assert example["objects"] == THINGS and example["objects"] is not THINGS


def test_ids_of_its_own_and_maps(tmp_path):
    numbered = [Object(0, (0, 0, 4, 4), 16.0, number=3)]
    source = opened(
        tmp_path,
        pictures(tmp_path, id=77),
        masks=lambda picture, name: (numbered, np.full(SIZE, 3, np.int32)),
    )
    example = source[2]
    assert example["image_id"] == 77 and example["objects"] == numbered
    assert example["box_ids"].tolist() == [3] and (example["instances"] == 3).all()
    assert {"instances", "box_ids"} <= set(source.info.fields)


def test_the_fingerprint_is_of_the_classes_and_what_is_said(tmp_path):
    rows = pictures(tmp_path, 1)
    first = opened(tmp_path, rows).info.fingerprint
    assert first == opened(tmp_path, rows).info.fingerprint
    assert first != opened(tmp_path, rows, said=b"x").info.fingerprint


def test_what_is_missing_or_of_another_size_is_said(tmp_path):
    rows = pictures(tmp_path)
    layouts.write(tmp_path / "images" / "2.png", layouts.picture(2, (5, 7)))
    source = opened(tmp_path, rows)
    with pytest.raises(DataError, match="2.png has 5 x 7 pixels .* its annotations are of 12 x 16"):
        source[2]
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot decode .*1.png"):
        source[1]
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(DataError, match="cannot read .*0.png: No such file"):
        source[0]
    with pytest.raises(DataError, match="list.txt names 1 of 3 images that are not under .*0.png"):
        opened(tmp_path, rows)
    with pytest.raises(DataError, match="list.txt lists no images"):
        opened(tmp_path, [])
