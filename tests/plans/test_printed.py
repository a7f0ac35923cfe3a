"""Counts of detection beside those that VFM-Adapter's Tables 1 and 4 print."""

import functools

import pytest

from dynadapt import config
from dynadapt.commands.config_file import read_config
from dynadapt.plans import compare
from dynadapt.plans.printed import DETECTION, printed
from tests.devices import ROOT

DETECT = f"{ROOT}/configs/detect.py"

# Trained, of each method beside neck and head; `linear` is neck and head alone.
COUNTS = {
    "dinov2_b14": {
        "linear": 9_150_170,
        "bitfit": 102_912,
        "lora": 737_280,
        "ssf": 205_824,
        "lorand": 2_998_272,
        "arc": 218_112,
        "vfm_adapter": 2_779_776,
    },
    "sam_b16": {
        "linear": 7_642_586,
        "bitfit": 102_656,
        "lora": 737_280,
        "ssf": 204_288,
        "lorand": 2_998_272,
        "arc": 218_112,
        "vfm_adapter": 2_779_776,
        "full": 89_670_912,
    },
    "swin_b": {
        "bitfit": 137_216,
        "lora": 2_069_504,
        "ssf": 277_760,
        "arc": 218_464,
        "vfm_adapter": 3_023_616,
    },
    "vit_h14": {
        "linear": 11_706_330,
        "bitfit": 453_120,
        "lora": 32_768_000,
        "ssf": 906_240,
        "arc": 1_393_920,
        "vfm_adapter": 27_801_600,
    },
}
# The paper prints other increments for SAM's blocks than for the same blocks of DINOv2.
OTHERWISE = {("sam_b16", "lorand"), ("sam_b16", "arc")}
CASES = [
    pytest.param(name, method, marks=pytest.mark.exhaustive if name == "swin_b" else ())
    for name, counts in COUNTS.items()
    for method in counts
]


@functools.cache
def compared(backbone):
    """The rows of a backbone by method, of 80 classes."""
    arg = f"recipe=coco,data=blank,backbone={backbone}"
    names = list({"linear": 0, **COUNTS[backbone]})
    given = {name: read_config(DETECT, f"{arg},method={name}") for name in names}
    return {row["method"]: row for row in compare.run(backbone, names, 80, given)["methods"]}


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "method"), CASES)
def test_counts_are_those_of_the_tables(backbone, method):
    """Exactly ours; what a method adds is what it adds in print, of two numbers that are rounded or
    cut off."""
    rows = compared(backbone)
    row, head = rows[method], rows["linear"]["trained_with_head"]
    count = COUNTS[backbone][method]
    assert row["trained_with_head"] == (head + count if method != "linear" else count)
    text = row["printed"].removesuffix(" M with head")
    if method in ("linear", "full"):
        ours = row["trained_with_head"] / 1e6
        assert f"{ours:.{len(text.partition('.')[2])}f}" == text
    elif (backbone, method) not in OTHERWISE:
        fixed = rows["linear"]["printed"].removesuffix(" M with head")
        digits = 10.0 ** -len(text.partition(".")[2])
        assert count / 1e6 == pytest.approx(float(text) - float(fixed), abs=1.01 * digits)


def test_where_something_is_printed():
    assert printed("vfm_adapter", "dinov2_b14", "detection", 80) == "11.93 M with head"
    assert printed("vfm_adapter", "dinov2_b14", "detection", 20) == ""
    assert printed("iconformer", "swin_b", "detection", 80) == ""
    assert printed("vfm_adapter", "dinov2_b14", "instances", 80) == "2.78 M"
    assert printed("lora", "vit_b16", "classification", 80) == "0.29 M"
    assert printed("linear", "vit_b16", "classification", 80) == ""
    assert {len(row) for row in DETECTION.values()} == {8}


@pytest.mark.parametrize("file", ["detect", "instances"])
@pytest.mark.parametrize("kernels", ["none", "static", "layer", "input"])
def test_the_ablation_is_an_argument(file, kernels):
    for recipe in ("small", "coco,data=blank,backbone=sam_b16"):
        arg = f"recipe={recipe},method=vfm_adapter,kernels={kernels}"
        c = read_config(f"{ROOT}/configs/{file}.py", arg)
        assert c.adapter.kernels == kernels
        config.check(c)
