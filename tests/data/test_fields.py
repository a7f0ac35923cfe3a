"""Fields survive JSON, and a wrong kind is answered with the nearest."""

import json

import pytest

from dynadapt.data import fields, labelled
from dynadapt.data.fields import Field
from dynadapt.errors import DataError


def test_fields_survive_json():
    given = {
        "image": Field("pixels", size=(8, 9)),
        "mask": Field("labels", fill=255, classes=("sky", "road")),
        "box": Field("boxes", most=7),
    }
    assert fields.from_plain(json.loads(json.dumps(fields.to_plain(given)))) == given


def test_values_of_a_later_version_are_passed_over():
    plain = fields.to_plain({"depth": Field("values")})
    plain["depth"]["unit"] = "m"
    assert fields.from_plain(plain) == {"depth": Field("values")}


def test_every_kind_has_a_dtype():
    assert {k: Field(k).dtype for k in fields.KINDS} == fields.KINDS
    assert Field("values", "float64").dtype == "float64"


def test_a_wrong_kind_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="'pixels'"):
        Field("pixel")


def test_classes_are_those_of_the_field_that_has_some():
    info = labelled("set", ["a", "b"], {"train": 2})
    assert info.classes == ("a", "b") and list(info.fields) == ["image", "label"]
