"""Masks mean what their values, indices or colours say, whatever they look like."""

import numpy as np
import pytest

from dynadapt.data import loader, masks, transforms
from dynadapt.data.masks import VOID, Encoding, Reader
from dynadapt.errors import DataError
from tests.data import layouts
from tests.data.layouts import blocks, write

ABC = ("a", "b", "c")


def labels(source, index=0):
    """The labels of an example as a batch has them."""
    values, _ = loader.example(source, transforms.pipeline(""), index, None)
    return values["labels"]


@pytest.fixture
def one(tmp_path):
    """one(saves, **settings) -> the source of one image whose mask `saves(file)` writes."""

    def run(save, classes=ABC, **settings):
        write(tmp_path / "images" / "1.jpg", layouts.picture())
        save(tmp_path / "masks" / "1.png")
        if classes:
            (tmp_path / "classes.txt").write_text("\n".join(classes))
        return masks.source("train", path=str(tmp_path), **settings)

    return run


def grey(values, dtype=np.uint8):
    return lambda file: write(file, blocks(values).astype(dtype))


def test_images_and_masks_by_split(tmp_path):
    layouts.masks(tmp_path, {"train": 5, "val": 2})
    source = masks.source("train", path=str(tmp_path))
    assert len(source) == 5 and source.info.counts == {"train": 5}
    assert len(masks.source("train[:2]+val", path=str(tmp_path))) == 4
    field = source.info.fields["labels"]
    assert field.kind == "labels" and field.fill == VOID == -1
    assert source.info.classes == ("sky", "road", "car")
    assert labels(source)[0, ::4].tolist() == [0, 1, 2, VOID]
    assert labels(source).dtype == np.int32
    example = source[0]
    assert example["name"].endswith(".jpg") and isinstance(example["image"], bytes)


def test_batches_fill_the_canvas_with_void(tmp_path):
    layouts.masks(tmp_path, {"train": 4})
    source = masks.source("train", path=str(tmp_path))
    batch = next(loader.train_batches(source, "resize_random(12, 99)|distort|crop(32)|flip(0)",
                                      batch_size=4, seed=0))  # fmt: skip
    assert batch["image"].shape == (4, 32, 32, 3) and batch["labels"].shape == (4, 32, 32)
    assert (batch["labels"] == VOID).any() and not batch["image"][:, -1, -1].any()
    with pytest.raises(Exception, match="not of one size"):
        loader.train_batches(source, "flip", batch_size=1, seed=0)


def test_camvids_layout_is_reached_by_settings(tmp_path):
    layouts.camvid(tmp_path)
    source = masks.source(
        *("val", str(tmp_path), "{split}", "{split}annot"), ignore=(11,), class_count=11
    )
    assert len(source) == 2 and labels(source)[0, ::4].tolist() == [0, 3, 10, VOID]
    assert source.info.classes == tuple(map(str, range(11)))


def test_without_splits_all_is_train_to_be_sliced(tmp_path):
    for i in range(6):
        write(tmp_path / "images" / f"{i}.jpg", layouts.picture(i))
        write(tmp_path / "masks" / f"{i}.png", blocks([0, 1]).astype(np.uint8))
    parts = [
        masks.source(split, str(tmp_path), class_count=2) for split in ("train[:4]", "train[4:]")
    ]
    names = [{part[i]["name"] for i in range(len(part))} for part in parts]
    assert len(names[0]) == 4 and len(names[1]) == 2 and not names[0] & names[1]


@pytest.mark.parametrize(
    "save",
    [
        grey([0, 2, 1, 255]),
        grey([0, 2, 1, 255], np.uint16),
        lambda file: layouts.palette(file, blocks([0, 2, 1, 255])),
    ],
    ids=("grey", "16 bits", "palette"),
)
def test_values_and_indices_count_and_not_colours(one, save):
    assert labels(one(save))[0, ::4].tolist() == [0, 2, 1, VOID]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_spread(one, bits):
    values = [0, 1, 1, 0] if bits == 1 else [0, 3, 1, 2]
    source = one(lambda file: layouts.grey_png(file, blocks(values), bits), classes="abcd")
    assert labels(source)[0, ::4].tolist() == values


def test_more_than_256_classes(one):
    source = one(grey([0, 255, 256, 999], np.uint16), (), class_count=1000, ignore=())
    assert labels(source)[0, ::4].tolist() == [0, 255, 256, 999]
    with pytest.raises(DataError, match="ignore holds 255, which is the class '255' of 1000"):
        one(grey([0]), (), class_count=1000)


def test_zero_is_void_and_classes_count_from_one(one):
    source = one(grey([0, 1, 3, 255]), reduce_zero=True)
    assert labels(source)[0, ::4].tolist() == [VOID, 0, 2, VOID]


def test_values_are_remapped_first(one):
    # black and white, and instances of which one is called 255
    source = one(grey([0, 255]), ("ground", "cell"), remap="255:1")
    assert labels(source)[0, ::8].tolist() == [0, 1]
    source = one(grey([0, 1, 255, 700], np.uint16), ("ground", "cell"), remap="1-65535:1")
    assert labels(source)[0, ::4].tolist() == [0, 1, 1, 1]
    source = one(grey([0, 4, 20, 255]), ("table", "thing"), remap="0:void 1-9:0 10-254:1")
    assert labels(source)[0, ::4].tolist() == [VOID, 0, 1, VOID]


def test_black_and_white_masks_are_not_taken_for_void_unsaid(one, caplog):
    source = one(grey([0, 255]), ("ground", "cell"))
    assert labels(source)[0, ::8].tolist() == labels(source)[0, ::8].tolist() == [0, VOID]
    [message] = caplog.messages  # said once
    assert message.endswith("1.png holds 255, which is void, and no 1; if white is a class, set "
                            "data.remap=255:1")  # fmt: skip
    caplog.clear()
    for values, settings in (([0, 1, 255], {}), ([0, 255], {"remap": "255:void"}), ([0, 1], {})):
        labels(one(grey(values), ("ground", "cell"), **settings))
    labels(one(grey([0, 255])))  # three classes
    assert not caplog.messages


def test_colours_of_a_table(one, tmp_path):
    table = "0 0 0 void\n255 255 255 void\n\n200 0 0 tall building\n0 0 9 sea\n0 0 8 sea\n"
    (tmp_path / "colours.txt").write_text(table)
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 9], [0, 0, 8]], np.uint8)
    source = one(lambda file: write(file, colours[blocks([0, 1, 2, 3])]), ())
    assert source.info.classes == ("tall building", "sea")
    assert labels(source)[0, ::4].tolist() == [VOID, 0, 1, 1]
    clear = np.concatenate([colours, np.full((4, 1), 9, np.uint8)], 1)
    source = one(lambda file: write(file, clear[blocks([0, 1, 2, 3])]), ())
    assert labels(source)[0, ::4].tolist() == [VOID, 0, 1, 1]
    colours[2] = 0, 1, 9
    source = one(lambda file: write(file, colours[blocks([0, 1, 2, 3])]), ())
    with pytest.raises(DataError, match=r"1.png holds the colour 0 1 9, which is none of colours"):
        source[0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("0 0 road", "line 1 of .*colours.txt is not `red green blue name`: 0 0 road"),
        ("0 0 0 a\n0 0 256 b", "line 2 of"),
        ("0 0 0 a\n0 0 0 b", "gives the colour .* a second class"),
        ("0 0 0 void", "names no class"),
    ],
)
def test_wrong_tables_are_said(one, tmp_path, table, message):
    (tmp_path / "colours.txt").write_text(table)
    with pytest.raises(DataError, match=message):
        one(grey([0]), ())


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (grey([0, 7, 9]), "1.png holds the value 7, which is neither one of the "
         "3 classes nor void; say in data.ignore or data.remap"),
        (grey([0, 300], np.uint16), "1.png holds the value 300"),
        (lambda f: write(f, layouts.picture()), "1.png holds colours; write a line .*colours.txt"),
        (lambda f: write(f, blocks([0], (5, 6)).astype(np.uint8)), r"1.jpg is an array \(5, 6\), "
         "but the image has 12 x 16 pixels"),
        (lambda f: write(f.with_suffix(".jpg"), layouts.picture()).rename(f),
         "cannot decode .*1.png"),
        (lambda f: f.write_bytes(grey([0])(f).read_bytes()[:60]), "cannot decode .*1.png"),
    ],
    ids=("outside", "outside 16", "colours", "size", "JPEG", "cut"),
)  # fmt: skip
def test_wrong_masks_are_named(one, save, message):
    source = one(save)
    with pytest.raises(DataError, match=message) as raised:
        labels(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"classes": ()},
            "nothing says which classes .*classes.txt, one a line, or set data.class",
        ),
        ({"class_count": 4}, "class_count is 4, but .* names 3 classes"),
        ({"class_count": -1}, "class_count is -1"),
        ({"ignore": (2,)}, "ignore holds 2, which is the class 'c' of 3; leave one of them out"),
        ({"ignore": ("255",)}, "ignore holds '255', not a number"),
        ({"ignore": (70000,)}, "ignore holds 70000"),
        ({"remap": "1:3"}, "'1:3', but there are 3 classes, from 0"),
        ({"remap": "1-a:0"}, "cannot read '1-a:0' in data.remap"),
        ({"remap": "9-1:0"}, "cannot read '9-1:0'"),
        ({"remap": "0-99999:0"}, "cannot read '0-99999:0'"),
        ({"path": "nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_wrong_settings_are_said(one, settings, message):
    with pytest.raises(DataError, match=message):
        one(grey([0]), **settings) if "path" not in settings else masks.source("train", **settings)


def test_an_encoding_that_ignores_a_remapped_value():
    table = Encoding(ABC, ignore=(1, 255), remap="1:2").table()
    assert table[:4].tolist() == [0, 2, 2, -2] and table[255] == VOID
    assert Reader(Encoding(ABC))._table[255] == VOID


def test_camvid(shared_data):
    root = shared_data / "camvid"
    if not root.is_dir():
        pytest.skip("DYNADAPT_DATA has no camvid")
    settings = dict(images="{split}", masks="{split}annot", ignore=(11,), class_count=11)
    counts = {"train": 160, "val": 60, "test": 60}
    for split, count in counts.items():
        source = masks.source(split, str(root), **settings)
        assert len(source) == count
        found = labels(source)
        assert found.shape == (360, 480) and VOID <= found.min() and 3 <= found.max() < 11


def test_nuclei(shared_data):
    root = shared_data / "nuclei"
    if not root.is_dir():
        pytest.skip("DYNADAPT_DATA has no nuclei")
    source = masks.source(
        *("test", str(root), "{split}/images", "{split}/instances"),
        remap="1-65535:1",
        class_count=2,
    )
    assert len(source) == 56
    for i in range(8):
        assert np.unique(labels(source, i)).tolist() == [0, 1]


def test_osd(shared_data):
    root = shared_data / "osd-rgbd"
    if not root.is_dir():
        pytest.skip("DYNADAPT_DATA has no osd-rgbd")
    source = masks.source(
        *("learn", str(root), "{split}/*_rgb.jpg", "{split}/*_label.png"),
        remap="0:void 1-9:0 10-255:1",
        class_count=2,
    )
    assert len(source) == 45 and np.unique(labels(source)).tolist() == [VOID, 0, 1]
