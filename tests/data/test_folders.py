"""Folders with several maps an image are read by patterns; some maps follow from others."""

import numpy as np
import pytest

from dynadapt.data import folders, loader, transforms
from dynadapt.errors import DataError, MissingSplit
from tests.data import layouts
from tests.data.layouts import H, W, blocks, write

FILES = {"images": "{split}/*_rgb.jpg", "depth": "{split}/*_depth.png"}
MASKS = {"labels": "{split}/*_label.png", "remap": "0:void 1-9:0 10-255:1", "class_count": 2}
THINGS = {"instances": "{split}/*_label.png", "merge": 10}


def read(source, index=0, text=""):
    return loader.example(source, transforms.pipeline(text), index, np.random.default_rng(0))[0]


def test_every_kind_of_map_from_files(tmp_path):
    layouts.several(tmp_path)
    (tmp_path / "human_parts.txt").write_text("\n".join(map(str, range(32))))
    source = folders.source(
        *("learn[:2]+test", str(tmp_path)),
        **FILES, **MASKS, **THINGS,
        human_parts="{split}/*_label.png",
        saliency="{split}/*_white.png",
        edges="{split}/*_white.png",
        normals="{split}/*_normals.png",
    )  # fmt: skip
    assert len(source) == 5 and source.info.counts == {"learn": 3, "test": 3}
    assert (
        source.info.classes == ("0", "1") and len(source.info.fields["human_parts"].classes) == 32
    )
    found = read(source)
    row = {name: found[name][4, ::4].tolist() for name in found if np.shape(found[name]) == (H, W)}
    assert row == {
        "labels": [-1, 0, 1, 1],
        "human_parts": [0, 3, 25, 31],
        "saliency": [0, 0, 0, 1],
        "edges": [0, 0, 0, 1],
        "depth": [0, 1, 2, np.float32(0.9)],
        "instances": [0, 0, 2, 3],
    }
    assert not found["normals"][0].any() and found["normals"][4, 4, 2] < -0.99


def test_maps_that_follow_from_others(tmp_path):
    layouts.several(tmp_path)
    made = dict(normals="depth", focal=20, edges="instances", saliency="instances")
    source = folders.source("learn", str(tmp_path), **FILES, **THINGS, **made)
    assert set(source.info.fields) == {"image", "depth", "instances", *made} - {"focal"}
    found = read(source)
    assert found["edges"][4].nonzero()[0].tolist() == [8, 12]
    assert found["saliency"][4, ::4].tolist() == [0, 0, 0, 1]
    assert found["normals"][4, 6].tolist() == [0, 0, -1] and not found["normals"][4, 2].any()
    batch = next(loader.train_batches(source, "rotate(20, scale=(0.75, 1.25))|resize(8)|flip",
                                      batch_size=2, seed=0))  # fmt: skip
    assert batch["normals"].shape == (2, 8, 8, 3) and batch["saliency"].shape == (2, 8, 8)
    other = folders.source("learn", str(tmp_path), **FILES, **MASKS, edges="labels")
    assert read(other)["edges"][4, ::4].tolist() == [-1, 0, 1, 0]
    assert source.info.fingerprint != other.info.fingerprint


def test_two_tasks_as_cityscapes_lays_them_out(tmp_path):
    for i in range(2):
        stem = f"train/ulm/ulm_{i}"
        write(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", layouts.picture(i))
        labels = blocks([0, 18, 255]).astype(np.uint8)
        write(tmp_path / "gtFine" / f"{stem}_gtFine_labelTrainIds.png", labels)
        write(tmp_path / "depth" / f"{stem}_depth.png", blocks([0, 256]).astype(np.uint16))
    source = folders.source(
        *("train", str(tmp_path)),
        images="leftImg8bit/{split}/*_leftImg8bit.png",
        labels="gtFine/{split}/*_gtFine_labelTrainIds.png",
        depth="depth/{split}/*_depth.png",
        class_count=19,
        scale=256,
    )
    found = read(source, 1)
    assert found["labels"][0, ::5].tolist() == [0, 0, 18, -1] and found["depth"][0, -1] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing says which maps to read"),
        ({"normals": "depth"}, "data.normals=depth is made of data.depth, which is empty"),
        ({"saliency": "instances", **THINGS}, "saliency=instances is made of data.depth"),
        ({"depth": FILES["depth"], "normals": "depth"}, "needs the camera's focal length"),
        ({"depth": FILES["depth"], "centre": (1.0,)}, r"centre is \(1.0,\), not \(x, y\)"),
        ({"depth": FILES["depth"], "scale": 0}, "scale is 0"),
        ({**THINGS, "merge": 0}, "merge is 0"),
        ({"labels": MASKS["labels"]}, "classes.txt, one a line, or set data.class_count"),
        ({"human_parts": MASKS["labels"]}, "human_parts.txt, one a line, or set data.part_count"),
        ({"depth": "nowhere"}, "there is no folder .*nowhere"),
    ],
)
def test_wrong_settings_are_said(tmp_path, settings, message):
    layouts.several(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        folders.source("learn", str(tmp_path), images=FILES["images"], **settings)
    assert "\n" not in str(raised.value)


def test_wrong_files_are_said(tmp_path):
    layouts.several(tmp_path)
    with pytest.raises(MissingSplit, match="no split 'tset'; did you mean 'test'"):
        folders.source("tset", str(tmp_path), **FILES)
    write(tmp_path / "learn" / "0_depth.png", blocks([1], (3, 4)).astype(np.uint16))
    source = folders.source("learn", str(tmp_path), **FILES, normals="depth", focal=9)
    with pytest.raises(
        DataError, match=r"0_depth.png has the shape \(3, 4\), but its image has 12"
    ):
        [source[i] for i in range(3)]
    coloured = folders.source(
        "test", str(tmp_path), FILES["images"], instances="{split}/*_normals.png"
    )
    with pytest.raises(DataError, match="holds colours; save the numbers of objects in grey"):
        coloured[0]


def test_osd(shared_data):
    root = shared_data / "osd-rgbd"
    if not root.is_dir():
        pytest.skip("DYNADAPT_DATA has no osd-rgbd")
    made = dict(normals="depth", focal=525, edges="instances", saliency="instances")
    for split, count in {"learn": 45, "test": 62}.items():
        source = folders.source(split, str(root), **FILES, **MASKS, **THINGS, **made)
        assert len(source) == count
    found = read(source, text="resize(120, 160)")
    assert np.unique(found["labels"]).tolist() == [-1, 0, 1]
    known = found["normals"].any(-1)
    assert known[found["depth"] > 0].mean() > 0.85 and not known[found["depth"] == 0].any()
    table = found["normals"][known & (found["labels"] == 0)]
    middle = table.mean(0) / np.linalg.norm(table.mean(0))
    assert np.percentile(np.degrees(np.arccos(np.clip(table @ middle, -1, 1))), 50) < 10
    assert 0 < found["saliency"].mean() < 0.2 and 0 < found["edges"].mean() < 0.05
