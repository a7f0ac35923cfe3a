from pathlib import Path

import pytest

from dynadapt.data import lists, read_classes
from dynadapt.errors import DataError


@pytest.fixture
def write(tmp_path):
    def run(text, name="train.txt", encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    ("line", "path", "labels"),
    [
        ("a/1.png cat", "a/1.png", ["cat"]),
        ("a b/1.png   7", "a b/1.png", ["7"]),
        ("a/1.png golden retriever", "a/1.png", ["golden retriever"]),
        ("a b.JPG golden retriever", "a b.JPG", ["golden retriever"]),
        ("x.png y.png cat", "x.png y.png", ["cat"]),
        ("a/00017 great golden retriever", "a/00017", ["great golden retriever"]),
        ("a/00017 retriever", "a/00017", ["retriever"]),
        ("a/00017 of mine cat", "a/00017 of mine", ["cat"]),
        ("a/1.png\tgolden retriever", "a/1.png", ["golden retriever"]),
        ("a/00017\t\tgolden retriever", "a/00017", ["golden retriever"]),
        ("a/1.png,golden retriever", "a/1.png", ["golden retriever"]),
        ("a/1.png, cat", "a/1.png", ["cat"]),
        ('"a, b.png","cat"', "a, b.png", ["cat"]),
        ("a/1.png cat,black", "a/1.png", ["cat", "black"]),
        ("a/1.png\tcat, golden retriever", "a/1.png", ["cat", "golden retriever"]),
        ('a/1.png,"cat,black"', "a/1.png", ["cat", "black"]),
        ("a/1.png 0,3,7", "a/1.png", ["0", "3", "7"]),
        ("a/1.png Washington, D.C.", "a/1.png", ["Washington, D.C."]),
        ("a/1.png cafe\u0301", "a/1.png", ["caf\u00e9"]),
    ],
)
def test_lines(write, line, path, labels):
    known = ("great golden retriever", "golden retriever", "retriever", "Washington, D.C.")
    assert lists.parse(write(f"\n{line}\n\n"), known) == [(2, path, tuple(labels))]


@pytest.mark.parametrize(
    "heading", ["path,label", "File,Class", '"image","label"', "filename,tags"]
)
def test_headings_of_csv(write, heading):
    file = write(f"{heading}\r\n17,cat\r\nb/1.png,dog\r\n")
    assert lists.parse(file) == [(2, "17", ("cat",)), (3, "b/1.png", ("dog",))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(write, encoding):
    file = write("a.png Käse\nb.png Öl\n", encoding=encoding)
    assert lists.parse(file) == [(1, "a.png", ("Käse",)), (2, "b.png", ("Öl",))]
    write("Käse\nÖl\n", "classes.txt", encoding)
    assert read_classes(file.parent) == ("Käse", "Öl")


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("a.png x\nb.png Öl\n", "latin-1", "line 2 of .*train.txt is not UTF-8; save the file as"),
        ("a.png x\n", "utf-16-le", "train.txt is no text in UTF-8"),
        ("path,label\n", "utf-8", "lists no images"),
        ("a.png,cat,7\n", "utf-8", "line 1 of .* has 3 columns; write path and label"),
        ("a.png\tcat\t7\n", "utf-8", "line 1 of .* has 3 columns"),
        ("a.png x\na.png,\n", "utf-8", "line 2 of .* is not `relative/path label`: a.png,"),
        ("a.png cat,,dog\n", "utf-8", "line 1 of .* has an empty label between commas"),
        ("a.png 0 0 1\n", "utf-8", "line 1 of .* several labels; put commas between: 0,0,1"),
        ("a.png," + "x" * 200000, "utf-8", "line 1 of .* is not `relative/path label`"),
    ],
)
def test_what_cannot_be_read_is_said_by_its_line(write, text, encoding, message):
    with pytest.raises(DataError, match=message):
        lists.parse(write(text, encoding=encoding))


def test_classes_in_another_encoding(write):
    file = write("Öl\n", "classes.txt", "latin-1")
    with pytest.raises(DataError, match="line 1 of .*classes.txt is not UTF-8"):
        read_classes(file.parent)


def table(*labels):
    return [(n, f"{n}.png", tuple(found)) for n, found in enumerate(labels, 1)]


def test_classes_that_nothing_names():
    train, test, other = Path("train.txt"), Path("test.txt"), Path("notes_test.txt")
    named = {train: table(["owl"], ["cat", "3"])}
    assert lists.name_classes(named, {test: table(["dog"])}) == ("3", "cat", "dog", "owl")
    assert lists.name_classes(named, {test: table(["9"])}) == ("3", "cat", "owl")
    numbers = {train: table(["0"], ["2"])}
    assert lists.name_classes(numbers, {test: table(["1"], ["1"])}) == ("0", "1", "2")
    far = {test: table(["1"], ["1000000"]), other: table(["good"])}
    assert lists.name_classes(numbers, far) == ("0", "1", "2")
    with pytest.raises(DataError, match="line 2 of train.txt has label 2, which would make 3"):
        lists.name_classes(numbers, {})


def test_numbers_of_any_length_end_in_a_sentence(tmp_path):
    for label in ("9" * 5000, "--5", "-", "²"):
        with pytest.raises(DataError, match="line 1 of .* has the unknown class"):
            lists.numbered(tmp_path, table([label]), ("a", "b"))
    assert lists.numbered(tmp_path, table(["007"]), [*map(str, range(9))]) == [("1.png", (7,))]
    assert lists.numbered(tmp_path, table(["1", "b"]), ("a", "b")) == [("1.png", (1,))]


def test_lists_of_other_endings(write, tmp_path):
    for name in ("train.csv", "lists.tsv", "val.txt"):
        write("1.png 0", name)
    assert lists.find(tmp_path, "train") is None  # it may be any table
    assert lists.find(tmp_path, "train", "{split}.csv") == tmp_path / "train.csv"
    assert lists.find(tmp_path, "train", "lists") == tmp_path / "lists.tsv"
    with pytest.raises(DataError, match="no list .*trian.csv; did you mean 'train'"):
        lists.find(tmp_path, "trian", "{split}.csv")
    assert list(lists.beside([tmp_path / "train.csv"])) == [tmp_path / "val.txt"]
