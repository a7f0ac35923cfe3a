"""Images and maps are paired by name wherever patterns say; what lacks its other is said."""

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import Info, masks, pairs, transforms
from dynadapt.errors import DataError, MissingSplit
from tests.data import layouts

OBTAIN = "put them there"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def find(root, images="images/{split}", maps="masks/{split}", splits=("train",), ends=(".png",)):
    return pairs.find(root, images, maps, splits, ends, OBTAIN)


LAYOUTS = {  # files, the two patterns, and the pairs of train
    "folders": (
        ("images/train/a/1.jpg", "images/train/2.PNG", "masks/train/a/1.png", "masks/train/2.png"),
        ("images/{split}", "masks/{split}"),
        {("images/train/a/1.jpg", "masks/train/a/1.png"),
         ("images/train/2.PNG", "masks/train/2.png")},
    ),
    "camvid": (
        ("train/1.jpg", "trainannot/1.png", "val/1.jpg", "valannot/1.png"),
        ("{split}", "{split}annot"),
        {("train/1.jpg", "trainannot/1.png")},
    ),
    "one folder": (
        ("train/x1_rgb.jpg", "train/x1_depth.png", "train/x1_label.png"),
        ("{split}/*_rgb.jpg", "{split}/*_label.png"),
        {("train/x1_rgb.jpg", "train/x1_label.png")},
    ),
    "folders of scenes": (
        ("s1/rgb.jpg", "s1/depth.png", "s2/rgb.jpg", "s2/depth.png"),
        ("*/rgb.jpg", "*/depth.png"),
        {("s1/rgb.jpg", "s1/depth.png"), ("s2/rgb.jpg", "s2/depth.png")},
    ),
    "cityscapes": (
        ("leftImg8bit/train/ulm/u_1_leftImg8bit.png", "gtFine/train/ulm/u_1_gtFine_labelIds.png",
         "gtFine/train/ulm/u_1_gtFine_color.png"),
        ("leftImg8bit/{split}/*_leftImg8bit.png", "gtFine/{split}/*_gtFine_labelIds.png"),
        {("leftImg8bit/train/ulm/u_1_leftImg8bit.png", "gtFine/train/ulm/u_1_gtFine_labelIds.png")},
    ),
    "no splits": (
        ("images/1.jpg", "masks/1.png"),
        ("images/{split}", "masks/{split}"),
        {("images/1.jpg", "masks/1.png")},
    ),
    "no splits, said so": (
        ("pictures/x/1.jpg", "maps/x/1.png"),
        ("pictures", "maps"),
        {("pictures/x/1.jpg", "maps/x/1.png")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout, caplog):
    files, patterns, wanted = LAYOUTS[layout]
    touch(tmp_path, *files)
    assert set(find(tmp_path, *patterns)["train"]) == wanted
    assert not caplog.records


def test_names_compare_in_one_normal_form(tmp_path):
    touch(tmp_path, "images/\u00e9.jpg", "masks/e\u0301.png")
    assert find(tmp_path)["train"] == [("images/\u00e9.jpg", "masks/e\u0301.png")]


def test_the_order_mixes_and_is_the_same_each_time(tmp_path):
    names = [f"{c}/{i}" for c in "ab" for i in range(20)]
    touch(tmp_path, *(f"images/{n}.jpg" for n in names), *(f"masks/{n}.png" for n in names))
    found = find(tmp_path, "images", "masks")["train"]
    assert found == find(tmp_path, "images", "masks")["train"]
    assert {image.split("/")[1] for image, _ in found[:8]} == {"a", "b"}


def test_what_has_no_other_is_counted(tmp_path, caplog):
    touch(tmp_path, "images/1.jpg", "images/2.jpg", "images/3.jpg", "masks/3.png", "masks/4.png")
    assert find(tmp_path)["train"] == [("images/3.jpg", "masks/3.png")]
    [record] = caplog.records
    assert record.getMessage() == (
        f"train of {tmp_path} has 1 pairs; passed over 2 images without a map, such as "
        "images/1.jpg and 1 maps without an image, such as masks/4.png"
    )


@pytest.mark.parametrize(
    ("files", "settings", "error", "message"),
    [
        ((), {}, DataError, "no folder .*images/train; put them there"),
        (("images/1.jpg",), {}, DataError, "no folder .*/masks; put them there"),
        (("images/train/x.txt", "masks/train/1.png"), {}, DataError, "holds no images"),
        (("images/1.jpg", "masks/1.jpg"), {}, DataError, r"holds no files that end in \.png"),
        (
            ("images/1.jpg", "masks/2.png"),
            {},
            DataError,
            "no image of train .* map of its name: .* images/1.jpg, maps such as masks/2.png",
        ),
        (
            ("images/training/1.jpg", "masks/training/1.png", "images/test/1.jpg"),
            {},
            MissingSplit,
            "no split 'train'; did you mean 'training'",
        ),
        (
            ("trainannot/1.png", "validannot/1.png", "train/1.jpg", "valid/1.jpg"),
            {"splits": ("vali",), "images": "{split}", "maps": "{split}annot"},
            MissingSplit,
            "no split 'vali'; did you mean 'valid'",
        ),
        (
            ("images/1.jpg", "masks/1.png"),
            {"splits": ("test",)},
            MissingSplit,
            "no split 'test'; use slices of train",
        ),
        (
            ("images/1.jpg", "images/1.png", "masks/1.png"),
            {},
            DataError,
            r"1\.(jpg|png) and images/1\.(jpg|png) have one name; .* such as images/\*\.",
        ),
        (("a/1.jpg",), {"images": "*/*.jpg"}, DataError, r"has more than one \*"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(tmp_path, files, settings, error, message):
    touch(tmp_path, *files)
    with pytest.raises(error, match=message) as raised:
        find(tmp_path, **settings)
    assert "\n" not in str(raised.value)


def test_lists_name_pairs_below_one_of_some_folders(tmp_path):
    touch(tmp_path, "sync/1.jpg", "sync/1.png", "2.jpg")
    rows, file = [("1.jpg", "1.png")], tmp_path / "train_list.txt"
    assert pairs.named(tmp_path, file, rows, ("", "sync")) == [("sync/1.jpg", "sync/1.png")]
    with pytest.raises(DataError, match="names 1 files that are not under .*the first .* 2.png"):
        pairs.named(tmp_path, file, [("2.jpg", "2.png")], ("", "sync"))
    with pytest.raises(DataError, match="lists no images"):
        pairs.named(tmp_path, file, [])


def test_the_fingerprint_covers_paths_maps_and_what_is_said(tmp_path):
    layouts.masks(tmp_path, {"train": 2})
    files = find(tmp_path)
    first = pairs.fingerprint(tmp_path, files, "")
    assert first == pairs.fingerprint(tmp_path, find(tmp_path), "")
    assert first != pairs.fingerprint(tmp_path, files, "other settings")
    image = files["train"][0][1]
    (tmp_path / image).write_bytes((tmp_path / image).read_bytes() + b"1")
    assert first != pairs.fingerprint(tmp_path, files, "")


def test_images_stay_as_they_are_stored(tmp_path):
    # a mask lies over the pixels as stored, so no EXIF block turns its image
    layouts.masks(tmp_path, {"train": 1})
    [(image, _)] = find(tmp_path)["train"]
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(layouts.picture()).save(tmp_path / image, exif=exif)
    source = masks.source("train", path=str(tmp_path))
    out = transforms.pipeline("")(source[0], fields=source.info.fields)
    assert out["image"].shape == (layouts.H, layouts.W, 3)


def test_a_file_that_is_gone_is_named(tmp_path):
    layouts.masks(tmp_path, {"train": 1})
    files = find(tmp_path)
    info = Info("x", {}, {"train": 1}, "")
    source = pairs.Pairs("train", tmp_path, files, info, "labels", lambda data, name: np.zeros(1))
    (tmp_path / files["train"][0][1]).unlink()
    with pytest.raises(DataError, match="cannot read .*0.png: No such file"):
        source[0]


def test_a_folder_must_be_there(tmp_path):
    for path in ("", str(tmp_path / "x")):
        with pytest.raises(DataError, match="there is no folder .*; put them there"):
            pairs.folder(path, OBTAIN)
