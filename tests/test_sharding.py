"""Meshes: rules as pure functions, and 8 CPU devices, in a process of their own, as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from dynadapt import files, sharding, train
from dynadapt.errors import ConfigError, MachineError
from dynadapt.main import main
from tests import devices

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
    command = [sys.executable, str(Path(__file__).with_name("eight_devices.py")), job, str(folder)]
    done = subprocess.run(command, env=devices.eight(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def stopped_run(folder):
    """A run on one device, stopped after 5 of its 12 steps."""
    with pytest.MonkeyPatch.context() as patch:
        real = train.make_step

        def make(*args):
            taken, count = real(*args), [0]

            def counted(*rest):
                count[0] += 1
                if count[0] == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                return taken(*rest)

            return counted

        patch.setattr(train, "make_step", make)
        assert main(["train", f"--config={TINY}:method=lora", f"--workdir={folder}"]) == 143


# Together in one worker: what they share is made in a process of eight devices.
pytestmark = pytest.mark.xdist_group("sharding")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run on one device from start to end."""
    work = tmp_path_factory.mktemp("reference") / "run"
    assert main(["train", f"--config={TINY}:method=lora", f"--workdir={work}"]) == 0
    return work


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
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


def test_losses_are_those_of_one_device(eight):
    assert eight["devices"] == 8
    assert_same_losses(eight["steps"], {"8x1", "4x2", "1x8"})


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
    assert first["rows"]["index"] == list(range(40))
    assert first["values"]["examples"] == 40
    for size, found in eight["evaluations"].items():
        assert found["rows"]["index"] == first["rows"]["index"], size
        assert found["rows"]["prediction"] == first["rows"]["prediction"], size
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


@pytest.mark.slow
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


# Several processes.


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start_processes(count, work, port, *, present=None, options=(), each=(), timeout=60):
    """Starts the command in several processes that find each other."""
    processes = []
    for number in range(count) if present is None else present:
        env = {
            **os.environ,
            "DYNADAPT_DISTRIBUTED": f"localhost:{port},{count},{number}",
            "DYNADAPT_TIMEOUT": str(timeout),
        }
        own = each[number] if each else ()
        command = [
            *(sys.executable, "-m", "dynadapt", "train", f"--config={TINY}:method=lora"),
            *(f"--workdir={work}", *options, *own),
        ]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(subprocess.Popen(command, env=env, cwd=ROOT, **pipes))
    return processes


def finish(processes, limit=240):
    try:
        outs = [p.communicate(timeout=limit) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [p.returncode for p in processes], [o for o, _ in outs], [e for _, e in outs]


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path, reference):
    options = ("--config.save_every=4", "--config.eval_every=6")
    work = tmp_path / "run"
    both = start_processes(2, work, free_port(), options=(*options, "--json"))
    codes, outs, errs = finish(both)
    assert codes == [0, 0], errs
    assert json.loads(outs[0]) == files.read_json(work / "result.json") and outs[1] == ""
    assert "Traceback" not in errs[0] + errs[1]
    want = files.read_tensors(reference / "adapter" / "adapter.safetensors")
    got = files.read_tensors(work / "adapter" / "adapter.safetensors")
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-5, rtol=1e-4, err_msg=path)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in rows] == [
        *(("train", 5), ("eval", 6), ("train", 10), ("train", 12), ("eval", 12)),
    ]
    lines = [(f / "predictions.csv").read_text().split() for f in (reference, work)]
    assert [row.split(",")[:3] for row in lines[0]] == [row.split(",")[:3] for row in lines[1]]
    assert main(["verify", f"--workdir={work}"]) == 0


@pytest.mark.slow
def test_two_processes_stop_and_go_on_as_one(tmp_path, reference):
    work = tmp_path / "run"
    options = ("--config.save_every=1", "--config.log.every=1")
    processes = start_processes(2, work, free_port(), options=options)
    while not list((work / "checkpoints").glob("[1-9]*/manifest.json")):
        assert all(p.poll() is None for p in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # one of them is asked, both stop
    codes, _, errs = finish(processes)
    assert codes == [143, 143], errs
    assert "stopped and saved" in errs[0]
    assert main(["train", f"--config={TINY}:method=lora", f"--workdir={work}", *options]) == 0
    want = files.read_tensors(reference / "adapter" / "adapter.safetensors")
    got = files.read_tensors(work / "adapter" / "adapter.safetensors")
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-5, rtol=1e-4, err_msg=path)


@pytest.mark.slow
def test_processes_with_other_configs_all_end(tmp_path):
    each = [(), ("--config.optim.lr=0.5",)]
    codes, _, errs = finish(start_processes(2, tmp_path / "run", free_port(), each=each))
    assert codes == [2, 2], errs
    for err in errs:
        assert "dynadapt: processes [1] run another config than process 0" in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_a_process_that_waits_in_vain_says_so(present, tmp_path):
    processes = start_processes(2, tmp_path / "run", free_port(), present=[present], timeout=5)
    codes, _, errs = finish(processes, limit=120)
    assert codes == [2], errs
    last = [line for line in errs[0].splitlines() if line.startswith("dynadapt: ")]
    assert len(last) == 1 and "same command" in last[0]
    assert f"processes [{1 - present}] did not report within 5 s" in last[0]
    assert "Traceback" not in errs[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["localhost", "localhost:1,2", "localhost:1,two,0", "localhost,2,0"]
)
def test_malformed_addresses(text, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DISTRIBUTED", text)
    with pytest.raises(MachineError, match="host:port,count,number"):
        sharding.start_processes()


def test_malformed_timeouts(monkeypatch):
    monkeypatch.setenv("DYNADAPT_DISTRIBUTED", "localhost:1,2,0")
    monkeypatch.setenv("DYNADAPT_TIMEOUT", "soon")
    with pytest.raises(MachineError, match="DYNADAPT_TIMEOUT"):
        sharding.start_processes()


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.delenv("DYNADAPT_DISTRIBUTED", raising=False)
    sharding.start_processes()
    sharding.agree("00ff")
    assert jax.process_count() == 1
