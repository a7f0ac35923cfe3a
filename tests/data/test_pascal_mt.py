"""PASCAL_MT's lists, masks, files of MATLAB and distilled maps."""

import numpy as np
import pytest
from scipy.io import savemat

from dynadapt.data import loader, pascal_mt, transforms
from dynadapt.errors import DataError, UnknownName
from tests.data import layouts
from tests.data.layouts import H, W

ALL = ("labels", "human_parts", "saliency", "normals", "edges")


def read(source, index=0):
    return loader.example(source, transforms.pipeline(""), index, None)[0]


def test_every_field(tmp_path, caplog):
    root = layouts.pascal_mt(tmp_path)
    before = sorted(root.rglob("*"))
    for path in (tmp_path, root):
        source = pascal_mt.source("train", str(path), fields=ALL)
        assert len(source) == 2 and set(source.info.fields) == {"image", *ALL}
    assert "train.txt lists 2 images, where 4998 are published" in caplog.messages[0]
    assert len(source.info.classes) == 21 and len(pascal_mt.PARTS) == 7
    found = read(source)
    assert found["labels"][0, ::4].tolist() == [0, 15, 20, -1]
    assert read(source, 1)["labels"][0, ::4].tolist() == [0, 15, 20, -1]  # from pascal-context
    assert found["saliency"][0, ::4].tolist() == [0, 0, 1, 1]
    assert found["edges"][0].nonzero()[0].tolist() == [4, 12]
    np.testing.assert_allclose(found["normals"], np.broadcast_to([1, 0, 0], (H, W, 3)), atol=0.01)
    assert sorted(root.rglob("*")) == before  # no cache


def test_parts_are_grouped_and_void_where_no_person_has_any(tmp_path):
    layouts.pascal_mt(tmp_path)
    source = pascal_mt.source("train", str(tmp_path), fields=("human_parts",))
    parts = read(source)["human_parts"]
    wanted = np.zeros((H, W))
    wanted[:6, :8], wanted[4:9, :4] = 1, 6
    assert np.array_equal(parts, wanted)
    assert (read(source, 1)["human_parts"] == -1).all()  # the parts there are a cat's
    assert set(pascal_mt._NUMBERS.values()) == {1, 2, 3, 4, 5, 6} and len(pascal_mt._NUMBERS) == 24


def test_only_files_of_the_fields_are_needed(tmp_path):
    root = layouts.pascal_mt(tmp_path)
    for place in ("human_parts", "sal_distill", "pascal-context", "normals_distill"):
        (root / place).rename(root / f"no {place}")
    source = pascal_mt.source("val", str(tmp_path), fields=("labels",))
    assert set(source[0]) == {"image", "labels", "name"}
    message = "val.txt asks for 3 of 5 files .*, the first of them human_parts/2008_000003.mat"
    with pytest.raises(DataError, match=message):
        pascal_mt.source("val", str(tmp_path))


def test_normals_count_on_the_surfaces_that_are_named(tmp_path):
    root = layouts.pascal_mt(tmp_path)
    (root / "surfaces.txt").write_text("258\n\n400\n")
    source = pascal_mt.source("val", str(tmp_path), ("normals",), "surfaces.txt")
    assert set(source.info.fields) == {"image", "normals"}
    assert read(source)["normals"].any(-1)[0, ::4].tolist() == [True, False, False, True]
    other = pascal_mt.source("val", str(tmp_path), ("normals",))
    assert (
        other.info.fingerprint != source.info.fingerprint and read(other)["normals"].any(-1).all()
    )
    (root / "surfaces.txt").write_text("258\nwall\n")
    with pytest.raises(
        DataError, match="line 2 of .*surfaces.txt is not the number of a class: wall"
    ):
        pascal_mt.source("val", str(tmp_path), ("normals",), "surfaces.txt")
    (root / "surfaces.txt").write_text("\n")
    with pytest.raises(DataError, match="names no class on which normals count"):
        pascal_mt.source("val", str(tmp_path), ("normals",), "surfaces.txt")


def test_what_is_missing_is_said(tmp_path):
    root = layouts.pascal_mt(tmp_path)
    with pytest.raises(DataError, match="no list .*/vla.txt; did you mean 'val'"):
        pascal_mt.source("vla", str(tmp_path))
    with pytest.raises(
        UnknownName, match="unknown field of pascal_mt 'edge'; did you mean 'edges'"
    ):
        pascal_mt.source("val", str(tmp_path), fields=("edge",))
    with pytest.raises(DataError, match="no folder .*; unpack PASCAL_MT.tgz"):
        pascal_mt.source("val")
    (root / "ImageSets" / "Context" / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="val.txt"):
        pascal_mt.source("val", str(tmp_path))


def test_broken_files_of_matlab_are_named(tmp_path):
    root = layouts.pascal_mt(tmp_path)
    source = pascal_mt.source("val", str(tmp_path), fields=("human_parts", "edges"))
    context = root / "pascal-context" / "trainval" / "2008_000003.mat"
    parts = root / "human_parts" / "2008_000003.mat"
    whole = context.read_bytes()
    for content, message in (
        (b"", "cannot read LabelMap"),
        (whole[:150], "cannot read LabelMap"),
        (parts.read_bytes(), "cannot read LabelMap of .*3.mat: 'LabelMap'"),
    ):
        context.write_bytes(content)
        with pytest.raises(DataError, match=message):
            source[0]  # fmt: skip
    savemat(context, {"LabelMap": np.zeros((H, W))})
    with pytest.raises(DataError, match="has a LabelMap float64 of shape"):
        source[0]
    savemat(context, {"LabelMap": np.zeros((H, 5), np.uint16)})
    with pytest.raises(DataError, match=r"3.mat has the shape \(12, 5\), but its image"):
        source[0]
    context.write_bytes(whole)
    for things, message in (
        ([(15, [("tail", np.ones((H, W)))])], "has no parts of objects as in PASCAL_MT: 'tail'"),
        ([(15, [("head", np.ones((H, 3)))])], "has no parts of objects as in PASCAL_MT: "),
    ):
        layouts.part_file(parts, things)
        with pytest.raises(DataError, match=message):
            source[0]
    savemat(parts, {"anno": np.zeros(3)})
    with pytest.raises(DataError, match="has no parts of objects"):
        source[0]
