"""Training steps of several methods, timed here and compiled for machines that aren't here."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from dynadapt.bench import step
from dynadapt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'"
)


def in_process(*argv):
    """The command in a process of its own: libtpu stays in the process that loads it."""
    command = [sys.executable, "-m", "dynadapt", "bench", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_steps_of_several_methods():
    result = step.run("vit_mini", ["linear", "dapt", "lora"], 2, 2)
    linear, dapt, lora = result["rows"]
    assert linear["over_first"]["ratio"] == 1.0 and lora["gflop"] >= linear["gflop"]
    assert "point clouds" in dapt["reason"] and "ms" not in dapt


@pytest.mark.slow
def test_on_a_device_whose_peak_is_known(monkeypatch):
    real = step.step

    def made(backbone, method, batch):
        if method == "full":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(backbone, method, batch)

    monkeypatch.setattr(step, "step", made)
    monkeypatch.setitem(step.PEAKS["bfloat16"], jax.devices()[0].device_kind, 1e12)
    full, linear = step.run("vit_mini", ["full", "linear"], 2, 1)["rows"]
    assert full["reason"] == "it does not fit the device" and "ms" not in full
    assert linear["share_of_peak"] == pytest.approx(linear["gflop"] / linear["ms"], abs=1e-4)


def test_a_plan_as_a_row():
    memory = dict(frozen=1, trained=2, optimizer=4, batch=1, temporaries=8, total=16)
    found = {
        "flops": 3e12,
        "fits": True,
        "memory": {name: size * 2**29 for name, size in memory.items()},
        "collectives": {"all-reduce": 90, "all-gather": 10},
        "counts": {"trained_bytes": 80},
    }
    assert step.told(found) == dict(
        tflop=3.0, fits=True, arguments=4.0, temporaries=4.0, total=8.0, moved_over_trained=1.25
    )
    full = step.told({"flops": 1e12, "fits": False, "reason": "Ran out of memory"})
    assert full == dict(tflop=1.0, fits=False, reason="Ran out of memory")


def test_where_it_runs():
    done = in_process("bank", "--topology=v5e:2x2")
    assert done.returncode == 2 and "bench bank takes no --topology" in done.stderr


@needs_libtpu
@pytest.mark.slow
def test_methods_for_sixteen_chips():
    argv = ["--backbone=vit_mini", "--methods=iconformer,dapt", "--batch=64"]
    done = in_process("step", *argv, "--topology=v5e:4x4", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    served, other = json.loads(done.stdout)["rows"]
    assert served["fits"] is True and 0 < served["moved_over_trained"] <= 1.05
    assert 0 < served["arguments"] <= served["total"] < 0.5 and served["tflop"] > 0
    assert "point clouds" in other["reason"] and "fits" not in other


@needs_libtpu
@pytest.mark.slow
def test_a_batch_that_sixteen_chips_cannot_share():
    argv = ["--backbone=vit_mini", "--methods=lora", "--batch=24", "--topology=v5e:4x4"]
    done = in_process("step", *argv)
    assert done.returncode == 2 and "24 is not divisible by 16 devices" in done.stderr


def test_nothing_is_compiled_for_a_method_that_does_not_exist():
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        step.ahead("vit_mini", ["lorra"], 16, "v5e:4x4")
