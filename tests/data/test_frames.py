"""One frame carries every kind of field to the same place, and answers back."""

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import derived, frames, geometric, scenes, transforms
from dynadapt.data.fields import Field
from dynadapt.data.frames import Frame

H, W = 6, 8
FIELDS = {
    "image": Field("pixels"),
    "labels": Field("labels", fill=255),
    "depth": Field("values", fill=-1),
    "normals": Field("vectors"),
    "masks": Field("masks"),
    "boxes": Field("boxes", most=5),
    "class": Field("rows", most=5),
    "cloud": Field("cloud"),
    "label": Field("number"),
}
DENSE = ("image", "labels", "depth", "normals", "masks")


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(H, W, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[1, 2] = 0  # invalid
    return {
        "image": rng.integers(0, 256, (H, W, 3), np.uint8),
        "labels": rng.integers(0, 200, (H, W), np.int32),
        "depth": rng.uniform(1, 9, (H, W)).astype(np.float32),
        "normals": normals,
        "masks": rng.integers(0, 3, (H, W), np.int32),
        "boxes": np.float32([[1, 2, 5, 4], [0, 0, 8, 6]]),
        "class": np.int32([7, 9]),
        "cloud": rng.normal(size=(4, 3)).astype(np.float32),
        "label": 3,
        "name": "train[0]",
    }


@pytest.mark.parametrize(
    ("frame", "wanted"),
    [
        (frames.identity((H, W)), [H, W]),
        (frames.window(0, 0, H, W, (7, 13)), [7, 13]),
        (geometric.pad((H, W), 16), [H, W]),
        (frames.window(2, 3, 10, 10, (10, 10)), [4, 5]),  # a crop that leaves the picture
        (frames.window(1, 1, 2, 2, (4, 4)), [4, 4]),
        (Frame(np.array([[-1.0, 0, 8], [0, 1, 0]]), (16, 16)), [6, 8]),
        (Frame(np.array([[-1.0, 0, 16], [0, 1, 0]]), (16, 16)), [6, 16]),  # padded, then mirrored
    ],
)
def test_the_extent_is_what_the_picture_reaches_of_its_canvas(frame, wanted):
    found = frames.warp(np.array([H, W], np.int32), Field("extent"), frame)
    assert found.dtype == np.int32 and found.tolist() == wanted


@pytest.mark.parametrize("size", [(375, 500), (427, 640), (333, 479), (1, 7)])
def test_the_extent_of_a_letterbox_is_whole_pixels(size):
    change = transforms.pipeline("resize_within(64,64)|pad(64)")
    image = np.full((*size, 3), 255, np.uint8)
    found = change({"image": image}, fields={**transforms.IMAGE, "extent": Field("extent")})
    h, w = found["extent"].tolist()
    assert (found["image"][:h, :w] == 255).all() and found["image"].sum() == h * w * 3 * 255


def test_what_was_cut_off_stays_out_of_the_extent():
    change = transforms.pipeline("resize(32)|center_crop(20)|pad(24)")
    fields = {**transforms.IMAGE, "extent": Field("extent")}
    found = change({"image": np.full((40, 40, 3), 9, np.uint8)}, fields=fields)
    assert found["extent"].tolist() == [20, 20]
    assert "extent" not in change({"image": found["image"]})


def quarter(size):
    """The quarter turn against the clock that swaps the sides."""
    return Frame(np.array([[0.0, -1, size[1]], [1, 0, 0]]), size[::-1])


def flipped(size):
    return Frame(np.array([[-1.0, 0, size[1]], [0, 1, 0]]), size)


def arrays(example, change, turn):
    """What the dense fields become when `change` moves arrays and `turn` vectors."""
    out = {name: change(example[name]) for name in DENSE}
    return out | {"normals": turn(out["normals"])}


def same(vectors):
    return vectors


def mirror(vectors):
    return vectors * np.float32([-1, 1, 1])


def up_from_right(vectors):
    """A quarter turn: what pointed right, (1, 0), points up, (0, -1)."""
    return np.stack([vectors[..., 1], -vectors[..., 0], vectors[..., 2]], -1)


CASES = {
    "crop": (
        frames.window(1, 2, 3, 5, (3, 5)),
        lambda v: v[1:4, 2:7],
        same,
        [[0, 1, 3, 3], [0, 0, 5, 3]],
    ),
    "zoom": (
        frames.window(0, 0, H, W, (3 * H, 2 * W), "nearest"),
        lambda v: v.repeat(3, 0).repeat(2, 1),
        same,
        [[2, 6, 10, 12], [0, 0, 16, 18]],
    ),
    "shrink": (
        frames.window(0, 0, 6, 6, (2, 2), "nearest"),
        lambda v: v[1::3, 1:6:3],
        same,
        [[0, 0, 2, 2]],
    ),
    "flip": (flipped((H, W)), lambda v: v[:, ::-1], mirror, [[3, 2, 7, 4], [0, 0, 8, 6]]),
    "quarter": (quarter((H, W)), np.rot90, up_from_right, [[2, 3, 4, 7], [0, 0, 6, 8]]),
    "half": (
        Frame(np.array([[-1.0, 0, W], [0, -1, H]]), (H, W)),
        lambda v: v[::-1, ::-1],
        lambda v: v * np.float32([-1, -1, 1]),
        [[3, 2, 7, 4], [0, 0, 8, 6]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_field_follows_to_the_pixel(example, case):
    frame, change, turn, boxes = CASES[case]
    out = frames.warp_all(example, FIELDS, frame)
    for name, wanted in arrays(example, change, turn).items():
        assert out[name].dtype == example[name].dtype
        if name == "normals":
            np.testing.assert_allclose(out[name], wanted, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(out[name], wanted, err_msg=name)
    if case == "shrink":  # two thirds of a pixel are left of the first box's height
        assert out["class"].tolist() == [9]
    assert out["boxes"].tolist() == boxes and out["boxes"].dtype == np.float32
    for name in ("cloud", "label", "name"):
        assert out[name] is example[name]


def test_a_chain_is_its_steps_and_its_composition(example):
    size = (2 * W, 2 * H)  # after the turn
    chain = [
        quarter((H, W)),
        frames.window(0, 0, W, H, size, "nearest"),
        flipped(size),
        frames.window(3, 1, 9, 10, (9, 10)),
    ]
    whole, out = frames.identity((H, W)), example
    for frame in chain:
        whole, out = frames.compose(whole, frame), frames.warp_all(out, FIELDS, frame)
    wanted = np.rot90(example["labels"]).repeat(2, 0).repeat(2, 1)[:, ::-1][3:12, 1:11]
    assert np.array_equal(out["labels"], wanted)
    at_once = frames.warp_all(example, FIELDS, whole)
    for name in ("labels", "depth", "masks", "boxes", "class"):
        np.testing.assert_array_equal(at_once[name], out[name], err_msg=name)
    np.testing.assert_allclose(at_once["normals"], out["normals"], atol=1e-6)
    assert whole.size == (9, 10)


def test_outside_of_the_picture_is_what_nothing_is(example):
    out = frames.warp_all(example, FIELDS, frames.window(-2, -1, H + 4, W + 3, (H + 4, W + 3)))
    fills = {"image": 0, "labels": 255, "depth": -1, "normals": 0, "masks": 0}
    for name, fill in fills.items():
        assert np.array_equal(out[name][2 : 2 + H, 1 : 1 + W], example[name])
        for border in (out[name][:2], out[name][2 + H :], out[name][:, :1], out[name][:, 1 + W :]):
            assert border.size and (border == fill).all(), name
    assert out["boxes"].tolist() == [[2, 4, 6, 6], [1, 2, 9, 8]]
    away = frames.warp_all(example, FIELDS, frames.window(90, -50, 4, 4, (4, 4)))
    assert all((away[name] == fill).all() for name, fill in fills.items())
    assert away["boxes"].shape == (0, 4) and away["class"].shape == (0,)


def test_no_boxes_and_lacking_fields_are_fine(example):
    example |= {"boxes": np.zeros((0, 4), np.float32), "class": np.zeros(0, np.int32)}
    del example["depth"]
    out = frames.warp_all(example, FIELDS, flipped((H, W)))
    assert out["boxes"].shape == (0, 4) and "depth" not in out


def test_centres_on_an_edge_belong_to_the_pixel_that_begins_there():
    for w in range(1, 40):
        row = np.arange(w)[None]
        for size in range(1, 40):
            out = frames.warp(row, FIELDS["labels"], frames.window(0, 0, 1, w, (1, size)))
            assert np.array_equal(out[0], w * (2 * np.arange(size) + 1) // (2 * size)), (w, size)


def test_values_are_never_mixed_with_invalid_ones(example):
    frame = geometric.rotate((H, W), (30, 30), rng=np.random.default_rng(0))
    out = frames.warp_all(example, FIELDS, frame)
    assert set(out["depth"].ravel()) <= {*example["depth"].ravel(), -1}
    assert set(out["labels"].ravel()) <= {*example["labels"].ravel(), 255}
    lengths = np.linalg.norm(out["normals"], axis=-1)
    assert ((lengths == 0) | (abs(lengths - 1) < 1e-6)).all()
    assert (lengths == 0).sum() > (out["depth"] == -1).sum() > 0  # the invalid one is there too


def test_vectors_turn_by_the_angle_of_the_picture():
    right = np.zeros((9, 9, 3), np.float32)
    right[..., 0] = 1
    frame = geometric.rotate((9, 9), (30, 30), rng=np.random.default_rng(0))
    wide = frames.compose(frames.window(0, 0, 9, 9, (9, 36)), frame)  # stretching turns nothing
    for each in (frame, wide):
        up_right = frames.warp(right, FIELDS["normals"], each)[4, 4]
        np.testing.assert_allclose(up_right[2], 0, atol=1e-6)
    turned = frames.warp(right, FIELDS["normals"], frame)[4, 4]
    np.testing.assert_allclose(turned, [np.sqrt(3) / 2, -0.5, 0], atol=1e-6)


@pytest.mark.parametrize("text", ["flip(1)", "rotate((90, 90))", "rotate((20, 20))"])
def test_all_fields_of_a_scene_turn_together(text):
    names = ("labels", "depth", "normals", "saliency", "edges", "instances")
    source = scenes.source("train", size=96, fields=names)
    change = transforms.pipeline(text)
    out = change(source[3], np.random.default_rng(0), fields=source.info.fields)
    # the floor that the turned depth shows, seen from the same camera, has the turned normals
    floor = (out["labels"] == 0) & out["normals"].any(-1)
    seen = derived.normals(out["depth"], scenes.intrinsics(96)[0, 0])[floor].mean(0)
    wanted = out["normals"][floor].mean(0)
    assert np.dot(seen, wanted) > np.cos(np.radians(2)) * np.linalg.norm(seen) > 0.8
    ours = out["frame"].matrix @ [40.5, 30.5, 1]  # where one pixel comes from
    x, y = np.floor(ours).astype(int)
    for name in names:
        if name != "normals":
            assert out[name][30, 40] == source[3][name][y, x], name


def test_values_are_divided_by_how_much_nearer_a_frame_shows_them(example):
    closer = Frame(np.array([[0.5, 0, 2], [0, 0.5, 1.5]]), (H, W), nearer=2.0)
    chain = frames.compose(closer, frames.compose(flipped((H, W)), closer))
    assert chain.nearer == 4
    example["depth"][3, 4] = -1  # unknown
    out = frames.warp(example["depth"], FIELDS["depth"], closer)
    wanted = frames.warp(example["depth"], FIELDS["depth"], Frame(closer.matrix, (H, W)))
    assert np.array_equal(out, np.where(wanted == -1, -1, wanted / 2)) and (out == -1).any()
    back = frames.unwarp(out, FIELDS["depth"], closer, (H, W))
    assert np.array_equal(back[2:4, 3:5], example["depth"][2:4, 3:5])


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "nearest", "plain_bilinear"])
def test_pixels_come_from_where_the_frame_says(method):
    y, x = np.mgrid[:40, :50]
    image = np.stack([x * 5, y * 6, x + y], -1).astype(np.uint8)
    turn = geometric.rotate((30, 35), (20, 20), rng=np.random.default_rng(0))
    part = frames.window(3.25, 4.5, 30.5, 36, (30, 35), method)
    # Pillow's cubic of a rotation is not exact on ramps
    tolerance = {"nearest": 4, "bicubic": 2}.get(method, 1.01)
    for frame in (part, frames.compose(part, Frame(turn.matrix, turn.size, method))):
        out = frames.warp(image, FIELDS["image"], frame)[12:-12, 12:-12].astype(float)
        at = np.mgrid[12:18, 12:23][::-1].reshape(2, -1).T + 0.5
        at = (at @ frame.matrix[:, :2].T + frame.matrix[:, 2] - 0.5).reshape(6, 11, 2)
        wanted = np.stack([at[..., 0] * 5, at[..., 1] * 6, at.sum(-1)], -1)
        assert np.abs(out - wanted).max() <= tolerance


def test_a_whole_window_is_a_crop_then_pillows_resize():
    image = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    out = frames.warp(image, FIELDS["image"], frames.window(2, 5, 17, 29, (8, 40)))
    crop = Image.fromarray(image[2:19, 5:34])
    assert np.array_equal(out, crop.resize((40, 8), Image.Resampling.BICUBIC))


def test_answers_come_back(example):
    zoom = frames.compose(flipped((H, W)), frames.window(0, 0, H, W, (4 * H, 3 * W)))
    zoomed = frames.warp_all(example, FIELDS, zoom)
    for name in ("labels", "depth", "masks", "normals", "boxes"):
        back = frames.unwarp(zoomed[name], FIELDS[name], zoom, (H, W))
        np.testing.assert_allclose(back, example[name], atol=1e-6, err_msg=name)
    crop = frames.window(1, 2, 4, 10, (4, 10))  # leaves the picture on the right
    labels = frames.warp(example["labels"], FIELDS["labels"], crop)
    wanted = np.full((H, W), 255)
    wanted[1:5, 2:] = example["labels"][1:5, 2:]
    assert np.array_equal(frames.unwarp(labels, FIELDS["labels"], crop, (H, W)), wanted)
    boxes = frames.unwarp(np.float32([[0, 0, 10, 4]]), FIELDS["boxes"], crop, (H, W))
    assert boxes.tolist() == [[2, 1, 8, 5]]  # clipped to the original


def test_scores_come_back_smoothly():
    y, x = np.mgrid[:H, :W] + 0.5
    scores = np.stack([2 * x, y, x + y], -1)
    turn = geometric.rotate((H, W), (10, 10), rng=np.random.default_rng(0))
    back = frames.unwarp(scores, Field("values", fill=-5), turn, (H, W), smooth=True)
    at = np.stack([x, y], -1) - turn.matrix[:, 2]
    at = at @ np.linalg.inv(turn.matrix[:, :2]).T
    wanted = np.stack([2 * at[..., 0], at[..., 1], at.sum(-1)], -1)
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(back[inner], wanted[inner])
    outside = (at < 0).any(-1) | (at > [W, H]).any(-1)
    assert outside.any() and (back[outside] == -5).all() and (back[~outside] >= 0).all()
    one = frames.unwarp(scores[..., 0], Field("values"), frames.identity((H, W)), (H, W), True)
    np.testing.assert_allclose(one, scores[..., 0])


STEPS = (
    *("resize(61, 47)", "resize_short(50)", "random_resized_crop(48, (0.5, 1))"),
    *("flip(1)", "rotate(20)", "resize_short(60)|random_crop(58, 2)"),
)


@pytest.mark.parametrize("seed", range(30))
def test_boxes_stay_around_their_masks(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(60, 90, 2)
    (top, bottom), (left, right) = np.sort(rng.integers(15, 45, (2, 2))) + [0, 6]
    masks = np.zeros((h, w), np.int32)
    masks[top:bottom, left:right] = 1
    boxes = np.float32([[left, top, right, bottom]])
    change = transforms.pipeline("|".join(STEPS[i] for i in rng.integers(len(STEPS), size=4)))
    frame = change({"image": np.zeros((h, w, 3), np.uint8)}, rng)["frame"]
    box = frames.warp(boxes, FIELDS["boxes"], frame)[0]
    left, top, right, bottom = box
    y, x = np.nonzero(frames.warp(masks, FIELDS["masks"], frame))
    around = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) if len(x) else box
    # a turned rectangle that the output cuts is smaller than its cut corners say
    whole = min(left, top) > 0 and right < frame.size[1] and bottom < frame.size[0]
    if whole or "rotate" not in change.text:
        assert np.abs(box - around).max() <= 1, change
    else:
        assert (around[:2] >= box[:2] - 1).all() and (around[2:] <= box[2:] + 1).all()
