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
    Path(root, "test.txt").write_text("images/1.png 4\n")
    Path(root, "readme.txt").write_text("not a list at all 9\n")
    source = folder.source("train", path=root)
    assert source.info.classes == ("0", "1", "2", "3", "4")  # test.txt has the largest
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
        ("1.png -1\n1.png 2", "", r"line 1 .* has label -1, out of the range 0 to 2"),
        ("1.png owls", "owl\ncat\n", "unknown class 'owls'; did you mean 'owl'"),
        (
            "1.png 0\n9.png 1\n8.png 1",
            "",
            r"names 2 files that are not under .*, the first .* 9.png",
        ),
        ("1.png", "", r"line 1 of .* is not `relative/path label`: 1.png"),
        ("\n", "", "lists no images"),
        ("1.png a", "a\na\n", "one class name a line"),
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
