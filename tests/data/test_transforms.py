"""Pipelines give the pixels that Pillow gives, move all fields, and refuse what does not fit."""

import re
from pathlib import Path

import numpy as np
import pytest

from dynadapt.data import transforms
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, DataError, UnknownName

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transforms.md"


def test_transforms_apply_from_left_to_right_to_all_fields(photo):
    example = {"image": photo, "mask": np.arange(1200).reshape(30, 40), "label": 3, "name": "x"}
    fields = {"image": Field("pixels"), "mask": Field("labels"), "label": Field("number")}
    step = transforms.pipeline("flip(1)|jitter(0.5)|center_crop(16)|resize(32, method=nearest)")
    out = step(example, np.random.default_rng(0), fields=fields)
    wanted = example["mask"][:, ::-1][7:23, 12:28].repeat(2, 0).repeat(2, 1)
    assert np.array_equal(out["mask"], wanted)
    assert out["label"] == 3 and out["name"] == "x"
    assert out["size"] == (30, 40) and out["frame"].size == (32, 32)
    assert out["frame"].matrix.tolist() == [[-0.5, 0, 28], [0, 0.5, 7]]
    assert example["image"] is photo and "frame" not in example
    only = step(example, np.random.default_rng(0))  # without fields the image alone
    assert only["mask"] is example["mask"] and np.array_equal(only["image"], out["image"])


def test_a_field_of_another_size_than_its_image_is_named(photo):
    example = {"image": photo, "mask": np.zeros((30, 41), np.int32), "name": "cats/7.jpg"}
    fields = {"image": Field("pixels"), "mask": Field("labels")}
    with pytest.raises(DataError, match="mask of cats/7.jpg .*30, 41.* 30 x 40 pixels"):
        transforms.pipeline("flip(1)")(example, np.random.default_rng(0), fields=fields)


def test_broken_files_are_named(photo, encode):
    step = transforms.pipeline("")
    assert np.array_equal(step({"image": encode(photo)})["image"], photo)
    with pytest.raises(DataError, match="cannot decode cats/7.jpg"):
        step({"image": b"", "name": "cats/7.jpg"})


def test_what_draws_is_random():
    assert not transforms.pipeline("").random
    assert not transforms.pipeline("resize_short(20) | center_crop(16)|pad(20)").random
    names = ("flip", "random_crop(8)", "rotate(3)", "jitter(0.1)", "grey", "crop(8)")
    for name in (*names, "resize_random(8, 8)", "distort", "gamma"):
        assert transforms.pipeline(f"resize(8)|{name}").random


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("resize(224)", (224, 224)),
        ("resize_short(256)|center_crop(224)", (224, 224)),
        ("random_resized_crop(32)|flip|jitter(0.4)", (32, 32)),
        ("random_crop(1024, 4)|resize(8, 9)|rotate(4)", (8, 9)),
        ("pad(512)", (512, 512)),
        ("pad((2, 5))", (2, 5)),
        ("resize_short(8)|pad((12, 16))", (12, 16)),
        ("resize_short(256)", None),
        ("flip|rotate(3)", None),
        ("resize_within(20, 40)|pad((20, 40))", (20, 40)),
        ("resize_random(20, 40, (1, 1))", None),
        ("resize_random(20, 40)|crop(16)", (16, 16)),
        ("", None),
    ],
)
def test_sizes_are_known_before_any_image(text, size):
    assert transforms.pipeline(text).size() == size


def test_the_size_of_images_of_a_given_size():
    assert transforms.pipeline("resize_short(15)").size((30, 40)) == (15, 20)
    assert transforms.pipeline("").size((28, 28)) == (28, 28)


@pytest.mark.parametrize(
    "text",
    [
        "jitter(2)|jitter(2.0)|jitter(brightness=1)",
        "rotate(-10)|rotate(-2.5)|rotate((-10, 5))|rotate(+3)|rotate(10, method=bilinear)",
        "resize(24, method=bicubic)|resize(24, method='bicubic')|resize(24, 0, nearest)",
        "random_resized_crop(8, (0.5, 1), ratio=(1, 2), method=plain_bilinear)",
        "pad(32)|pad((32, 64))|grey(1)|grey|flip(p=1)|flip()",
    ],
)
def test_settings_are_literals_and_words(text):
    transforms.pipeline(text)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("resise(32)", UnknownName, "did you mean 'resize'"),
        ("resize(32", ConfigError, "cannot read the transforms"),
        ("resize(32)||flip", ConfigError, "cannot read the transforms"),
        ("(" * 9999, ConfigError, "cannot read the transforms"),
        ("resize", ConfigError, "missing a required argument: 'size'"),
        (
            *("resize(side=32)", ConfigError),
            r"does not fit resize\(size, width=0, method='bicubic'\): there is no setting 'side', "
            "did you mean 'size'",
        ),
        ("resize(32, image=1)", ConfigError, "no setting 'image'"),
        ("resize(32, given=1)", ConfigError, "no setting 'given'"),
        ("flip(rng=3)", ConfigError, "no setting 'rng'"),
        ("crop(8, labels=1)", ConfigError, "no setting 'labels'"),
        ("flip(0.5, 0.5)", ConfigError, r"does not fit flip\(p=0.5\): too many"),
        ("resize(8, size=8)", ConfigError, "multiple values for argument 'size'"),
        ("resize(2 * 16)", ConfigError, "must be literals"),
        ("resize(-a)", ConfigError, "must be literals"),
        ("resize({[]})", ConfigError, "must be literals"),
        ("resize(*[3])", ConfigError, "must be literals"),
        ("resize(**{'size': 3})", ConfigError, "does not fit"),
        ("resize(__import__('os'))", ConfigError, "must be literals"),
        ("images.resize(3)", ConfigError, "is not a transform"),
        ("resize(32) + flip", ConfigError, "is not a transform"),
        ("resize(0)", ConfigError, "size must be a whole number of at least 1"),
        ("resize(32, -1)", ConfigError, "width must be a whole number of at least 0"),
        ("resize(32.0)", ConfigError, "a whole number"),
        ("resize(32.5)", ConfigError, "a whole number"),
        ("resize(True)", ConfigError, "a whole number"),
        ("resize(big)", ConfigError, "a whole number"),
        (
            "resize(32, method='bicubik')",
            UnknownName,
            "unknown resize method .*did you mean 'bicubic'",
        ),
        ("resize(32, method=bicubik)", UnknownName, "did you mean 'bicubic'"),
        ("resize(32, method=3)", UnknownName, "choose one of bicubic"),
        ("rotate(3, plain_bilinear)", UnknownName, "did you mean 'bilinear'"),
        ("flip(2)", ConfigError, "p must be a number between 0 and 1"),
        ("flip(a)", ConfigError, "between 0 and 1"),
        ("random_resized_crop(8, scale=(1, 0.5))", ConfigError, "low, high"),
        ("random_resized_crop(8, scale=0.5)", ConfigError, "low, high"),
        ("random_resized_crop(8, scale=(0, 0.5))", ConfigError, "above 0"),
        ("rotate", ConfigError, r"does not fit rotate\(degrees, method='bicubic', scale="),
        ("zoom(2)", ConfigError, "factors must be one or more numbers above 0.0001"),
        ("zoom(())", ConfigError, "factors must be one or more numbers"),
        ("rotate((5, -5))", ConfigError, "an angle in degrees or two of them"),
        ("rotate(1e999)", ConfigError, "an angle"),
        ("jitter(-0.5)", ConfigError, "brightness must be a number of at least 0"),
        ("jitter(hue=0.6)", ConfigError, "hue must be a number between 0 and 0.5"),
        ("pad((32, 64.0))", ConfigError, r"two of them \(h, w\)"),
        ("pad((32, 64, 3))", ConfigError, r"two of them \(h, w\)"),
    ],
)
def test_wrong_pipelines_are_refused_when_read(text, error, message):
    with pytest.raises(error, match=message) as raised:
        transforms.pipeline(text)
    assert "\n" not in str(raised.value)


def examples_of_the_page():
    text = PAGE.read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    cells = re.findall(r"^\| `\w+\(.*\| `([^`]+)` \|$", text, re.MULTILINE)
    return lines + cells


@pytest.mark.parametrize("text", examples_of_the_page())
def test_the_pages_examples_run(text):
    image = np.random.default_rng(0).integers(0, 256, (32, 30, 3), np.uint8)
    out = transforms.pipeline(text)({"image": image}, np.random.default_rng(0))
    assert out["image"].dtype == np.uint8


def test_the_page_lists_every_transform_with_its_settings():
    signatures = re.findall(
        r"^\| `(\w+\(.*?\))` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert signatures == [transforms.signature(name) for name in transforms.TRANSFORMS]
