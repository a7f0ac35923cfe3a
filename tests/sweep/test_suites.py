"""What `dynadapt data` answers: a row for each task, and how to obtain what isn't there."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from dynadapt.data import vtab
from dynadapt.errors import ConfigError, MachineError, UnknownName
from dynadapt.sweep import suites


@pytest.mark.slow
def test_status_of_tfds(vtab_tfds, capsys):
    rows = suites.status("vtab", path=str(vtab_tfds))
    assert [row["task"] for row in rows] == list(vtab.TASKS)
    assert all(row["present"] and not row["problem"] for row in rows)
    assert all(sum(row["labels"]) == 1000 for row in rows)
    assert [len(row["labels"]) for row in rows] == [task.classes for task in vtab.TASKS.values()]
    assert len({row["sha256"] for row in rows}) == 19
    row = next(row for row in rows if row["task"] == "eurosat")
    assert row["counts"] == {"train800": 800, "val200": 200, "test": 268}
    assert (row["set"], row["published"]) == ("eurosat/rgb/2.0.0", 5400)
    assert row["where"] == str(vtab_tfds / "eurosat" / "rgb" / "2.0.0")
    json.dumps(rows)
    suites.show(rows)
    shown = capsys.readouterr().out
    assert "268 of 5,400" in shown and rows[3]["sha256"][:12] in shown


@pytest.mark.slow
def test_status_covers_images_and_labels(vtab_folder, tmp_path):
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")

    def status():
        return suites.status("vtab", "folder", str(tmp_path), ["svhn"])[0]

    first = status()
    source = vtab.source("train800val200", "svhn", "folder", str(tmp_path))
    digest, labels = hashlib.sha256(), [0] * 10
    for i in range(1000):
        label, image = source[i]["label"], source[i]["image"]
        digest.update(b"%d %d " % (label, len(image)) + image)
        labels[label] += 1
    assert (first["sha256"], first["labels"]) == (digest.hexdigest(), labels)
    image = tmp_path / "svhn" / "images" / "val200" / "000007.jpg"
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.unlink()  # it is linked to another
    image.write_bytes(data)
    assert status()["sha256"] != first["sha256"]
    lines = (tmp_path / "svhn" / "train800.txt").read_text().splitlines()
    lines[0] = lines[0].split()[0] + " " + str((int(lines[0].split()[1]) + 1) % 10)
    image.write_bytes((vtab_folder / "vtab-1k/svhn/images/val200/000007.jpg").read_bytes())
    assert status()["sha256"] == first["sha256"]
    (tmp_path / "svhn" / "train800.txt").write_text("\n".join(lines))
    assert status()["sha256"] != first["sha256"]


def test_sets_that_are_not_there_are_told_once(tmp_path):
    """In a process of its own, where TFDS's warnings go to standard error."""
    call = [sys.executable, "-m", "dynadapt", "data", "status", "vtab", f"--path={tmp_path}"]
    done = subprocess.run([*call, "--tasks=dtd,svhn"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("build it once with") == 2


def test_status_of_what_is_missing_or_wrong(vtab_folder, tmp_path, capsys):
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    with (tmp_path / "svhn" / "val200.txt").open("a") as file:
        file.write("images/val200/000000.jpg 10\n")
    wrong, missing = suites.status("vtab", "folder", str(tmp_path), ["svhn", "kitti"])
    assert not wrong["present"] and "line 201 of" in wrong["problem"]
    assert not missing["present"] and "no folder kitti of VTAB-1K" in missing["problem"]
    assert "NOAH" in missing["obtain"] and missing["counts"] == {}
    suites.show([wrong, missing])
    shown = capsys.readouterr().out
    assert f"kitti: {missing['problem']}" in shown.replace("\n", " ").replace("  ", " ")
    [row] = suites.status("vtab", path=str(tmp_path), names=["resisc45"])
    assert "--tasks=resisc45" in row["obtain"] and "NWPU-RESISC45" in row["obtain"]


def test_a_path_that_is_no_folder(tmp_path, capsys):
    with pytest.raises(ConfigError, match="there is no folder .*nowhere"):
        suites.status("vtab", path=str(tmp_path / "nowhere"))


def test_status_checks_the_shared_folder(vtab_folder, tmp_path, capsys):
    assert suites.status("vtab", "folder", str(vtab_folder), ["svhn"])[0]["problem"] == ""
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    train = (tmp_path / "svhn" / "train800.txt").read_text().splitlines()
    with (tmp_path / "svhn" / "test.txt").open("a") as file:
        file.write(train[0] + "\n")
    [row] = suites.status("vtab", "folder", str(tmp_path), ["svhn"])
    assert row["present"] and "test.txt has 1 images of train800.txt" in row["problem"]
    (tmp_path / "svhn" / "train800.txt").write_text("\n".join(train[:700]) + "\n")
    [row] = suites.status("vtab", "folder", str(tmp_path), ["svhn"])
    assert not row["present"] and "train800.txt has 700 images where" in row["problem"]
    assert "is not train800.txt and val200.txt together" in row["problem"]
    assert "test.txt has 1 images of train800.txt" in row["problem"]
    suites.show([row])
    assert "svhn: " in capsys.readouterr().out


@pytest.mark.slow
def test_status_of_the_offline_suite(tmp_path, capsys):
    rows = suites.status("offline", path=str(tmp_path), names=["digits", "azimuth", "bccd"])
    assert [row["present"] for row in rows] == [True, True, False]
    assert [row["counts"].get("test") for row in rows] == [797, 1000, None]
    assert rows[0]["labels"] == [99, 101, 98, 102, 101, 101, 101, 100, 97, 100]
    assert "BCCD_Dataset" in rows[2]["obtain"] and "BCCD_Dataset" in rows[2]["problem"]
    assert rows[2]["where"] == str(tmp_path)
    suites.show(rows)
    assert "97 to 102 of each" in capsys.readouterr().out


def test_prepare_builds_nothing_that_is_there(vtab_tfds, capsys):
    before = sorted(file.name for file in vtab_tfds.rglob("*"))
    rows = suites.prepare("vtab", path=str(vtab_tfds))
    assert len(rows) == 16 and all(row["ready"] for row in rows)
    assert next(r for r in rows if r["set"] == "clevr/3.1.0")["tasks"] == [
        "clevr_count",
        "clevr_dist",
    ]
    assert before == sorted(file.name for file in vtab_tfds.rglob("*"))
    suites.show(rows)
    assert "smallnorb_azi smallnorb_ele" in capsys.readouterr().out


@pytest.mark.parametrize("task", vtab.MANUAL)
def test_prepare_says_what_must_be_downloaded_by_hand(task, tmp_path, capsys):
    [row] = suites.prepare("vtab", [task], str(tmp_path))
    assert not row["ready"]
    assert "needs files that you download" in row["problem"]
    assert "downloads/manual" in row["problem"]
    assert list(tmp_path.iterdir()) == []
    suites.show([row])
    assert row["problem"] in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")


def test_the_manual_sets_are_those_that_tfds_calls_so(tmp_path):
    from dynadapt.data import tfds

    manual = {
        task.name
        for task in vtab.TASKS.values()
        if tfds.make(task.builder, str(tmp_path)).MANUAL_DOWNLOAD_INSTRUCTIONS
    }
    assert manual == set(vtab.MANUAL)


def test_prepare_needs_tensorflow(tmp_path, monkeypatch):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda n, *a: None if n == "tensorflow" else real(n, *a))
    with pytest.raises(
        MachineError, match=r"building dtd/3.0.1 needs TensorFlow.*dynadapt\[data\]"
    ):
        suites.prepare("vtab", ["dtd"], str(tmp_path))
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / "NWPU-RESISC45").mkdir()
    with pytest.raises(MachineError, match="building resisc45/3.0.0 needs TensorFlow"):
        suites.prepare("vtab", ["resisc45"], str(tmp_path))


def test_prepare_of_the_offline_suite_builds_nothing(tmp_path):
    rows = suites.prepare("offline", ["digits", "count", "nuclei"], str(tmp_path))
    assert [row["ready"] for row in rows] == [True, True, False]
    assert "Data Science Bowl" in rows[2]["problem"]


def test_wrong_names():
    with pytest.raises(UnknownName, match="unknown suite 'vtap'; did you mean 'vtab'"):
        suites.status("vtap")
    with pytest.raises(UnknownName, match="unknown task 'kity'; did you mean 'kitti'"):
        suites.prepare("vtab", ["kity"])
    with pytest.raises(UnknownName, match="unknown form of vtab 'folders'; did you mean 'folder'"):
        suites.status("vtab", "folders", names=["kitti"])
    assert suites.find("offline").read("val200", "digits", "offline", "").info.name == "digits"


@pytest.mark.slow
def test_what_is_here_and_in_which_form(vtab_folder, tmp_path):
    assert suites.here("vtab", "folder", str(vtab_folder)) == list(vtab.TASKS)
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    assert suites.here("vtab", "folder", str(tmp_path)) == ["svhn"]
    drawn = ["digits", "count", "distance", "orientation", "azimuth"]
    assert suites.here("offline", path=str(tmp_path)) == drawn
    assert [suites.form_of("vtab"), suites.form_of("offline")] == ["tfds", "offline"]
    with pytest.raises(UnknownName, match="'folder'"):
        suites.form_of("vtab", "foldr")
    with pytest.raises(UnknownName, match="one of offline"):
        suites.form_of("offline", "folder")
