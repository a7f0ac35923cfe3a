"""Methods side by side: numbers by hand, refusals in a sentence, and one command for all."""

import functools
import json
import math

import jax
import pytest

from dynadapt import adapters
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.main import main
from dynadapt.plans import compare
from tests.devices import ROOT

CONFIGS = ROOT / "configs"

# ViT-B/16 at 224: width, blocks, tokens with the class token, patches.
D, L, N, P = 768, 12, 197, 196
BLOCK = 2 * N * D * 12 * D + 2 * 2 * N * N * D
FORWARD = 2 * P * D * D + L * BLOCK

PRINTED = [(n, b) for n in adapters.names() for b in getattr(adapters.module(n), "PRINTED", {})]


@functools.cache
def compared(backbone):
    """The methods that have a printed count for the backbone; for ViT-B/16, all."""
    printed = [n for n, b in PRINTED if b == backbone]
    return compare.run(backbone, ["all"] if backbone == "vit_b16" else printed)


@pytest.fixture(scope="module")
def found():
    return compared("vit_b16")


def rows(result):
    return {row["method"]: row for row in result["methods"]}


@pytest.mark.slow
def test_all_methods_have_a_row(found):
    assert [row["method"] for row in found["methods"]] == adapters.names()
    assert found["parameters"] == 85_798_656 and found["input"] == [224, 224, 3]


@pytest.mark.slow
def test_the_bare_forward_pass(found):
    assert found["flops"] == FORWARD
    for name in ("linear", "bitfit", "norm_tune", "full", "ssf"):
        assert rows(found)[name]["extra_flops"] == 0


@pytest.mark.parametrize(
    ("name", "sites", "count"),
    [
        ("adapter_x", 12, 172_065),
        ("arc", 24, 96_432),
        ("bitfit", 0, 102_912),
        ("full", 0, 85_798_656),
        ("iconformer", 12, 1_638_912),
        ("lora", 12, 294_912),
        ("ssf", 6 * 12 + 2, 205_824),
        ("vfm_adapter", 24, 2_779_776),
        ("vpt", 12, 460_800),
    ],
)
def test_counts(found, name, sites, count):
    row = rows(found)[name]
    assert (row["sites"], row["trained"]) == (sites, count)
    assert row["trained_with_head"] == count + 768 * 10 + 10
    assert row["bytes"] == 4 * row["trained_with_head"]
    assert row["share"] == pytest.approx(100 * count / 85_798_656)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("adaptformer", L * 2 * 2 * N * D * 64),
        ("iconformer", L * (2 * 2 * N * D * 64 + 2 * 64 * 9 * 64)),
        ("lora", L * 2 * 2 * 2 * N * D * 8),
        ("convpass", 2 * L * (2 * 2 * N * D * 8 + (P + 1) * 2 * 9 * 8 * 8)),
        # Fifty prompts more in each block.
        ("vpt", L * (2 * 50 * D * 12 * D + 2 * 2 * ((N + 50) ** 2 - N**2) * D)),
    ],
)
def test_extra_flops(found, name, extra):
    assert rows(found)[name]["extra_flops"] == pytest.approx(100 * extra / FORWARD, rel=2e-3)


# Why not, of the methods on a ViT.
OBSTACLES = {
    "adapter": "a GELU stands between its two projections",
    "adapter_x": "its experts are chosen for each token",
    "adaptformer": "a ReLU stands between its two projections",
    "convpass": "a quick GELU stands before and behind its convolution",
    "iconformer": "its kernels follow the image, and where they don't an activation is in the way",
    "lorand": "a GELU stands between its two matrices",
    "mona": "a norm and a GELU stand around its convolutions",
    "mtlora": "each task has weights of its own",
    "tadformer": "prompts are tokens of their own, and filters follow the input",
    "vfm_adapter": "its kernels follow the input, and where they don't a ReLU is in the way",
    "vpt": "prompts are tokens of their own",
}


def test_what_merges(found):
    served = [row for row in found["methods"] if "reason" not in row]
    merging = {row["method"] for row in served if row["mergeable"]}
    nothing = {"bitfit", "full", "linear", "norm_tune"}
    assert merging - nothing == {"arc", "dora", "fact", "lora", "repadapter", "ssf"}
    assert OBSTACLES.keys() == {row["method"] for row in served if not row["mergeable"]}
    for name, why in OBSTACLES.items():
        assert rows(found)[name]["obstacle"] == f"{name} can't be merged into the weights: {why}"
    assert all(bool(row["obstacle"]) != row["mergeable"] for row in served)
    assert "point clouds" in rows(found)["dapt"]["reason"]
    assert len(found["methods"]) == len(served) + 1


# Where the print is not of the default settings or of the count alone, and what it is of.
OTHERWISE = {
    ("arc", "vit_b16"): 96_432 + 38_045,  # the mean head of VTAB-1k
    ("dapt", "point_mae_s_g128"): 721_932 + 365_839,  # its head of three tokens and 15 classes
    ("repadapter", "vit_b16"): 221_184,  # without biases
    ("mona", "swin_b"): None,  # another implementation
    ("mona", "swin_l"): None,
}


PRINTED_MARKS = {
    "vit_b16": (),
    "swin_b": pytest.mark.exhaustive,
    "swin_l": pytest.mark.exhaustive,
}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [pytest.param(n, b, marks=PRINTED_MARKS.get(b, pytest.mark.slow)) for n, b in PRINTED],
)
def test_printed_counts_are_ours(name, backbone):
    """Each print, at the digits that it has."""
    row = rows(compared(backbone))[name]
    text, count = row["printed"], OTHERWISE.get((name, backbone), row["trained"])
    assert text == adapters.module(name).PRINTED[backbone]
    if "%" in text:
        low, high = (float(part) for part in text.removesuffix(" %").split(" to "))
        assert low <= math.floor(10 * row["share"]) / 10 <= high
    elif count is not None:
        number = text.split()[0]
        assert f"{count / 1e6:.{len(number.partition('.')[2])}f}" == number


@pytest.mark.slow
def test_a_backbone_of_stages_refuses_some():
    found = rows(compare.run("swin_t", ["vpt", "fact", "adapter_x", "ssf", "iconformer"]))
    assert found["vpt"]["reason"].startswith("VPT needs a ViT")
    assert "one width" in found["fact"]["reason"] and "one width" in found["adapter_x"]["reason"]
    assert found["iconformer"]["trained"] == 1_019_712 and "reason" not in found["iconformer"]
    assert found["ssf"]["obstacle"].endswith("'stages/0/merge/reduction', which has no bias")


@pytest.mark.slow
def test_points_have_a_row_too():
    found = compare.run("point_mae_s", ["full", "lora", "iconformer", "dapt"], classes=40)
    # The statistics of its batch norms are no parameters.
    assert found["parameters"] == rows(found)["full"]["trained"] == 21_825_792
    assert rows(found)["full"]["share"] == 100
    assert found["input"] == [1024, 3] and found["flops"] > 1e9
    assert rows(found)["lora"]["trained"] == 4 * 384 * 8 * 12
    assert rows(found)["lora"]["trained_with_head"] == 4 * 384 * 8 * 12 + 385 * 40
    assert "patches of an image" in rows(found)["iconformer"]["reason"]
    dapt = rows(found)["dapt"]
    assert (dapt["sites"], dapt["trained"]) == (7 * 12 + 2, 721_932)
    assert "made for each token" in dapt["obstacle"] and dapt["extra_flops"] > 2


@pytest.mark.slow
def test_nothing_is_allocated(monkeypatch):
    """ViT-g has 1.1 billion parameters."""
    before = {id(x) for x in jax.live_arrays()}
    found = compare.run("vit_g14", ["iconformer"])
    assert found["parameters"] > 1e9
    assert sum(x.nbytes for x in jax.live_arrays() if id(x) not in before) < 2**20


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (("vit_b16", ["lorra"]), UnknownName, "unknown method 'lorra'; did you mean 'lora'"),
        (("vit_b61", ["lora"]), UnknownName, "unknown backbone 'vit_b61'; did you .*'vit_b16'"),
        (("vit_b16", ["lora"], 1), ConfigError, "classes must be at least 2 .*, not 1"),
        (("vit_b16", []), ConfigError, "give --methods=all"),
    ],
)
def test_mistakes(args, error, message):
    with pytest.raises(error, match=message):
        compare.run(*args)


@pytest.mark.slow
def test_the_command_prints_one_table(capsys):
    command = ["plan", "--methods=lora,vpt,iconformer,lora", "--backbone=swin_b", "--classes=100"]
    assert main(command) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("│ ") and line[2] != " "]
    assert [line.split()[1] for line in lines] == ["lora", "vpt", "iconformer"]
    for part in ("2,452,224", "2,554,724", "2.827 %", "1.6 to 2.8 %", "9.7 MiB", "100 classes"):
        assert part in out
    assert "VPT needs a ViT" in out and "sums of products" in out


def test_the_command_answers_in_json(capsys):
    assert main(["plan", "--methods=lora,linear", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["backbone"] == "vit_b16" and values["classes"] == 10
    assert rows(values)["lora"]["printed"] == "0.29 M"
    assert rows(values)["linear"] == {
        "method": "linear", "settings": {"layers": 0}, "sites": 0,
        "trained": 0, "trained_with_head": 7690, "share": 0.0,
        "extra_flops": 0.0, "bytes": 30760, "mergeable": True, "obstacle": "", "printed": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods=lorra"], "unknown method 'lorra'; did you mean 'lora'"),
        (["--methods="], "--methods= is empty"),
        (["--methods=all", "--config=x.py"], "no config file"),
        (["--methods=all", "--topology=h100"], "give the --config whose batch and data"),
        (["--methods=all", "--topology=h100", "--config=quickstart", "--classes=3"], "--classes"),
        (["--methods=lora", "--config.adapter.rank=4"], "takes no --config.adapter.rank=4"),
        (["--backbone=vit_b16"], "--backbone goes with --methods"),
        (["--config=x.py", "--classes=3"], "--classes goes with --methods"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    assert main(["plan", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.slow
def test_a_config_has_its_settings_and_its_head(capsys):
    """SegFormer's head on the levels that are made of SAM's last map, 256 wide, and 150 classes."""
    spec = f"{CONFIGS / 'segment.py'}:recipe=ade20k,data=blank"
    options = ["--methods=vfm_adapter,linear", "--backbone=sam_b16", f"--config={spec}"]
    assert main(["plan", *options, "--classes=150", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backbone"] == "sam_b16" and found["task"] == "segmentation"
    linear, vfm = (rows(found)[name] for name in ("linear", "vfm_adapter"))
    assert linear["trained_with_head"] == 778_966
    assert vfm["trained"] == 2_779_776
    assert vfm["trained_with_head"] == 2_779_776 + 778_966


def test_a_config_for_another_backbone_says_so(capsys):
    spec = f"{CONFIGS / 'quickstart.py'}"
    assert main(["plan", "--methods=lora", "--backbone=vit_b16", f"--config={spec}"]) == 2
    assert "unknown config argument 'backbone'" in capsys.readouterr().err
