"""The page on clouds names the sets and settings that are there, and what it says of them holds."""

import re
from pathlib import Path

import pytest

from dynadapt import choices, config, data
from dynadapt.data import cloud_files, clouds, modelnet40
from tests.data import cloud_layouts as layouts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clouds_data.md"
TEXT = PAGE.read_text(encoding="utf-8")
SETS = re.findall(r"^\| `(\w+)` \| `label`", TEXT, re.MULTILINE)


def test_the_sets_are_there():
    assert set(SETS) == {"clouds", "scanobjectnn", "modelnet40", "shapenetpart", "cloud_folder"}
    assert set(SETS) <= set(data.names())


def lines():
    found = []
    for cell in re.findall(r"`(--config\.data[^`]+)`", TEXT):
        name = next((name for part, name in (
            ("ModelNet40", "modelnet40"), ("modelnet40_", "modelnet40"),
            ("h5_files", "scanobjectnn"), ("shapenetcore", "shapenetpart"), ("variant", "clouds"),
        ) if part in cell), "cloud_folder")  # fmt: skip
        found.append((name, cell))
    return found


@pytest.mark.parametrize(("name", "line"), lines())
def test_settings_have_the_types_of_their_defaults(name, line):
    defaults = data.settings(name)
    for key, text in re.findall(r"--config\.data\.(\w+)=(\S+)", line):
        value = text if isinstance(defaults[key], str) else eval(text)
        assert choices.alike(value, defaults[key]), (key, value)
    variants = re.findall(r"variant=(\w+)", line)
    assert set(variants) <= set(getattr(data.module(name), "VARIANTS", ()))


def test_numbers_are_those_of_the_code():
    train, val, test = (f"{n:,}" for n in clouds.COUNTS.values())
    assert f"{train} `train`, {val} `val`, {test} `test`" in TEXT
    assert f"of {len(clouds.PARTS)} parts" in TEXT and f"{modelnet40.POINTS['txt']:,}" in TEXT
    table = cloud_files.__doc__.split("\n\n")[1]
    assert table in TEXT
    assert set(re.findall(r"`(\.\w+)`", table)) == set(cloud_files._READERS)


def test_a_config_opens_a_set(tmp_path):
    layouts.shapenetpart(tmp_path)
    c = config.default(data_set="shapenetpart")
    c.data.update(path=str(tmp_path), count=32)
    source = data.from_config(c.data, "train+val")
    assert len(source) == 6 and set(source[0]) == {"points", "parts", "label", "name"}
    c = config.default(data_set="clouds")
    c.data.variant = "hard"
    assert set(data.from_config(c.data, "val").info.fields) == {"points", "label", "parts"}
