"""Methods side by side on a machine that isn't here."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from dynadapt.commands.config_file import read_config
from dynadapt.errors import UnknownName
from dynadapt.main import main
from dynadapt.plans import ahead, compare, machines, plan
from tests.devices import ROOT

TINY = str(ROOT / "tests" / "configs_tiny.py")


def given(*methods):
    return {method: read_config(TINY, f"method={method}") for method in methods}


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for the compiler: full fine-tuning does not fit."""

    def run(config, topology):
        found = {
            **{"settings": {}, "counts": {"trained": 512, "trained_with_head": 682}},
            **{"flops": 3_000_000_000, "fits": config.adapter.name != "full"},
            **{"batch_size": config.input.batch_size, "mesh": {"data": 4, "fsdp": 1}},
        }
        if not found["fits"]:
            return found | {"reason": "Ran out of memory in memory space hbm"}
        sizes = dict.fromkeys(("frozen", "trained", "optimizer", "batch", "temporaries"), 1 << 20)
        found |= {"memory": {**sizes, "total": 5 << 20}, "collectives": {"all-reduce": 2728}}
        return found | {"largest_batch": 96}

    monkeypatch.setattr(plan, "run", run)
    monkeypatch.setattr(machines, "devices", lambda name: [])


def test_a_row_for_each_method(compiler):
    configs = given("lora", "full")
    configs["vpt"] = read_config(TINY, "method=vpt")
    configs["vpt"].adapter.prompts = 0
    found = ahead.run(configs, "v5litepod-4")
    assert found["machine"] == "v5litepod-4" and found["chip_bytes"] == 16 * 2**30
    assert found["batch_size"] == 16 and found["mesh"] == {"data": 4, "fsdp": 1}
    lora, full, vpt = found["methods"]
    assert lora["fits"] is True and lora["memory"]["total"] == 5 << 20 and "reason" not in lora
    assert full["fits"] is False and full["reason"].startswith("Ran out of memory")
    assert "prompts" in vpt["reason"] and "fits" not in vpt


def test_what_is_printed(compiler, capsys):
    options = ["--methods=lora,full", f"--config={TINY}", "--topology=v5litepod-4"]
    assert main(["plan", *options]) == 0
    out = capsys.readouterr().out
    assert "vit_mini on v5litepod-4 of 16.00 GiB a chip, mesh data=4, fsdp=1, batch 16" in out
    lora, full = (line.split() for line in out.splitlines() if line.startswith("│ "))
    assert lora[1::2][:3] == ["lora", "512", "682"]
    for part in ("5.0 MiB", "3.0", "2.7 KiB", "yes, to 96"):
        assert part in " ".join(lora)
    assert "NO: Ran out of memory" in " ".join(full)


def test_an_unknown_machine_is_told_before_anything_is_traced(monkeypatch):
    monkeypatch.setattr(compare, "refusals", lambda *args: pytest.fail("it traces"))
    with pytest.raises(UnknownName, match="'v5p-16'"):
        ahead.run(given("lora"), "v5p-12")


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'")
@pytest.mark.slow
def test_two_methods_for_four_chips():
    """In a process of its own: libtpu stays in the process that loads it."""
    argv = ["plan", "--methods=linear,lora", f"--config={TINY}", "--topology=v5litepod-4", "--json"]
    command = [sys.executable, "-m", "dynadapt", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mesh"] == {"data": 4, "fsdp": 1}
    linear, lora = found["methods"]
    assert (linear["counts"]["trained"], lora["counts"]["trained"]) == (0, 512)
    assert linear["flops"] < lora["flops"] and linear["fits"] and lora["fits"]
    assert linear["memory"]["optimizer"] < lora["memory"]["optimizer"]
