"""Meshes: rules as pure functions, and 8 CPU devices, in a process of their own, as one."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from dynadapt import files, sharding, train
from dynadapt.errors import ConfigError
from dynadapt.main import main
from tests import devices, stepping

TINY = str(Path(__file__).with_name("configs_tiny.py"))
ROOT = Path(__file__).resolve().parents[1]


def sizes(data, fsdp):
    return ConfigDict(dict(data=data, fsdp=fsdp))


@pytest.mark.parametrize(
    ("asked", "devices", "found"),
    [((-1, 1), 8, (8, 1)), ((-1, 4), 8, (2, 4)), ((2, -1), 8, (2, 4)), ((1, 1), 1, (1, 1))],
)
def test_shape(asked, devices, found):
    assert sharding.shape(sizes(*asked), devices) == found


@pytest.mark.parametrize(
    ("asked", "devices"),
    [((3, 1), 8), ((-1, 3), 8), ((-1, -1), 8), ((0, 1), 8), ((-2, 1), 8), ((4, 1), 8)],
)
def test_shapes_that_do_not_fit(asked, devices):
    with pytest.raises(ConfigError, match=f"data={asked[0]}, fsdp={asked[1]}"):
        sharding.shape(sizes(*asked), devices)


def test_check_batch():
    mesh = sharding.make_mesh(sizes(1, 1))
    sharding.check_batch(12, mesh, 4)
    with pytest.raises(ConfigError, match="nearest is 12"):
        sharding.check_batch(13, mesh, 4)


def test_every_frozen_leaf_needs_a_rule():
    mesh = sharding.make_mesh(sizes(1, 1))
    leaves = {"backbone": {"kernel": jnp.zeros((4, 4))}}
    with pytest.raises(ConfigError, match="no sharding rule covers 'backbone/kernel'"):
        sharding.frozen(leaves, mesh, rules=(("head/.*", None),))


class Eight:
    shape = {"data": 1, "fsdp": 8}


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((64, 192), P(None, "fsdp")),
        ((256, 64), P("fsdp", None)),
        ((64, 64), P("fsdp", None)),
        ((12, 16), P(None, "fsdp")),
        ((12, 12), P()),
        ((64,), P()),
        ((), P()),
        ((3, 3, 16, 24), P(None, None, None, "fsdp")),
    ],
)
def test_the_largest_divisible_dimension_is_cut(shape, cut):
    assert sharding._cut(shape, "fsdp", Eight) == cut
    assert sharding._cut(shape, None, Eight) == P()


# Eight devices.


def in_eight(job, folder):
    command = [sys.executable, "-m", "tests.eight_devices", job, str(folder)]
    done = subprocess.run(command, env=devices.eight(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def stopped_run(folder):
    """A run on one device, stopped after 5 of its 12 steps."""
    with pytest.MonkeyPatch.context() as patch:
        make = stepping.watched(train.make_step, stepping.killed_at(5))
        patch.setattr(train, "make_step", make)
        assert main(["train", f"--config={TINY}:method=lora", f"--workdir={folder}"]) == 143


@pytest.fixture(scope="module")
def reference(fast_compiling, tmp_path_factory):
    """A run on one device from start to end."""
    work = tmp_path_factory.mktemp("reference") / "run"
    assert main(["train", f"--config={TINY}:method=lora", f"--workdir={work}"]) == 0
    return work


@pytest.fixture(scope="module")
def eight(fast_compiling, tmp_path_factory):
    """What a process with 8 devices found, and its folder."""
    folder = tmp_path_factory.mktemp("eight")
    stopped_run(folder / "one")
    return {**in_eight("everything", folder), "folder": folder}


def assert_steps(steps, names):
    for name in names:
        found = steps[name]
        assert len(found["losses"]) == 20
        assert found["trained_whole"] and found["frozen_kept"], name
        moved = found["moved"]
        # The gradient of what trains, and a few scalars.
        assert 0 < moved["all-reduce"] <= 1.05 * found["trained_bytes"], (name, moved)
        assert not {"reduce-scatter", "all-to-all", "collective-permute"} & set(moved), name


def assert_same_losses(steps, names):
    """As on one device, where nothing is moved."""
    assert steps["1"]["moved"] == {}
    assert steps["1"]["losses"][-1] < steps["1"]["losses"][0] - 0.3
    assert_steps(steps, names)
    for name in names:
        difference = np.abs(np.subtract(steps[name]["losses"], steps["1"]["losses"])).max()
        assert difference <= 1e-5, name


@pytest.mark.slow
def test_losses_are_those_of_one_device(eight):
    assert eight["devices"] == 8
    assert_same_losses(eight["steps"], {"8x1", "4x2", "1x8"})


@pytest.mark.slow
def test_several_tasks_are_those_of_one_device(eight):
    assert set(eight["tasks_apart"]) == {"mtlora", "tadformer"}
    assert max(eight["tasks_apart"].values()) < 1e-4


def test_gradients_of_what_layers_share_cross_the_network_once(eight):
    found = eight["lent"]
    assert found["apart"] < 1e-5
    assert found["moved"] == [{}, {"all-reduce": found["bytes"]}]


KERNELS = 4 * 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256)  # bytes, float32, two blocks


def test_only_the_weights_of_blocks_are_gathered(eight):
    gathered = {k: v["moved"].get("all-gather", 0) for k, v in eight["steps"].items()}
    assert gathered == {"1": 0, "8x1": 0, "4x2": KERNELS, "1x8": KERNELS}


@pytest.mark.parametrize(("name", "parts"), [("8x1", 1), ("4x2", 2), ("1x8", 8)])
def test_frozen_kernels_are_cut_over_fsdp(name, parts, eight):
    shards = eight["steps"][name]["shards"]
    kernels = [p for p in shards if "blocks" in p and p.endswith("kernel")]
    assert len(kernels) == 8
    for path, (whole, part) in shards.items():
        cut = parts if path in kernels else 1
        assert np.prod(whole) == cut * np.prod(part), path


@pytest.mark.parametrize("name", ["one", "eight"])
def test_runs_move_between_one_and_eight_devices(name, eight, reference):
    folder = eight["folder"] / name
    if name == "one":
        assert eight["one"] == 0
    else:
        assert eight["eight"] == 143 and not (folder / "result.json").exists()
        assert main(["train", f"--config={TINY}:method=lora", f"--workdir={folder}"]) == 0
    want = files.read_tensors(reference / "adapter" / "adapter.safetensors")
    got = files.read_tensors(folder / "adapter" / "adapter.safetensors")
    assert set(want) == set(got)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-5, rtol=1e-4, err_msg=path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == [5, 10, 12]


def test_evaluation_is_the_same_for_every_batch_size(eight, reference):
    first = eight["evaluations"]["1"]
    assert [index for index, _ in first["predicted"]] == list(range(40))
    assert first["values"]["examples"] == 40
    for size, found in eight["evaluations"].items():
        assert found["predicted"] == first["predicted"], size
        assert found["values"] == pytest.approx(first["values"], rel=1e-5), size


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("batch", "12 is not divisible by 8 devices; the nearest is 16"),
        ("parts", "8 devices x 4 parts; the nearest is 32"),
        ("mesh", "data=3"),
        ("remainder", "fsdp=3"),
    ],
)
def test_runs_that_do_not_fit_eight_devices(name, part, eight):
    code, err = eight["mistakes"][name]
    assert code == 2 and part in err and err.count("\n") == 1
    assert not (ROOT / "never").exists()


@pytest.mark.exhaustive
def test_every_method_on_eight_devices(tmp_path):
    steps = in_eight("more_steps", tmp_path)["steps"]
    whole = {name for name in steps if "parts" not in name} - {"1"}
    assert len(whole) == 9
    assert_steps(steps, whole)
    assert_same_losses(steps, {"8x1", "4x2", "1x8", "8x1 scan", "1x8 scan remat"})
    # With remat, the kernels are gathered once more in the backward pass.
    assert steps["1x8 scan remat"]["moved"]["all-gather"] == 2 * KERNELS
    assert steps["1x8"]["moved"]["all-gather"] == KERNELS
    difference = np.subtract(steps["8x1 parts"]["losses"], steps["1 parts"]["losses"])
    assert np.abs(difference).max() <= 1e-5
    # Parts are reduced one by one.
    part = steps["8x1 parts"]
    assert part["moved"]["all-reduce"] <= 2.05 * part["trained_bytes"]


@pytest.mark.exhaustive
def test_methods_that_share_leaves_on_eight_devices(tmp_path):
    for method, steps in in_eight("lending", tmp_path).items():
        one, eight = steps["1"], steps["8x1"]
        difference = np.abs(np.subtract(one["losses"], eight["losses"])).max()
        assert one["moved"] == {} and difference <= 1e-5, method
        # The rest are a few values of a batch: its features' mean, the load of experts.
        rest = eight["moved"]["all-reduce"] - eight["trained_bytes"]
        assert 0 < rest <= 2000, (method, rest)
