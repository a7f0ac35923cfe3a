"""Of a picture's objects those become targets that can be learned; a map has its objects."""

import numpy as np
import pytest

from dynadapt.data import objects
from dynadapt.data.objects import Object
from dynadapt.errors import DataError

SIZE = (10, 20)


def thing(box, area=None, **more):
    left, top, right, bottom = box
    return Object(3, box, (right - left) * (bottom - top) if area is None else area, **more)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (thing((1, 2, 3, 4)), True),
        (thing((1, 2, 2, 3)), True),
        (thing((1, 2, 1.9, 9)), False),
        (thing((1, 2, 9, 2.9)), False),
        (thing((1, 2, 3, 4), area=0), False),
        (thing((20, 2, 25, 4)), False),
        (thing((-5, 2, 0, 4)), False),
        (thing((1, 10, 3, 14)), False),
        (thing((19, 9, 25, 14)), True),
        (thing((1, 2, 3, 4), crowd=True), False),
        (thing((1, 2, 3, 4), difficult=True), False),
    ],
)
def test_what_is_a_target(given, wanted):
    assert objects.is_target(given, SIZE) is wanted
    assert len(objects.targets([given], SIZE, 5)["boxes"]) == wanted


def test_boxes_are_clipped_and_keep_their_order_and_numbers():
    given = [thing((-3, 2, 4, 14), number=7), thing((0, 0, 0, 0)), thing((5, 1, 30, 3), number=2)]
    found = objects.targets(given, SIZE, 5)
    assert found["boxes"].tolist() == [[0, 2, 4, 10], [5, 1, 20, 3]]
    assert found["box_classes"].tolist() == [3, 3] and found["box_ids"].tolist() == [7, 2]
    assert [v.dtype for v in found.values()] == [np.float32, np.int32, np.int32]
    assert [v.shape for v in objects.targets([], SIZE, 5).values()] == [(0, 4), (0,), (0,)]


def test_the_smallest_beyond_most_are_left_out_and_said_once(caplog):
    many = [thing((0, 0, k, 2), number=k) for k in (4, 1, 3, 1, 2)]
    assert objects.targets(many, SIZE, 3)["box_ids"].tolist() == [4, 3, 2]
    # of equals the first stay
    assert objects.targets([*many[1:2], *many[3:4]], SIZE, 1)["box_ids"].tolist() == [1]
    objects.survey("train of x", [(many, SIZE), (many[:4], SIZE), (many[:3], SIZE)], 3)
    assert [r.getMessage() for r in caplog.records] == [
        "train of x: 2 images have more than data.most=3 objects; the 3 smallest are no targets"
    ]


def test_what_cannot_be_learned_is_said_once(caplog):
    given = [thing((1, 2, 1, 4)), thing((30, 2, 35, 4)), thing((1, 2, 1, 4), crowd=True)]
    objects.survey("val of x", [(given, SIZE), (given[:1], SIZE)], 3)
    [record] = caplog.records
    assert record.getMessage() == (
        "val of x: 3 objects have no area, a side under a pixel, or lie outside of their images; "
        "they are no targets"
    )


def test_a_map_has_the_objects_of_its_numbers():
    instances = np.zeros((6, 8), np.int32)
    instances[1:3, 2:7] = 40
    instances[2, 3] = 7
    instances[5, 0] = 7
    found = objects.of_map(instances, lambda number: number // 10)
    assert found == [
        Object(0, (0, 2, 4, 6), 2, number=7),
        Object(4, (2, 1, 7, 3), 9, number=40),
    ]
    assert objects.of_map(np.zeros((6, 8), np.uint16), int) == []


def test_fields_say_what_there_is():
    found = objects.fields(("a", "b"), 9, ids=(3, 90))
    assert list(found) == ["image", "boxes", "box_classes", "extent"]
    assert found["box_classes"].ids == (3, 90) and found["box_classes"].fill == -1
    more = objects.fields(("a",), 9, size=(4, 5), masks=True)
    assert more["instances"].size == (4, 5) and more["box_ids"].most == more["boxes"].most == 9
    for most in (0, -1, 10_001):
        with pytest.raises(DataError, match=f"data.most is {most}, not a number of objects from 1"):
            objects.fields(("a",), most)
