"""Geometric transforms give the pixels that Pillow gives, and refuse what does not fit."""

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import geometric, transforms
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError

METHODS = ("bicubic", "bilinear", "nearest", "plain_bilinear")


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


def test_rotate_and_zoom_magnify_about_the_centre(photo):
    given = {"image": photo, "depth": np.full(photo.shape[:2], 3, np.float32)}
    fields = {**transforms.IMAGE, "depth": Field("values")}
    middle = np.asarray(Image.fromarray(photo).resize((40, 30), Image.Resampling.BICUBIC,
                                                      (10, 7.5, 30, 22.5)))  # fmt: skip
    for text in ("zoom((2,))", "rotate(0, scale=(2, 2))"):
        out = transforms.pipeline(text)(given, np.random.default_rng(0), fields=fields)
        assert np.array_equal(out["image"][3:-3, 3:-3], middle[3:-3, 3:-3])
        assert (out["depth"] == 1.5).all()
    out = transforms.pipeline("zoom((0.5,))")(given, np.random.default_rng(0), fields=fields)
    assert (out["depth"] == 6).sum() == 30 * 40 / 4 and not out["image"][:7].any()
    turned = run("rotate((180, 180), scale=(2, 2))", photo).astype(int)
    assert abs(turned - middle[::-1, ::-1]).mean() < 2  # resampled once, by another routine


def test_factors_are_drawn_evenly():
    def factors(text):
        step, image = transforms.pipeline(text), np.zeros((3, 3, 3), np.uint8)
        frames = [step({"image": image}, np.random.default_rng(s))["frame"] for s in range(300)]
        return np.array([frame.nearer for frame in frames])

    found = factors("rotate(20, scale=(0.75, 1.25))")
    assert 0.75 <= found.min() < 0.78 and 1.22 < found.max() <= 1.25 and 0.98 < found.mean() < 1.02
    kinds, counts = np.unique(factors("zoom"), return_counts=True)
    assert kinds.tolist() == [1, 1.2, 1.5] and counts.min() > 70
    assert set(factors("rotate(20)")) == {1.0}


def test_pad_fills_below_and_on_the_right(photo):
    out = run("pad((32, 43))", photo)
    assert out.shape == (32, 43, 3) and np.array_equal(out[:30, :40], photo)
    assert not out[30:].any() and not out[:, 40:].any()
    assert run("pad(64)", photo).shape == (64, 64, 3)


def test_resize_within_keeps_both_sides_and_the_aspect():
    for given, wanted in {
        (30, 40): (15, 20),  # the short side decides
        (40, 30): (20, 15),
        (10, 100): (5, 50),  # the long one
        (100, 10): (50, 5),
        (1, 900): (1, 50),
    }.items():
        assert geometric.resize_within(given, 15, 50).size == wanted


def test_resize_random_scales_both_sides_by_one_factor():
    sizes = [
        geometric.resize_random((30, 40), 60, 300, rng=np.random.default_rng(s)).size
        for s in range(300)
    ]
    short, long = np.array(sizes).T
    assert short.min() < 33 and short.max() > 115 and 29 < short.min() and short.max() <= 120
    assert np.abs(long - short * 4 / 3).max() < 1.2  # rounded, each by half a pixel
    assert transforms.pipeline("resize_random(60, 300)").size((30, 40)) is None
    assert transforms.pipeline("resize_random(60, 300)|crop((32, 64))").size() == (32, 64)


def test_crop_reaches_every_place_and_fills_what_is_missing(photo):
    fields = {"image": Field("pixels"), "labels": Field("labels", fill=-1)}
    labels = np.arange(30 * 40, dtype=np.int32).reshape(30, 40)
    seen, change = set(), transforms.pipeline("crop((28, 44))")
    for seed in range(60):
        example = {"image": photo, "labels": labels}
        out = change(example, np.random.default_rng(seed), fields=fields)
        top = int(out["frame"].matrix[1, 2])
        assert np.array_equal(out["image"][:, :40], photo[top : top + 28])
        assert not out["image"][:, 40:].any()
        assert np.array_equal(out["labels"][:, :40], labels[top : top + 28])
        assert (out["labels"][:, 40:] == -1).all()  # void, which no loss counts
        seen.add(top)
    assert seen == {0, 1, 2}


def test_crop_looks_for_a_place_that_no_class_fills(photo):
    labels = np.zeros((30, 40), np.int32)
    labels[:, 20:] = 1
    labels[15:] = 255  # void counts for nothing
    fields = {"image": Field("pixels"), "labels": Field("labels", fill=255)}

    def largest(text):
        shares = []
        for seed in range(100):
            example = {"image": photo, "labels": labels}
            rng = np.random.default_rng(seed)
            cut = transforms.pipeline(text)(example, rng, fields=fields)["labels"]
            counts = np.bincount(cut[cut != 255], minlength=1)
            shares.append(counts.max() / max(counts.sum(), 1))
        return np.array(shares)

    free, bound = largest("crop(16)"), largest("crop(16, category=0.75)")
    assert (free == 1).mean() > 0.3 and (bound > 0.75).mean() < 0.1
    # pictures without labels are cut anywhere
    out = transforms.pipeline("crop(16, 0.75)")({"image": photo}, np.random.default_rng(0))
    assert out["image"].shape == (16, 16, 3)


OBJECTS = {
    "image": Field("pixels"),
    "instances": Field("masks"),
    "boxes": Field("boxes", most=4),
    "box_classes": Field("rows", fill=-1, most=4),
    "box_ids": Field("rows", most=4),
    "extent": Field("extent", size=(2,)),
}
CHANGES = (
    *("flip(1.0)", "resize(31, 20)", "resize_short(24)", "resize_within(30, 30)|pad(32)"),
    *("resize_random(30, 60)|crop(28)|flip", "random_crop(24, padding=5)", "center_crop(36)"),
    *("random_resized_crop(24, (0.05, 1.0))", "rotate(40)", "rotate(10)|crop((20, 30))|pad(32)"),
)


@pytest.mark.parametrize("text", CHANGES)
def test_boxes_classes_and_numbers_stay_together(text):
    boxes = np.float32([[2, 3, 12, 20], [30, 5, 50, 15], [20, 30, 21, 39], [40, 22, 56, 40]])
    instances, ids = np.zeros((40, 56), np.int32), np.int32([7, 2, 9, 4])
    for (left, top, right, bottom), number in zip(boxes.astype(int), ids, strict=True):
        instances[top:bottom, left:right] = number
    image = np.repeat(instances[..., None].astype(np.uint8), 3, -1)
    given = dict(
        image=image, instances=instances, boxes=boxes, box_classes=ids + 10, box_ids=ids
    )  # fmt: skip
    kept = set()
    for seed in range(12):
        out = transforms.pipeline(text)(given, np.random.default_rng(seed), fields=OBJECTS)
        assert len(out["boxes"]) == len(out["box_ids"])
        assert np.array_equal(out["box_ids"] + 10, out["box_classes"])
        assert out["instances"].shape == out["image"].shape[:2]
        h, w = out["extent"]
        assert not out["instances"][h:].any() and not out["instances"][:, w:].any()
        assert (out["boxes"] <= [w, h, w, h]).all()
        for number, (left, top, right, bottom) in zip(out["box_ids"], out["boxes"], strict=True):
            assert right - left >= 1 and bottom - top >= 1
            y, x = np.nonzero(out["instances"] == number)
            x, y = x + 0.5, y + 0.5  # a centre is in the box of its object
            assert (x >= left - 1e-3).all() and (x <= right + 1e-3).all()
            assert (y >= top - 1e-3).all() and (y <= bottom + 1e-3).all()
            if "rotate" not in text:
                area = (round(right) - round(left)) * (round(bottom) - round(top))
                assert abs(len(x) - area) <= right - left + bottom - top + 1
        kept.add(len(out["boxes"]))
    assert max(kept) >= 3
    assert min(kept) < 4 or not text.startswith("random")
