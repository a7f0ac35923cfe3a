"""The page on dense data names the sets and settings that are there, and its layouts are read."""

import re
from pathlib import Path

import numpy as np
import pytest

from dynadapt import choices, config, data
from dynadapt.data import pascal_mt
from tests.data import layouts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dense_data.md"
TEXT = PAGE.read_text(encoding="utf-8")
SETS = re.findall(r"^\| `(\w+)` \|", TEXT.split("\n## ")[0], re.MULTILINE)


def test_the_sets_are_there():
    assert set(SETS) == {
        *("scenes", "masks", "ade20k", "voc_segmentation", "depths", "nyu"),
        *("folders", "pascal_mt", "nyud_mt", "coco", "voc", "instances"),
    }
    assert set(SETS) <= set(data.names())


def test_settings_are_those_of_a_set():
    known = {key for name in SETS for key in data.settings(name)}
    named = re.findall(r"--config\.data\.(\w+)=", TEXT)
    assert len(named) > 15 and set(named) <= known


def lines():
    """Settings on the page, and the set that the section is about."""
    for heading, section in re.findall(r"^##+ (\w+)\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S):
        for cell in re.findall(r"`(--config[^`]+)`", section):
            if "/data/" not in cell:
                yield heading.lower(), cell


@pytest.mark.parametrize(("heading", "line"), [*lines()])
def test_settings_have_the_types_of_their_defaults(heading, line):
    pairs = "depths" if "depths" in line else "masks"
    defaults = data.settings({"folders": pairs, "several": "folders"}.get(heading, heading))
    for key, text in re.findall(r'--config\.data\.(\w+)=("[^"]+"|\S+)', line):
        value = text.strip('"')
        if isinstance(defaults[key], bool | int | float | tuple):
            value = eval(value)
        assert choices.alike(value, defaults[key]), (key, value)


def test_a_config_opens_a_set(tmp_path):
    layouts.camvid(tmp_path)
    c = config.default(data_set="masks")
    c.data.update(path=str(tmp_path), images="{split}", masks="{split}annot", class_count=11)
    c.data.ignore = (11,)
    source = data.from_config(c.data, "val", tuple(map(str, range(11))))
    assert len(source) == 2 and np.unique(source[0]["labels"]).tolist() == [-1, 0, 3, 10]
    layouts.coco(tmp_path / "coco")
    c = config.default(data_set="coco")
    c.data.update(path=str(tmp_path / "coco"), filled=("train2017",))
    names = ("person", "car", "toothbrush")
    assert len(data.from_config(c.data, "train2017", names)) == 2
    layouts.voc_objects(tmp_path / "voc")
    c = config.default(data_set="voc")
    c.data.path = str(tmp_path / "voc")
    assert data.from_config(c.data, "val", ("dog", "cat")).info.classes == ("dog", "cat")
    layouts.instances(tmp_path / "maps")
    c = config.default(data_set="instances")
    c.data.update(path=str(tmp_path / "maps"), class_name="cell")
    assert len(data.from_config(c.data, "test", ("cell",))) == 2
    layouts.several(tmp_path / "several")
    c = config.default(data_set="folders")
    c.data.update(path=str(tmp_path / "several"), images="{split}/*_rgb.jpg")
    c.data.update(depth="{split}/*_depth.png", normals="depth", focal=525)
    assert set(data.from_config(c.data, "test").info.fields) == {"image", "depth", "normals"}
    layouts.pascal_mt(tmp_path)
    c = config.default(data_set="pascal_mt")
    c.data.update(path=str(tmp_path), fields=("human_parts",))
    assert len(data.from_config(c.data, "val", pascal_mt.PARTS)) == 1
    c = config.default(data_set="scenes")
    c.data.fields = ("boxes",)
    assert set(data.from_config(c.data, "val").info.fields) == {
        *("image", "boxes", "box_classes", "extent")
    }
