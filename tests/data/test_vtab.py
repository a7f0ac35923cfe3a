"""VTAB-1K as data: splits, labels and counts as the benchmark has them, in both forms."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynadapt.data import SPLITS, Rows, decode, parse, vtab
from dynadapt.errors import DataError, UnknownName

# The table of the benchmark: group, classes, sizes of the builder's splits, train800val200 and test
# in splits of the builder, and the number of test images.
TABLE = {
    "cifar100": (
        *("natural", 100, {"train": 50000, "test": 10000}),
        *("train[:800]+train[45000:45200]", "test", 10000),
    ),
    "caltech101": (
        *("natural", 102, {"train": 3060, "test": 6084}),
        *("train[:800]+train[2754:2954]", "test", 6084),
    ),
    "dtd": (
        *("natural", 47, {"train": 1880, "validation": 1880, "test": 1880}),
        *("train[:800]+validation[:200]", "test", 1880),
    ),
    "oxford_flowers102": (
        *("natural", 102, {"train": 1020, "validation": 1020, "test": 6149}),
        *("train[:800]+validation[:200]", "test", 6149),
    ),
    "oxford_iiit_pet": (
        *("natural", 37, {"train": 3680, "test": 3669}),
        *("train[:800]+train[2944:3144]", "test", 3669),
    ),
    "svhn": (
        *("natural", 10, {"train": 73257, "test": 26032, "extra": 531131}),
        *("train[:800]+train[65931:66131]", "test", 26032),
    ),
    "sun397": (
        *("natural", 397, {"train": 76128, "validation": 10875, "test": 21750}),
        *("train[:800]+validation[:200]", "test", 21750),
    ),
    "patch_camelyon": (
        *("specialized", 2, {"train": 262144, "validation": 32768, "test": 32768}),
        *("train[:800]+validation[:200]", "test", 32768),
    ),
    "eurosat": (
        *("specialized", 10, {"train": 27000}),
        *("train[:800]+train[16200:16400]", "train[21600:]", 5400),
    ),
    "resisc45": (
        *("specialized", 45, {"train": 31500}),
        *("train[:800]+train[18900:19100]", "train[25200:]", 6300),
    ),
    "diabetic_retinopathy": (
        *("specialized", 5, {"train": 35126, "validation": 10906, "test": 42670}),
        *("train[:800]+validation[:200]", "test", 42670),
    ),
    "clevr_count": (
        *("structured", 8, {"train": 70000, "validation": 15000, "test": 15000}),
        *("train[:800]+train[63000:63200]", "validation", 15000),
    ),
    "clevr_dist": (
        *("structured", 6, {"train": 70000, "validation": 15000, "test": 15000}),
        *("train[:800]+train[63000:63200]", "validation", 15000),
    ),
    "dmlab": (
        *("structured", 6, {"train": 65550, "validation": 22628, "test": 22735}),
        *("train[:800]+validation[:200]", "test", 22735),
    ),
    "kitti": (
        *("structured", 4, {"train": 6347, "validation": 423, "test": 711}),
        *("train[:800]+validation[:200]", "test", 711),
    ),
    "dsprites_loc": (
        *("structured", 16, {"train": 737280}),
        *("train[:800]+train[589824:590024]", "train[663552:]", 73728),
    ),
    "dsprites_ori": (
        *("structured", 16, {"train": 737280}),
        *("train[:800]+train[589824:590024]", "train[663552:]", 73728),
    ),
    "smallnorb_azi": (
        *("structured", 18, {"train": 24300, "test": 24300}),
        *("train[:800]+test[:200]", "test[12150:]", 12150),
    ),
    "smallnorb_ele": (
        *("structured", 9, {"train": 24300, "test": 24300}),
        *("train[:800]+test[:200]", "test[12150:]", 12150),
    ),
}


def test_the_tasks_are_the_benchmarks():
    assert {name: (t.group, t.classes, t.test) for name, t in vtab.TASKS.items()} == {
        name: (group, classes, test) for name, (group, classes, *_, test) in TABLE.items()
    }
    groups = [task.group for task in vtab.TASKS.values()]
    assert [groups.count(g) for g in ("natural", "specialized", "structured")] == [7, 4, 8]
    assert len({task.builder for task in vtab.TASKS.values()}) == 16


@pytest.mark.parametrize("task", TABLE)
def test_splits_of_the_real_sizes(task):
    _, _, sizes, train, test, count = TABLE[task]
    splits = vtab.splits(vtab.TASKS[task], sizes)
    assert set(splits) == set(SPLITS)
    assert splits["train800"] + "+" + splits["val200"] == splits["train800val200"] == train
    assert splits["test"] == test
    assert {split: len(Rows(text, sizes)) for split, text in splits.items()} == {
        **{"train800": 800, "val200": 200, "train800val200": 1000},
        "test": count,
    }


@pytest.mark.parametrize(
    ("task", "sizes", "message"),
    [
        ("svhn", {"train": 1990, "test": 9}, r"train\[1791:1991\] runs past the 1990 examples"),
        ("oxford_iiit_pet", {"train": 998, "test": 9}, r"train\[798:998\] of 998, overlaps"),
        ("eurosat", {"train": 1300}, r"val200, which is train\[780:980\] of 1300, overlaps"),
        ("dsprites_loc", {"train": 1900}, r"test, which is train\[1710:\] of 1900, overlaps"),
        ("smallnorb_azi", {"train": 800, "test": 398}, r"test\[199:\] of 398, overlaps"),
        ("dtd", {"train": 800, "validation": 199, "test": 9}, "runs past the 199 examples"),
    ],
)
def test_a_set_that_is_too_small_is_refused(task, sizes, message):
    with pytest.raises(DataError, match=message):
        vtab.splits(vtab.TASKS[task], sizes)


def clevr(*depths):
    return {"objects": {"size": [0] * len(depths), "pixel_coords": [[0, 0, d] for d in depths]}}


def kitti(*objects):
    places = [np.float32([1, 2, depth]) for _, depth in objects]
    return {"objects": {"type": [kind for kind, _ in objects], "location": places}}


@pytest.mark.parametrize(
    ("task", "example", "label"),
    [
        ("clevr_count", clevr(*[9.0] * 3), 0),
        ("clevr_count", clevr(*[9.0] * 10), 7),
        ("clevr_dist", clevr(11.0, 7.9, 12.0), 0),
        # a threshold itself belongs to the interval below it
        *(("clevr_dist", clevr(11.0, d, 12.0), n) for n, d in enumerate([8.0, 8.5, 9, 9.5, 10.0])),
        ("clevr_dist", clevr(10.1, 12.0), 5),
        ("kitti", kitti((0, 8.0)), 0),
        ("kitti", kitti((1, 8.1), (0, 30.0)), 1),
        ("kitti", kitti((2, 20.5)), 2),
        ("kitti", kitti((0, -5.0)), 0),
        ("kitti", kitti((3, 2.0), (4, 3.0), (7, 1.0)), 3),  # none of these is a vehicle
        ("kitti", kitti(), 3),
        *(("dsprites_loc", {"label_x_position": x}, x // 2) for x in (0, 1, 2, 30, 31)),
        *(
            ("dsprites_ori", {"label_orientation": o}, n)
            for o, n in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 2), (8, 3), (39, 15))
        ),
        ("smallnorb_azi", {"label_azimuth": 17, "label_elevation": 3}, 17),
        ("smallnorb_ele", {"label_azimuth": 17, "label_elevation": 3}, 3),
        ("svhn", {"label": 4}, 4),
    ],
)
def test_labels(task, example, label):
    assert vtab.TASKS[task].label(example) == label


def test_sprites_are_binned_as_the_benchmark_does():
    for task, feature, values in (
        ("dsprites_loc", "label_x_position", 32),
        ("dsprites_ori", "label_orientation", 40),
    ):
        ours = [vtab.TASKS[task].label({feature: v}) for v in range(values)]
        floored = np.floor(np.arange(values, dtype=np.float32) / np.float32(values / 16))
        np.testing.assert_array_equal(ours, floored)


def nearest(fabricate, source, task, i):
    """The label whose blocks an image resembles most."""
    image = decode.decode(source[i]["image"]).astype(float)
    rows, columns = (
        ((np.arange(fabricate.CELLS) + 0.5) * size / fabricate.CELLS).astype(int)
        for size in image.shape[:2]
    )
    seen, shown = image[rows][:, columns], fabricate.colours()[: vtab.TASKS[task].classes]
    if task.startswith("smallnorb"):
        shown = shown.mean(-1, keepdims=True)
    half = fabricate.CELLS // 2
    if task in ("clevr_count", "smallnorb_azi"):
        seen, shown = seen[:half], shown[:, :half]
    if task in ("clevr_dist", "smallnorb_ele"):
        seen, shown = seen[half:], shown[:, half:]
    if task.startswith("dsprites"):
        part = seen[:half] if task == "dsprites_loc" else seen[half:]
        return int(part.mean() / 255 * 16)
    return int(np.abs(seen - shown).mean((1, 2, 3)).argmin())


@pytest.mark.slow
@pytest.mark.parametrize("task", vtab.TASKS)
def test_reads_what_tfds_wrote(task, vtab_tfds, fabricate):
    sources = {split: vtab.source(split, task, path=str(vtab_tfds)) for split in SPLITS}
    train, val, both, test = (sources[split] for split in SPLITS)
    sizes = fabricate.SIZES[fabricate.stem(task)]
    expected = vtab.splits(vtab.TASKS[task], sizes)
    assert (len(train), len(val), len(both)) == (800, 200, 1000)
    assert len(test) == len(Rows(expected["test"], sizes))
    assert len(train.info.classes) == len(set(train.info.classes)) == vtab.TASKS[task].classes
    assert {s: len(source) for s, source in sources.items()} == dict(both.info.counts)
    assert {source.info.fingerprint for source in sources.values()} == {both.info.fingerprint}
    # rows 0 to 799 are train800, in order, and no image is in two splits
    names = {s: [f"{n}[{i}]" for n, i in Rows(expected[s], sizes)] for s in SPLITS}
    for i in (0, 1, 799, 800, 999):
        part, at = (train, i) if i < 800 else (val, i - 800)
        assert both[i]["name"] == part[at]["name"] == names["train800val200"][i]
        assert both[i]["label"] == part[at]["label"]
    assert test[0]["name"] == names["test"][0]
    assert not set(names["test"]) & set(names["train800val200"])
    assert len(set(names["train800val200"])) == 1000
    # images belong to their labels
    rows = [(source, i) for source in (both, test) for i in range(0, len(source), 23)]
    right = [nearest(fabricate, source, task, i) == source[i]["label"] for source, i in rows]
    # noise of a sprite's 32 blocks can move it into a neighbouring class
    assert np.mean(right) > (0.5 if task.startswith("dsprites") else 0.97)
    assert type(both[0]["label"]) is int


@pytest.mark.parametrize("task", vtab.TASKS)
def test_reads_the_shared_folder(task, vtab_folder, fabricate):
    folder = str(vtab_folder)
    sources = {s: vtab.source(s, task, form="folder", path=folder) for s in SPLITS}
    train, val, both, test = (sources[split] for split in SPLITS)
    assert [len(s) for s in (train, val, both, test)] == [800, 200, 1000, fabricate.TEST]
    labels = [both[i]["label"] for i in range(1000)]
    root = vtab_folder / "vtab-1k" / (vtab.TASKS[task].folder or task)
    listed = [
        int(line.split()[-1])
        for split in ("train800", "val200")
        for line in (root / f"{split}.txt").read_text().splitlines()
    ]
    assert labels == listed
    assert both[799]["image"] == train[799]["image"] and both[800]["image"] == val[0]["image"]
    assert len(both.info.classes) == vtab.TASKS[task].classes
    inside = vtab.source("test", task, form="folder", path=f"{folder}/vtab-1k")
    assert inside[3]["name"] == test[3]["name"]


def test_folders_are_called_as_the_community_calls_them():
    names = "cifar caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397 patch_camelyon "
    names += "eurosat resisc45 diabetic_retinopathy clevr_count clevr_dist dmlab kitti "
    names += "dsprites_loc dsprites_ori smallnorb_azi smallnorb_ele"
    assert [task.folder or task.name for task in vtab.TASKS.values()] == names.split()


def test_pictures_of_sprites_and_norb(vtab_tfds):
    sprites = vtab.source("val200", "dsprites_loc", path=str(vtab_tfds))
    seen = np.unique(np.stack([decode.decode(sprites[i]["image"]) for i in range(20)]))
    np.testing.assert_array_equal(seen, [0, 255])  # stored as 0 and 1
    norb = vtab.source("val200", "smallnorb_azi", path=str(vtab_tfds))
    image = decode.decode(norb[0]["image"])
    assert image.shape == (96, 96, 3) and image.max() > 60  # the first of the two cameras


@pytest.mark.parametrize("form", vtab.FORMS)
def test_training_sources_open_nothing_of_the_test_split(form, vtab_tfds, vtab_folder, tmp_path):
    whole = {"tfds": vtab_tfds, "folder": vtab_folder}[form]
    task, part = ("dtd", "dtd") if form == "tfds" else ("dtd", "vtab-1k/dtd")
    shutil.copytree(whole / part, tmp_path / part)
    for file in (*tmp_path.rglob("*-test.array_record*"), *tmp_path.rglob("test.txt")):
        file.unlink()
    for split, count in (("train800", 800), ("val200", 200), ("train800val200", 1000)):
        source = vtab.source(split, task, form, str(tmp_path))
        assert len(source) == count and len([source[i] for i in range(0, count, 50)])
    with pytest.raises((DataError, OSError, ValueError)):
        vtab.source("test", task, form, str(tmp_path))[0]


def test_training_sources_read_no_test_list(vtab_folder, monkeypatch):
    real = Path.open

    def guarded(path, *args, **kwargs):
        assert "test" not in (path.stem, path.parent.name), f"{path} was opened"
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    source = vtab.source("train800val200", "kitti", "folder", str(vtab_folder))
    assert len([source[i] for i in range(0, 1000, 50)]) == 20
    with pytest.raises(AssertionError, match="test.txt was opened"):
        vtab.source("test", "kitti", "folder", str(vtab_folder))


@pytest.mark.slow
def test_reading_never_imports_tensorflow(vtab_tfds):
    program = f"""
import sys
from dynadapt.data import loader, vtab
for task in ("clevr_dist", "dsprites_ori", "diabetic_retinopathy"):
    source = vtab.source("train800", task, path={str(vtab_tfds)!r})
    batch = next(loader.train_batches(source, "resize(8)", batch_size=4, seed=0))
    assert batch["image"].shape == (4, 8, 8, 3)
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


@pytest.mark.slow
def test_labels_out_of_range_are_named(fabricate, vtab_folder, tmp_path, monkeypatch):
    # clevr's pictures here have up to 11 objects, one more than the task has classes for
    real = fabricate._clevr
    monkeypatch.setattr(fabricate, "_clevr", lambda *a: real(*a[:-2], 8, a[-1]))
    fabricate.tfds(tmp_path, ["clevr_count"])
    source = vtab.source("train800", "clevr_count", path=str(tmp_path))
    message = r"train\[5\] of clevr/3.1.0 has label 8, out of the range 0 to 7"
    with pytest.raises(DataError, match=message):
        source[5]
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    lines = (tmp_path / "svhn" / "val200.txt").read_text().splitlines()
    lines[6] = lines[6].split()[0] + " 10"
    (tmp_path / "svhn" / "val200.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 7 of .*val200.txt has label 10, out of the range 0"):
        vtab.source("train800val200", "svhn", form="folder", path=str(tmp_path))


def rewrite(file, change):
    lines = file.read_text().splitlines()
    file.write_text("\n".join(change(lines)) + "\n")


def test_a_wrong_count_is_refused(vtab_folder, tmp_path):
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    rewrite(tmp_path / "svhn" / "val200.txt", lambda lines: lines[:199])
    for split in ("val200", "train800val200"):
        with pytest.raises(DataError, match="val200.txt has 199 images where VTAB-1K has 200; dow"):
            vtab.source(split, "svhn", form="folder", path=str(tmp_path))
    assert len(vtab.source("train800", "svhn", form="folder", path=str(tmp_path))) == 800
    rewrite(tmp_path / "svhn" / "train800.txt", lambda lines: lines + lines[:1])
    with pytest.raises(DataError, match="train800.txt has 801 images where VTAB-1K has 800"):
        vtab.source("train800", "svhn", form="folder", path=str(tmp_path))


def test_lists_of_other_labels_are_refused(vtab_folder, tmp_path):
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    rewrite(tmp_path / "svhn" / "val200.txt", lambda lines: ["images/val200/000000.jpg 3,4"])
    with pytest.raises(
        DataError, match="line 1 of .*val200.txt has 2 labels where VTAB-1K has one"
    ):
        vtab.source("val200", "svhn", form="folder", path=str(tmp_path))


def test_faults_of_a_folder(vtab_folder, tmp_path):
    shutil.copytree(vtab_folder / "vtab-1k" / "svhn", tmp_path / "svhn")
    root, task = tmp_path / "svhn", vtab.TASKS["svhn"]
    whole = {file.name: file.read_text() for file in root.glob("*.txt")}

    def faults(**changes):
        for name, text in whole.items():
            (root / name).write_text(text)
        for name, change in changes.items():
            rewrite(root / f"{name}.txt", change)
        return [fault.removeprefix(f"{root}/") for fault in vtab.faults(task, str(tmp_path))]

    train, both = (whole[f"{name}.txt"].splitlines() for name in ("train800", "train800val200"))
    together = "train800val200.txt is not train800.txt and val200.txt together: "
    assert faults() == []
    assert faults(train800val200=lambda lines: lines[::-1]) == []  # their order is not told
    assert faults(train800val200=lambda lines: lines[:-1]) == [
        "train800val200.txt has 999 images where VTAB-1K has 1,000",
        together + "0 of its images are not theirs and 1 of theirs are missing",
    ]
    label = str((int(both[0].split()[1]) + 1) % 10)
    assert faults(train800val200=lambda lines: [lines[0][:-1] + label, *lines[1:]]) == [
        together + "1 of its images are not theirs and 1 of theirs are missing"
    ]
    assert faults(test=lambda lines: lines + train[:2]) == [
        "test.txt has 2 images of train800.txt and val200.txt"
    ]
    assert faults(test=lambda lines: lines + both[-1:]) == [  # by its bytes
        "test.txt has 1 images of train800.txt and val200.txt"
    ]
    assert "val200.txt has 3 images of train800.txt" in faults(
        val200=lambda lines: train[:3] + lines[3:]
    )
    (root / "train800.txt").unlink()
    whole.pop("train800.txt")
    [missing] = faults()
    assert missing.startswith("there is no list") and "train800.txt" in missing
    [missing] = vtab.faults(vtab.TASKS["dtd"], str(tmp_path))
    assert "no folder dtd of VTAB-1K" in missing


@pytest.mark.slow
def test_an_example_without_objects_is_named(fabricate, tmp_path, monkeypatch):
    monkeypatch.setattr(fabricate, "_clevr", lambda *a: [])
    fabricate.tfds(tmp_path, ["clevr_dist"])
    source = vtab.source("val200", "clevr_dist", path=str(tmp_path))
    with pytest.raises(DataError, match=r"cannot read train\[1800\] of clevr/3.1.0"):
        source[0]


def test_wrong_names(tmp_path):
    with pytest.raises(UnknownName, match="unknown task 'oxford_pets'; did you mean 'oxford_iiit"):
        vtab.source("test", "oxford_pets", path=str(tmp_path))
    with pytest.raises(UnknownName, match="unknown form of vtab 'tdfs'; did you mean 'tfds'"):
        vtab.source("test", "kitti", form="tdfs")
    with pytest.raises(DataError, match="no split 'train'; did you mean 'train800'"):
        vtab.source("train", "kitti", path=str(tmp_path))


def test_a_set_that_is_not_there_says_what_to_do(tmp_path, vtab_folder):
    where = str(tmp_path)
    with pytest.raises(DataError) as caught:
        vtab.source("test", "clevr_dist", path=where)
    assert f"clevr/3.1.0 is not in {where}" in str(caught.value)
    assert f"dynadapt data prepare vtab --tasks=clevr_dist --path={where}" in str(caught.value)
    with pytest.raises(DataError, match="unpacked NWPU-RESISC45 .* into downloads/manual and bui"):
        vtab.source("test", "resisc45", path=where)
    for path in ("", where, f"{where}/nowhere"):
        with pytest.raises(DataError, match="no folder cifar of VTAB-1K in .*NOAH"):
            vtab.source("test", "cifar100", form="folder", path=path)
    shutil.copytree(vtab_folder / "vtab-1k" / "dtd", tmp_path / "dtd")
    (tmp_path / "dtd" / "val200.txt").unlink()
    with pytest.raises(DataError, match="there is no list .*dtd/val200.txt"):
        vtab.source("train800val200", "dtd", form="folder", path=where)


def test_sets_differ_in_their_fingerprint(fabricate, vtab_tfds, vtab_folder, tmp_path):
    sizes = {"dtd": {"train": 801, "validation": 200, "test": 60}}
    fabricate.tfds(tmp_path, ["dtd"], sizes=sizes)
    found = {
        vtab.source("train800", "dtd", path=str(vtab_tfds)).info.fingerprint,
        vtab.source("train800", "dtd", path=str(tmp_path)).info.fingerprint,
        vtab.source("train800", "dtd", "folder", str(vtab_folder)).info.fingerprint,
        vtab.source("train800", "clevr_count", path=str(vtab_tfds)).info.fingerprint,
        vtab.source("train800", "clevr_dist", path=str(vtab_tfds)).info.fingerprint,
    }
    assert len(found) == 5 and all(len(f) == 64 for f in found)


def test_parts_are_slices_that_data_can_read():
    for task in vtab.TASKS.values():
        for text in vtab.splits(task, TABLE[task.name][2]).values():
            assert parse(text)
