"""Plans: what they say of a run, and ViT-B/16 ahead of time for TPUs that aren't here."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dynadapt.commands.config_file import read_config
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.plans import plan

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")
ROOT = Path(__file__).resolve().parents[2]

needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'"
)


@pytest.fixture(scope="module")
def found():
    return plan.run(read_config(TINY, "method=lora"))


@pytest.mark.slow
def test_sites(found):
    (site,) = found["sites"]
    assert site["hosts"] == 2 and site["parameters"] == 4 * 16 * 4 * 2
    assert site["site"] == "backbone/blocks/*/attn/qkv" and site["adapter"] == "Lora"


@pytest.mark.slow
def test_counts_with_and_without_head(found):
    counts = found["counts"]
    assert counts["trained"] == 512
    assert counts["trained_with_head"] == 512 + 16 * 10 + 10
    assert counts["trained_bytes"] == 4 * counts["trained_with_head"]
    assert sum(row["parameters"] for row in found["trainable"]) == counts["trained_with_head"]
    assert sum(row["bytes"] for row in found["trainable"]) == counts["trained_bytes"]


def test_memory(found):
    memory, counts = found["memory"], found["counts"]
    assert memory["frozen"] == 4 * counts["backbone"]
    assert memory["trained"] == counts["trained_bytes"]
    assert 2 * counts["trained_bytes"] <= memory["optimizer"] <= 2 * counts["trained_bytes"] + 64
    assert memory["batch"] == 16 * (8 * 8 * 3 + 3 * 4)
    held = sum(memory[k] for k in ("frozen", "trained", "optimizer", "batch", "temporaries"))
    assert held * 0.95 <= memory["total"]
    assert found["fits"] is None and found["collectives"] == {}


def test_flops(found):
    """By hand: a ViT of width 16, 2 blocks, 4 + 1 tokens, 16 images; LoRA of rank 4 on q and v."""
    b, n, d, r, c = 16, 5, 16, 4, 10
    block = 2 * b * n * d * (3 * d + d + 4 * d + 4 * d) + 2 * 2 * b * n * n * d
    lora = 2 * (2 * b * n * d * r * 2)
    forward = 2 * b * (n - 1) * 48 * d + 2 * (block + lora) + 2 * b * d * c
    assert forward < found["flops"] < 3.2 * forward


@pytest.mark.slow
def test_remat_costs_flops_and_a_frozen_backbone_saves_them():
    flops = {
        name: plan.run(read_config(TINY, name.split()[0]) if " " not in name else remat(name))[
            "flops"
        ]
        for name in ("method=linear", "method=full", "method=full remat")
    }
    assert 2.5 * flops["method=linear"] < flops["method=full"]
    assert flops["method=full"] < flops["method=full remat"] <= 1.4 * flops["method=full"]


def remat(name):
    config = read_config(TINY, name.split()[0])
    config.backbone.remat = True
    return config


@pytest.mark.slow
def test_scan_trains_the_same():
    config = read_config(TINY, "method=lora")
    flat = plan.run(config)
    config.backbone.scan = True
    scanned = plan.run(config)
    for name in ("counts", "sites", "trainable"):
        assert flat[name] == scanned[name]
    # A scan's backward pass also finds the gradient of the first block's input.
    assert flat["flops"] < scanned["flops"] < 1.5 * flat["flops"]


@pytest.mark.slow
def test_what_is_printed(capsys):
    assert main(["plan", f"--config={TINY}:method=lora"]) == 0
    out = capsys.readouterr().out
    for part in (
        *("backbone/blocks/*/attn/qkv", "Lora", "head/linear/kernel", "trained 512", "with head"),
        *("682", "temporaries", "optimizer", "GFLOP", "mesh data=1, fsdp=1", "batch 16"),
    ):
        assert part in out


@pytest.mark.slow
def test_json_is_one_document(capsys):
    assert main(["plan", f"--config={TINY}:method=lora", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["method"] == "lora" and values["counts"]["trained"] == 512


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", f"--config={TINY}:method=linear"]) == 0
    assert not list(tmp_path.iterdir())


def in_process(*argv):
    """The command in a process of its own: libtpu stays in the process that loads it."""
    command = [sys.executable, "-m", "dynadapt", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@needs_libtpu
@pytest.mark.slow
def test_a_tiny_run_for_four_chips():
    argv = ["plan", f"--config={TINY}:method=lora", "--topology=v5litepod-4", "--json"]
    done = in_process(*argv)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["mesh"] == {"data": 4, "fsdp": 1} and values["fits"] is True
    assert values["largest_batch"] > 1000 and values["largest_batch"] % 4 == 0
    trained = values["counts"]["trained_bytes"]
    assert 0 < values["collectives"]["all-reduce"] <= 1.05 * trained


def test_the_largest_batch_fills_what_the_rest_leaves():
    """Of 950 of 1000 bytes 150 stay as they are, and an image takes 50: sixteen, by threes."""
    memory = dict(frozen=100, trained=50, optimizer=0, batch=50, temporaries=150, total=350)
    assert plan.largest_batch(memory, 4, 1000, 1) == 16
    assert plan.largest_batch(memory, 4, 1000, 3) == 15
    assert plan.largest_batch(memory, 4, 150, 1) == 0


@needs_libtpu
@pytest.mark.slow
def test_a_run_that_does_not_fit_says_so():
    argv = ["--config.backbone.dim=2048", "--config.backbone.depth=1", "--config.backbone.heads=16"]
    argv += ["--config.input.batch_size=1000", "--config.backbone.image_size=128"]
    argv += ["--config.input.train=resize(128)", "--config.input.eval=resize(128)"]
    spec = f"--config={TINY}:method=full"
    done = in_process("plan", spec, "--topology=v5e:2x2", "--json", *argv)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["fits"] is False


METHODS = ("linear", "bitfit", "lora", "adaptformer", "iconformer", "full")
# Every method on both meshes; rematerialised on one of them, to keep the time in bounds.
MESHES = ("16:1:keep", "4:4:remat")
CASES = [f"{method}:{mesh}" for method in METHODS for mesh in MESHES]
GIB = 2**30


def fault(case, values):
    """What is wrong with the plan of a case, or None."""
    method, _, fsdp, remat = case.split(":")
    trained, moved = values["counts"]["trained_bytes"], values["collectives"]
    if not values["fits"]:
        return f"it does not fit: {values.get('reason')}"
    if not 0 < moved["all-reduce"] <= 1.05 * trained:
        return f"{moved['all-reduce']} bytes are reduced for {trained} trained bytes"
    if {"all-to-all", "collective-permute", "reduce-scatter"} & set(moved):
        return f"it moves more than weights and gradients: {moved}"
    frozen = 2 * values["counts"]["backbone"]  # bfloat16
    # The kernels of blocks are gathered for the forward pass, and again for the backward pass.
    passes = 0 if fsdp == "1" or method == "full" else 1 if method == "linear" else 2
    if moved.get("all-gather", 0) > passes * frozen:
        return f"{moved['all-gather']} bytes are gathered of {frozen} frozen bytes"
    # Full fine-tuning also holds gradients and stacked copies of all that it trains.
    limit = 1.2 * GIB + (3 * trained if method == "full" else 0)
    if remat == "remat" and values["memory"]["temporaries"] >= limit:
        return f"temporaries take {values['memory']['temporaries'] / GIB:.2f} GiB"
    share = values["memory"]["frozen"] / max(frozen, 1)
    if method in ("linear", "lora", "iconformer") and fsdp == "4" and share > 0.3:
        return f"each chip holds {share:.2f} of the frozen weights"
    return None


@needs_libtpu
@pytest.mark.exhaustive
def test_vit_b16_for_sixteen_chips():
    """One process for all cases, one after another: each compilation takes both cores."""
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, str(Path(__file__).parents[1] / "tpu_ahead.py"), *CASES]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    plans = {values["case"]: values for values in map(json.loads, done.stdout.splitlines())}
    assert list(plans) == CASES
    faults = {case: fault(case, values) for case, values in plans.items()}
    assert not {case: text for case, text in faults.items() if text}


def test_topologies_are_checked_before_anything_is_compiled():
    config = read_config(TINY, "")
    config.adapter.name = "lorra"
    with pytest.raises(ConfigError, match="'lora'"):
        plan.run(config, "v5e:4x4")
