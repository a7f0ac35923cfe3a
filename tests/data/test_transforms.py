"""Pipelines give the pixels that Pillow gives, move all fields, and refuse what does not fit."""

import colorsys
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import transforms
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, DataError, UnknownName

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transforms.md"
METHODS = ("bicubic", "bilinear", "nearest", "plain_bilinear")


@pytest.fixture
def photo():
    y, x = np.mgrid[:30, :40]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)


def run(text, image, seed=0):
    return transforms.pipeline(text)({"image": image}, np.random.default_rng(seed))["image"]


# The geometric transforms by themselves, on arrays and with Pillow: what runs were trained on.


def stretch(image, h, w, method):
    if image.shape[:2] == (h, w):
        return image
    picture, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
    if method == "plain_bilinear":
        across = (image.shape[1] / w, 0, 0, 0, image.shape[0] / h, 0)
        return np.asarray(picture.transform((w, h), Image.Transform.AFFINE, across, bilinear))
    return np.asarray(picture.resize((w, h), Image.Resampling[method.upper()]))


def short(image, size, method):
    h, w = image.shape[:2]
    scale = size / min(h, w)
    return stretch(image, max(size, round(h * scale)), max(size, round(w * scale)), method)


def middle(image, size):
    h, w = image.shape[:2]
    return image[(h - size) // 2 :, (w - size) // 2 :][:size, :size]


def anywhere(image, size, padding, rng):
    image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    h, w = image.shape[:2]
    top, left = rng.integers(h - size + 1), rng.integers(w - size + 1)
    return image[top : top + size, left : left + size]


def part(image, size, scale, ratio, method, rng):
    h, w = image.shape[:2]
    for _ in range(10):
        area = h * w * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        high, wide = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < high <= h and 0 < wide <= w:
            top, left = rng.integers(h - high + 1), rng.integers(w - wide + 1)
            break
    else:
        aspect = np.clip(w / h, *ratio)
        high, wide = min(h, max(1, round(w / aspect))), min(w, max(1, round(h * aspect)))
        top, left = (h - high) // 2, (w - wide) // 2
    return stretch(image[top : top + high, left : left + wide], size, size, method)


def mirror(image, p, rng):
    return image[:, ::-1] if rng.random() < p else image


USUAL = (0.08, 1.0), (0.75, 4 / 3)
CASES = {  # text: the same on arrays
    "": lambda x, m, rng: x,
    "resize(24, method={m})": lambda x, m, rng: stretch(x, 24, 24, m),
    "resize(17, 31, {m})": lambda x, m, rng: stretch(x, 17, 31, m),
    "resize_short(19, {m})|center_crop(18)": lambda x, m, rng: middle(short(x, 19, m), 18),
    "random_crop(5)|flip": lambda x, m, rng: mirror(anywhere(x, 5, 0, rng), 0.5, rng),
    "random_crop(9, padding=4)": lambda x, m, rng: anywhere(x, 9, 4, rng),
    "random_resized_crop(16, method={m})|flip(0.3)": lambda x, m, rng: mirror(
        part(x, 16, *USUAL, m, rng), 0.3, rng
    ),
    "random_resized_crop(7, (0.01, 0.02), (0.2, 0.3), {m})": lambda x, m, rng: part(
        x, 7, (0.01, 0.02), (0.2, 0.3), m, rng
    ),
    "flip(1)|resize(20, method={m})|random_crop(19, 3)|flip": lambda x, m, rng: mirror(
        anywhere(stretch(x[:, ::-1], 20, 20, m) if rng.random() < 1 else x, 19, 3, rng), 0.5, rng
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", CASES)
def test_pixels_are_equal_to_the_bit(text, method):
    change = transforms.pipeline(text.format(m=method))
    for seed in range(25):
        rng = np.random.default_rng([1, seed])
        # odd sizes, and shapes so extreme that no random part fits
        h, w = (5, 900) if seed == 0 else (700, 5) if seed == 1 else rng.integers(5, 60, 2)
        image = rng.integers(0, 256, (h, w, 3), np.uint8)
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        out = change({"image": image}, ours)
        np.testing.assert_array_equal(out["image"], CASES[text](image, method, theirs))
        assert ours.random() == theirs.random()  # as many draws
        assert out["frame"].size == out["image"].shape[:2] and out["size"] == (h, w)


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(run("resize(16)", stripes).astype(int)[:, 2:-2] - 127).max() <= 2


def test_resize_short_keeps_the_aspect(photo):
    assert run("resize_short(15)", photo).shape == (15, 20, 3)
    assert run("resize_short(15)", photo.transpose(1, 0, 2)).shape == (20, 15, 3)
    assert run("resize_short(7)", photo).shape[0] == 7


def test_random_crop_reaches_every_place(photo):
    seen = set()
    for seed in range(300):
        out = run("random_crop(28)", photo, seed)
        seen.add((out[0, 0, 1] // 8, out[0, 0, 0] // 6))
    assert len(seen) == 3 * 13  # the last row and column too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("center_crop(31)", r"center_crop\(31\) met .* 30 x 40 pixels; put resize_short\(31\)"),
        ("random_crop(39, 4)", r"random_crop\(39\) met .* 38 x 48 pixels"),
        ("pad(32)", r"pad\(32\) met an image of 30 x 40 pixels"),
    ],
)
def test_images_that_do_not_fit_are_refused(photo, text, message):
    with pytest.raises(ConfigError, match=message):
        run(text, photo)
    with pytest.raises(ConfigError, match=message):
        transforms.pipeline(text).size((30, 40))


def test_random_resized_crop_areas_and_aspects():
    y, x = np.mgrid[:100, :160]
    place = np.stack([x, y, x], -1).astype(np.uint8)  # each pixel says where it comes from
    areas, aspects = [], []
    for seed in range(200):
        text = "random_resized_crop(50, scale=(0.2, 0.5), method=nearest)"
        out = run(text, place, seed).astype(int)
        wide, high = np.ptp(out[..., 0]) * 50 / 49, np.ptp(out[..., 1]) * 50 / 49
        areas.append(wide * high / place[..., 0].size)
        aspects.append(wide / high)
    assert 0.18 < min(areas) < 0.25 and 0.45 < max(areas) < 0.53
    assert 0.7 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.42


def test_flip(photo):
    flipped = [run("flip", photo, s)[0, 0, 0] != 0 for s in range(400)]
    assert 0.4 < np.mean(flipped) < 0.6
    assert np.array_equal(run("flip(1)", photo), photo[:, ::-1])
    assert np.array_equal(run("flip(0.0)", photo), photo)


def test_rotate_turns_against_the_clock_and_keeps_the_size(photo):
    square = photo[:, :30]
    for method in ("bicubic", "bilinear", "nearest"):
        turned = run(f"rotate((90, 90), {method})", square)
        assert np.array_equal(turned, np.rot90(square))
    assert np.array_equal(run("rotate((-90, -90))", square), np.rot90(square, -1))
    assert np.array_equal(run("rotate((180, 180))", photo), photo[::-1, ::-1])
    assert np.array_equal(run("rotate(0)", photo), photo)
    assert run("rotate(45)", photo).shape == photo.shape
    assert (run("rotate((45, 45))", photo + 1)[0, 0] == 0).all()


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("rotate(20)", -20, 20), ("rotate(-20)", -20, 20), ("rotate((5, 9.5))", 5, 9.5)],
)
def test_rotate_draws_evenly(text, low, high):
    step = transforms.pipeline(text)
    image = np.zeros((3, 3, 3), np.uint8)
    frames = [step({"image": image}, np.random.default_rng(s))["frame"] for s in range(200)]
    angles = np.degrees([np.arctan2(f.matrix[1, 0], f.matrix[0, 0]) for f in frames])
    span = high - low
    assert low <= angles.min() < low + span / 20 and high - span / 20 < angles.max() <= high


def test_pad_fills_below_and_on_the_right(photo):
    out = run("pad((32, 43))", photo)
    assert out.shape == (32, 43, 3) and np.array_equal(out[:30, :40], photo)
    assert not out[30:].any() and not out[:, 40:].any()
    assert run("pad(64)", photo).shape == (64, 64, 3)


class Drawn:
    """A generator that draws what it is told."""

    def __init__(self, factor, order=(0, 1, 2, 3)):
        self.factor, self.order = factor, order

    def permutation(self, n):
        assert n == 4
        return np.array(self.order)

    def uniform(self, low, high):
        self.bounds = low, high
        return self.factor


def test_jitter_means_what_it_means_elsewhere():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    grey = image @ [0.299, 0.587, 0.114]
    for factor in (0.0, 0.4, 1.0, 1.7):
        towards = {"brightness": 0, "contrast": round(grey.mean()), "saturation": grey[..., None]}
        for name, other in towards.items():
            drawn = Drawn(factor)
            out = transforms.jitter(image, **{name: 0.8}, rng=drawn)
            wanted = np.clip(factor * image + (1 - factor) * other, 0, 255)
            assert np.abs(out - wanted).max() < 2, (name, factor)
            assert drawn.bounds == pytest.approx((0.2, 1.8))
    drawn = Drawn(1.0)
    transforms.jitter(image, 2.0, rng=drawn)
    assert drawn.bounds == (0, 3)
    out = transforms.jitter(image, hue=0.4, rng=(drawn := Drawn(0.25)))
    assert drawn.bounds == (-0.4, 0.4)
    for pixel, before in zip(out.reshape(-1, 3), image.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before / 255)
        wanted = np.array(colorsys.hsv_to_rgb(h + 0.25, s, v)) * 255
        assert np.abs(pixel - wanted).max() < 14  # Pillow's circle has 256 steps


def test_jitter_changes_in_a_drawn_order():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    first, last = (
        transforms.jitter(image, 1, 1, rng=Drawn(1.9, o)) for o in (range(4), (3, 2, 1, 0))
    )
    assert not np.array_equal(first, last)
    assert np.array_equal(transforms.jitter(image, rng=Drawn(0.5)), image)
    outs = {run("jitter(0.4, 0.4, 0.4, 0.1)", image, seed).tobytes() for seed in range(9)}
    assert len(outs) == 9


def test_grey(photo):
    out = run("grey(1)", photo)
    assert np.array_equal(out, np.repeat(out[..., :1], 3, -1))
    assert np.abs(out[..., 0] - photo @ [0.299, 0.587, 0.114]).max() <= 1
    assert np.mean([np.array_equal(run("grey(0.2)", photo, s), photo) for s in range(200)]) > 0.7


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
    for name in ("flip", "random_crop(8)", "rotate(3)", "jitter(0.1)", "grey"):
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
        ("rotate", ConfigError, r"does not fit rotate\(degrees, method='bicubic'\)"),
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
