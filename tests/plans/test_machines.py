"""Names of machines that aren't here, and the devices that their compilers describe."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from dynadapt.errors import MachineError, UnknownName
from dynadapt.main import main
from dynadapt.plans import machines
from tests.devices import ROOT

TINY = str(ROOT / "tests" / "configs_tiny.py")


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5e-16", "v5e:4x4"),
        ("v6e-16", "v6e:4x4"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-16", "v5p:2x2x2"),
        ("v5p-12288", "v5p:16x16x24"),
        ("v4-32", "v4:2x2x4"),
    ],
)
def test_accelerators_have_topologies(name, topology):
    assert machines.TOPOLOGIES[name] == topology


def test_names_count_chips_or_their_two_cores():
    for name, topology in machines.TOPOLOGIES.items():
        kind, count = name.rsplit("-")
        chips = math.prod(map(int, topology.split(":")[1].split("x")))
        assert int(count) == chips * (2 if kind in ("v4", "v5p") else 1)


def test_memory_of_a_chip():
    assert machines.memory("v5litepod-16") == machines.memory("v5e:4x4") == 16 * 2**30
    assert machines.memory("v5p-16") == 95 * 2**30
    assert 79 * 2**30 < machines.memory("h100") < 80 * 2**30
    assert machines.memory("v3:2x2") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p-70", "did you mean 'v5p-64' or 'v5p-32'?"),
        ("v5litepod-16x", "'v5litepod-16'"),
        ("h10", "'h100'"),
        ("quantum", "v5litepod-16, v5p-16, v6e-16"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name, said):
    with pytest.raises(UnknownName) as told:
        machines.devices(name)
    assert f"unknown topology {name!r}; " in str(told.value) and said in str(told.value)


def test_without_libtpu(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # undone at the end
    with pytest.raises(MachineError, match="libtpu"):
        machines.devices("v5e:4x4")
    assert main(["plan", f"--config={TINY}", "--topology=v5e:4x4"]) == 2
    err = capsys.readouterr().err
    assert err == "dynadapt: compiling for TPUs needs libtpu: pip install 'dynadapt[tpu]'\n"


def test_without_the_cuda_plugin(capsys):
    if find_spec("jax_cuda13_plugin") or find_spec("jax_cuda12_plugin"):
        pytest.skip("the CUDA plugin is here")
    with pytest.raises(MachineError, match="CUDA plugin"):
        machines.devices("h100")


needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'"
)

COUNTS = """
import json
from dynadapt.errors import UnknownName
from dynadapt.plans import machines

found = {}
for name in ("v5litepod-1", "v5litepod-16", "v6e-8", "v5p-16", "v4-8", "v5e:2x4", "v5e:3x99"):
    try:
        found[name] = len(machines.devices(name))
    except UnknownName as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@needs_libtpu
@pytest.mark.slow
def test_devices_are_chips():
    """In a process of its own: libtpu stays in the process that loads it."""
    command = [sys.executable, "-c", COUNTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    unknown = found.pop("v5e:3x99")
    assert unknown.startswith("unknown topology 'v5e:3x99'; did you mean 'v5e:")
    chips = {"v5litepod-1": 1, "v5litepod-16": 16, "v6e-8": 8, "v5p-16": 8, "v4-8": 4}
    assert found == {**chips, "v5e:2x4": 8}
