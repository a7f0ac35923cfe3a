"""Folders are listed without leftovers, links in circles and endless nesting."""

import pytest

from dynadapt.data import listing
from dynadapt.errors import DataError


def test_leftovers_and_hidden_files_are_passed_over(tmp_path):
    for name in ("a/1.PNG", "a/b/2.jpg", "a/.x.png", "__MACOSX/3.png", ".git/4.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert listing.list_folder(tmp_path) == (["a"], [], ["notes.txt"])
    found = dict(listing.walk(str(tmp_path)))
    assert found == {"notes.txt": False, "a/1.PNG": True, "a/b/2.jpg": True}


def test_links_back_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert [file for file, _ in listing.walk(str(tmp_path))] == ["a/1.png"]


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="cannot read the folder .*nowhere"):
        list(listing.walk(str(tmp_path / "nowhere")))
    monkeypatch.setattr(listing, "MAX_DEPTH", 2)
    (tmp_path / "a/b/c").mkdir(parents=True)
    with pytest.raises(DataError, match="nested deeper than 2 folders"):
        list(listing.walk(str(tmp_path)))


def test_the_order_is_one_of_hashes():
    names = [f"{c}/{i}.png" for c in "ab" for i in range(20)]
    mixed = sorted(names, key=listing.order)
    assert {name[0] for name in mixed[:8]} == {"a", "b"}
    assert listing.order("é") == listing.order("é")
