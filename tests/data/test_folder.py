import os
from pathlib import Path

import numpy as np
import pytest

from dynadapt.data import folder, transforms
from dynadapt.errors import DataError

REAL = Path(os.environ.get("DYNADAPT_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def write(tmp_path, encode):
    def run(*names):
        for value, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.full((4, 4, 3), value)))
        return str(tmp_path)

    return run


def relative(source, root):
    return [
        Path(x["name"]).relative_to(root).as_posix()
        for x in map(source.__getitem__, range(len(source)))
    ]


def labels(source):
    return [source[i]["label"] for i in range(len(source))]


def test_a_folder_for_each_class_and_split(write):
    names = [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in ("b", "a") for i in range(5)]
    root = write(*names, "train/a/notes.txt", "train/a/.hidden.png", "train/c/1.JPG")
    source = folder.source("train", path=root)
    assert source.info.classes == ("a", "b", "c")
    assert sorted(relative(source, root)) == sorted(
        [n for n in names if n.startswith("train")] + ["train/c/1.JPG"]
    )
    assert [source.info.classes[x] for x in labels(source)] == [
        n.split("/")[1] for n in relative(source, root)
    ]
    first = source[0]
    assert first["image"] == Path(first["name"]).read_bytes()
    test = folder.source("test", path=root)
    assert test.info.classes == ("a", "b", "c")  # though it has no example of c
    assert test.info.counts == {"test": 10}
    assert len(folder.source("train+test", path=root)) == 21


def test_the_order_is_the_same_each_time_and_mixes_classes(write):
    root = write(*(f"train/{c}/{i}.png" for c in "ab" for i in range(20)))
    a, b = folder.source("train", path=root), folder.source("train", path=root)
    assert relative(a, root) == relative(b, root)
    assert a.info.fingerprint == b.info.fingerprint
    assert set(labels(folder.source("train[:10]", path=root))) == {0, 1}
    parts = [folder.source(s, path=root) for s in ("train[:30]", "train[30:]")]
    assert [n for p in parts for n in relative(p, root)] == relative(a, root)
    os.rename(f"{root}/train/a/3.png", f"{root}/train/a/33.png")
    assert folder.source("train", path=root).info.fingerprint != a.info.fingerprint


def test_without_split_folders_there_is_one_split(write):
    root = write("cat/1.png", "cat/2.png", "dog/1.png")
    source = folder.source("train", path=root)
    assert source.info.classes == ("cat", "dog")
    assert sorted(relative(source, root)) == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert len(folder.source("train[1:]", path=root)) == 2
    with pytest.raises(DataError, match="no split 'test'; use slices of train"):
        folder.source("test", path=root)


def test_lists_keep_their_order_and_agree_on_the_classes(write):
    root = write("images/a b.png", "images/1.png", "images/2.png")
    Path(root, "train.txt").write_text("images/2.png 1\nimages/a b.png 0\n\n")
    Path(root, "test.txt").write_text("images/1.png 2\n")
    Path(root, "readme.txt").write_text("not a list at all 9\n")
    source = folder.source("train", path=root)
    assert source.info.classes == ("0", "1", "2")  # test.txt has the largest
    assert relative(source, root) == ["images/2.png", "images/a b.png"]
    assert labels(source) == [1, 0]
    named = folder.source("train", path=root, list="test")
    assert relative(named, root) == ["images/1.png"]
    Path(root, "lists").mkdir()
    Path(root, "lists", "val.txt").write_text("images/1.png 0\n")
    assert len(folder.source("val", path=root, list="lists/{split}.txt")) == 1


def test_lists_with_class_names(write):
    root = write("1.png", "2.png", "3.png")
    Path(root, "train.txt").write_text("1.png dog\n2.png cat\n")
    assert labels(folder.source("train", path=root)) == [1, 0]
    Path(root, "classes.txt").write_text("dog\nowl\ncat\n")
    source = folder.source("train", path=root)
    assert source.info.classes == ("dog", "owl", "cat")
    assert labels(source) == [0, 2]
    Path(root, "test.txt").write_text("3.png 1\n")
    assert labels(folder.source("test", path=root)) == [1]


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("1.png 3", "a\nb\nc\n", r"line 1 of .*train.txt has label 3, out of the range 0 to 2"),
        ("1.png -1\n1.png 1", "", r"line 1 .* has label -1, out of the range 0 to 1"),
        ("1.png owls", "owl\ncat\n", "unknown class 'owls'; did you mean 'owl'"),
        (
            "1.png 0\n9.png 1\n8.png 1",
            "",
            r"names 2 files that are not under .*, the first .* 9.png",
        ),
        ("1.png", "", r"line 1 of .* is not `relative/path label`: 1.png"),
        ("\n", "", "lists no images"),
        ("1.png a", "a\na\n", "one class name a line"),
        (
            "1.png 0\n1.png 1000000000",
            "",
            r"line 2 of .* label 1000000000, which would make 1,0.*"
            "of 2 images; count classes from 0",
        ),
    ],
)
def test_faulty_lists(write, text, classes, message):
    root = write("1.png")
    Path(root, "train.txt").write_text(text)
    if classes:
        Path(root, "classes.txt").write_text(classes)
    with pytest.raises(DataError, match=message):
        folder.source("train", path=root)


def test_faulty_folders(write, tmp_path):
    with pytest.raises(DataError, match="there is no folder ''"):
        folder.source("train")
    with pytest.raises(DataError, match="there is no folder"):
        folder.source("train", path=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="holds no folders of images"):
        folder.source("train", path=str(tmp_path))
    root = write("train/a/1.png")
    (tmp_path / "test" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="test holds no images"):
        folder.source("test", path=root)
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        folder.source("trian", path=root)
    with pytest.raises(DataError, match="there is no list"):
        folder.source("train", path=root, list="lists/train")
    source = folder.source("train", path=root)
    (tmp_path / "train" / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cannot read the image .*1.png"):
        source[0]


def warnings(caplog):
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return said


def test_given_classes_are_mapped_by_name(write, caplog):
    root = write("train/b/1.png", "train/a/1.png", "test/b/1.png", "test/b/2.png")
    source = folder.source("test", path=root, classes=("c", "b", "a"))
    assert source.info.classes == ("c", "b", "a") and labels(source) == [1, 1]
    assert source.info.fields["label"].classes == ("c", "b", "a")
    assert warnings(caplog) == []  # a subset is no wonder
    with pytest.raises(DataError, match="train/a is none of the 2 classes; choose one of b, c"):
        folder.source("train", path=root, classes=("c", "b"))
    write("train/otter/1.png")
    with pytest.raises(DataError, match="train/otter is none .*; did you mean 'otters'"):
        folder.source("train", path=root, classes=("a", "b", "otters"))
    assert labels(folder.source("test", path=root, classes=("c", "b"))) == [1, 1]


def test_given_classes_and_lists(write):
    root = write("1.png", "2.png")
    Path(root, "test.txt").write_text("1.png dog\n2.png cat\n")
    Path(root, "more.txt").write_text("1.png 0\n2.png 2\n")
    given = ("cat", "owl", "dog")
    assert labels(folder.source("test", path=root, classes=given)) == [2, 0]
    assert labels(folder.source("test", path=root, list="more", classes=given)) == [0, 2]
    Path(root, "classes.txt").write_text("dog\ncat\nowl\n")  # what the numbers of more.txt count
    assert labels(folder.source("test", path=root, list="more", classes=given)) == [2, 1]
    with pytest.raises(DataError, match="line 2 of .*test.txt has the unknown class 'cat'"):
        folder.source("test", path=root, classes=("dog", "bird"))
    # a class that is called by a number is no position
    with pytest.raises(DataError, match="line 1 of .*more.txt has the unknown class '0'"):
        Path(root, "classes.txt").unlink()
        folder.source("test", path=root, list="more", classes=("2", "3"))


def test_classes_without_images_are_said(write, caplog):
    root = write("train/a/1.png", "train/b/1.png", "test/c/1.png", "test/b/1.png")
    folder.source("train", path=root)
    assert warnings(caplog) == []
    folder.source("test", path=root)
    assert warnings(caplog) == ["test has images of 1 classes that train has none of: c"]
    Path(root, "classes.txt").write_text("a\nb\nc\nd\n")
    assert folder.source("train", path=root).info.classes == tuple("abcd")
    assert warnings(caplog) == ["1 of the 4 classes have no image at all: d"]
    Path(root, "train.txt").write_text("train/a/1.png 0\ntrain/b/1.png 3\n")
    Path(root, "test.txt").write_text("test/c/1.png 2\n")
    folder.source("test", path=root)
    assert warnings(caplog) == [
        "test has images of 1 classes that train has none of: c",
        "1 of the 4 classes have no image at all: b",
    ]


LEFTOVERS = ("__MACOSX/a/._1.png", "@eaDir/1.png", "__pycache__/1.png", ".hidden/1.png")


@pytest.mark.parametrize("base", ["", "train/"])
def test_only_folders_of_images_are_classes(write, caplog, base):
    root = write(*(f"{base}{n}" for n in ("a/1.png", "a/deep/er/2.JPE", "b/1.jfif", "stray.png")),
                 *(f"{base}{n}" for n in LEFTOVERS), f"{base}a/@eaDir/1.png", "test/a/1.png"
                 if base else "a/3.png")  # fmt: skip
    top = Path(root, base)
    for name in ("annotations/1.xml", "annotations/more/2.xml", "a/notes.txt"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (top / "empty").mkdir()
    (top / "a" / "folder.png").mkdir()
    (top / "a" / "dead.png").symlink_to("nowhere.png")
    (top / "a" / "deep" / "up").symlink_to(top / "a")
    source = folder.source("train", path=root)
    assert source.info.classes == ("a", "b")
    found = ["a/1.png", "a/deep/er/2.JPE", "b/1.jfif", *([] if base else ["a/3.png"])]
    assert sorted(relative(source, root)) == sorted(base + name for name in found)
    passed, stray = warnings(caplog)
    assert passed == f"passed over 4 files that are no images in {top}, such as a/dead.png"
    assert stray == f"passed over 1 files that lie in no class folder in {top}, such as stray.png"


def test_what_is_a_split_and_what_a_class(write, tmp_path):
    flat = write(*(f"flat/{n}" for n in ("train/1.png", "car/1.png", "car/old/2.png")))
    assert folder.source("train", path=f"{flat}/flat").info.classes == ("car", "train")
    write("deep/cat/2019/1.png", "deep/dog/2020/1.png")
    assert folder.source("train", path=f"{flat}/deep").info.classes == ("cat", "dog")
    write("own/day/cat/1.png", "own/night/dog/1.png")
    assert folder.source("day", path=f"{flat}/own").info.classes == ("cat", "dog")
    write("other/training/a/1.png", "other/testing/a/1.png")
    with pytest.raises(DataError, match="no split 'train'; did you mean 'training'"):
        folder.source("train", path=f"{flat}/other")
    write("bare/train/a/1.png", "bare/test/1.png")
    with pytest.raises(DataError, match="bare/test holds no images in folders of classes"):
        folder.source("test", path=f"{flat}/bare")


def test_names_compare_in_one_normal_form(write):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = write(f"train/{decomposed}/1.png", f"test/{composed}/1.png", "train/tea/1.png")
    write(f"{decomposed}.png")
    for split in ("train", "test"):
        assert folder.source(split, path=root).info.classes == (composed, "tea")
    Path(root, "classes.txt").write_text(f"tea\n{decomposed}\n")
    assert set(labels(folder.source("train", path=root))) == {0, 1}
    Path(root, "test.txt").write_text(f"{composed}.png {composed}\n")
    source = folder.source("test", path=root)
    assert labels(source) == [1] and source[0]["image"]
    assert labels(folder.source("test", path=root, classes=(decomposed,))) == [0]


def test_several_labels_on_a_line(write):
    root = write("1.png", "2.png", "3.png")
    Path(root, "train.txt").write_text("1.png cat,black\n2.png dog\n")
    Path(root, "test.txt").write_text("3.png dog\n")
    train, test = (folder.source(split, path=root) for split in ("train", "test"))
    assert train.info.classes == test.info.classes == ("black", "cat", "dog")
    assert train.info.fields["label"].most == test.info.fields["label"].most == 2
    assert [x.tolist() for x in labels(train)] == [[1, 0], [2]]
    assert labels(test)[0].dtype == np.int32 and labels(test)[0].tolist() == [2]


def test_names_of_files_that_are_no_text(write):
    root = write("train/a/1.png", "train/b/1.png")
    os.rename(f"{root}/train/a/1.png", os.fsencode(f"{root}/train/a/") + b"\xe9.png")
    source = folder.source("train", path=root)
    assert all(source[i]["image"] for i in range(2)) and len(source.info.fingerprint) == 64


def test_pictures_are_marked_to_be_turned(write):
    assert folder.source("train", path=write("a/1.png"))[0]["orient"] is True


def test_real_photographs():
    path = REAL / "clothing10"
    if not path.is_dir():
        pytest.skip(f"{path} is not there; set DYNADAPT_DATA")
    sizes = {s: len(folder.source(s, path=str(path))) for s in ("train", "validation", "test")}
    assert sizes == {"train": 600, "validation": 341, "test": 372}
    source = folder.source("train", path=str(path))
    assert len(source.info.classes) == 10
    counts = np.bincount(labels(source))
    assert all(counts == [len(list((path / "train" / c).iterdir())) for c in source.info.classes])
    out = transforms.pipeline("resize_short(36)|center_crop(32)")(source[5])
    assert out["image"].shape == (32, 32, 3)
    assert out["image"].std() > 1
