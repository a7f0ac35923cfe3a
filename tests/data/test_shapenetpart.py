"""ShapeNetPart's parts belong to their category, and a cloud is the same whenever it is read."""

import numpy as np
import pytest

from dynadapt.data import cloud_files, loader, shapenetpart
from dynadapt.errors import DataError, MissingSplit
from tests.data import cloud_layouts as layouts


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return layouts.shapenetpart(tmp_path_factory.mktemp("shapenetpart"))


def test_categories_share_fifty_parts():
    assert len(shapenetpart.CLASSES) == 16 and len(shapenetpart.PARTS) == 50
    owners = np.array(shapenetpart.OWNERS)
    for name, first, last in (("Airplane", 0, 3), ("Motorbike", 30, 35), ("Table", 47, 49)):
        own = np.flatnonzero(owners == shapenetpart.CLASSES.index(name))
        assert (own[0], own[-1]) == (first, last)


def test_points_and_parts_keep_together(root):
    source = shapenetpart.source("train", str(root), count=64)
    assert len(source) == 3 and source.labels.tolist() == [0, 10, 15]
    assert source.info.classes == shapenetpart.CLASSES
    field = source.info.fields["parts"]
    assert field.kind == "point_labels" and field.size == (64,) and field.owners[30] == 10
    x = source[1]
    assert x["parts"].dtype == np.int32 and set(x["parts"]) <= set(range(30, 36))
    values = layouts.points(0, 90)
    parts = 30 + np.arange(90) % 6
    whole = cloud_files.in_sphere((values + parts[:, None]).astype(np.float64))
    rows = [np.abs(whole - point).sum(1).argmin() for point in x["points"]]
    assert len(set(rows)) == 64 and np.allclose(whole[rows], x["points"], atol=1e-5)
    assert np.array_equal(parts[rows], x["parts"])
    again = shapenetpart.source("val+train", str(root), count=64)[4]
    assert np.array_equal(again["points"], x["points"]) and again["name"] == x["name"]


def test_small_clouds_repeat_points_and_it_is_said_once(root, caplog):
    source = shapenetpart.source("train+val", str(root), count=128)
    clouds = [source[i] for i in range(6)]
    assert all(len(np.unique(x["points"], axis=0)) == 90 for x in clouds)
    [message] = [r.getMessage() for r in caplog.records]
    assert "has 90 points, fewer than 128: some stand twice" in message
    [batch] = loader.eval_batches(source, "", batch_size=6)
    assert batch["points"].shape == (6, 128, 3) and batch["parts"].shape == (6, 128)


def test_lists_as_text(tmp_path):
    root = layouts.shapenetpart(tmp_path, form="txt")
    source = shapenetpart.source("test", str(root), count=16)
    assert len(source) == 3 and source[0]["name"].endswith(".txt")


def test_wrong_files(tmp_path):
    with pytest.raises(DataError, match="no folder ''; unpack shapenetcore_partanno"):
        shapenetpart.source("train")
    with pytest.raises(DataError, match="no file .*synsetoffset2category.txt"):
        shapenetpart.source("train", str(tmp_path))
    root = layouts.shapenetpart(tmp_path)
    with pytest.raises(MissingSplit, match="no split 'trainval'; did you mean 'train'"):
        shapenetpart.source("trainval", str(root))
    source = shapenetpart.source("train", str(root), count=16)
    files = [source[i]["name"] for i in range(3)]
    table = np.loadtxt(files[0])
    for change, message in (
        (lambda t: t[:, :3], "has 3 columns, where 4 are needed"),
        (lambda t: np.where(np.arange(7) == 6, 4, t), "part 4, where those of Airplane are 0 to 3"),
        (lambda t: np.where(np.arange(7) == 6, 0.5, t), "part 0.5, where those of Airplane are"),
        (lambda t: np.where(np.arange(7) == 0, np.nan, t), "90 of 90 points that are not finite"),
    ):
        np.savetxt(files[0], change(table))
        with pytest.raises(DataError, match=message) as caught:
            shapenetpart.source("train", str(root), count=16)[0]
        assert files[0] in str(caught.value)
    lists = root / "train_test_split"
    for content, message in (
        ('["shape_data/123/abc"]', "'shape_data/123/abc', of none of the categories"),
        ('["shape_data/02691156/nothing"]', "names 1 files .* 02691156/nothing.txt"),
        ("[]", "lists no clouds"), ("{}", "holds no list"), ("[", "cannot read"), ("[7]", "'7'"),
    ):  # fmt: skip
        (lists / "shuffled_val_file_list.json").write_text(content)
        with pytest.raises(DataError, match=message):
            shapenetpart.source("val", str(root))
    (lists / "shuffled_val_file_list.json").unlink()
    with pytest.raises(DataError, match="no list .*shuffled_val_file_list.json"):
        shapenetpart.source("val", str(root))
    (root / "synsetoffset2category.txt").write_text("Airplane\t02691156\n")
    with pytest.raises(DataError, match="must name the 16 categories"):
        shapenetpart.source("train", str(root))
