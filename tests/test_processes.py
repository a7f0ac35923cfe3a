"""Several processes: they are as one, stop as one, and say what keeps them from meeting."""

import json
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dynadapt import files, processes
from dynadapt.errors import MachineError
from dynadapt.main import main
from tests import devices

TINY = str(Path(__file__).with_name("configs_tiny.py"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run in one process from start to end."""
    work = tmp_path_factory.mktemp("reference") / "run"
    assert main(["train", f"--config={TINY}:method=lora", f"--workdir={work}"]) == 0
    return work


pytestmark = pytest.mark.usefixtures("fast_compiling")


def start_two(work, *, options=(), each=((), ()), **given):
    """Starts the training in two processes."""
    command = [
        *(sys.executable, "-m", "dynadapt", "train", f"--config={TINY}:method=lora"),
        *(f"--workdir={work}", *options),
    ]
    return devices.several([[*command, *own] for own in each], **given)


def assert_same_adapter(work, reference):
    want = files.read_tensors(reference / "adapter" / "adapter.safetensors")
    got = files.read_tensors(work / "adapter" / "adapter.safetensors")
    assert set(want) == set(got)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-5, rtol=1e-4, err_msg=path)


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path, reference):
    options = ("--config.save_every=4", "--config.eval_every=6")
    work = tmp_path / "run"
    codes, outs, errs = devices.finish(start_two(work, options=(*options, "--json")))
    assert codes == [0, 0], errs
    assert json.loads(outs[0]) == files.read_json(work / "result.json") and outs[1] == ""
    assert "Traceback" not in errs[0] + errs[1]
    assert_same_adapter(work, reference)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in rows] == [
        *(("train", 5), ("eval", 6), ("train", 10), ("train", 12), ("eval", 12)),
    ]
    tables = [(f / "predictions" / "predictions.csv").read_text() for f in (reference, work)]
    lines = [table.splitlines() for table in tables]
    assert len(lines[0]) == 41
    assert [row.split(",")[:3] for row in lines[0]] == [row.split(",")[:3] for row in lines[1]]
    assert main(["verify", f"--workdir={work}"]) == 0


@pytest.mark.slow
def test_two_processes_stop_and_go_on_as_one(tmp_path, reference):
    work = tmp_path / "run"
    options = ("--config.save_every=1", "--config.log.every=1")
    both = start_two(work, options=options)
    while not list((work / "checkpoints").glob("[1-9]*/manifest.json")):
        assert all(p.poll() is None for p in both)
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)  # one of them is asked, both stop
    codes, _, errs = devices.finish(both)
    assert codes == [143, 143], errs
    assert "stopped and saved" in errs[0]
    assert main(["train", f"--config={TINY}:method=lora", f"--workdir={work}", *options]) == 0
    assert_same_adapter(work, reference)


@pytest.mark.slow
def test_processes_with_other_configs_all_end(tmp_path):
    both = start_two(tmp_path / "run", each=[(), ("--config.optim.lr=0.5",)])
    codes, _, errs = devices.finish(both)
    assert codes == [2, 2], errs
    for err in errs:
        assert "dynadapt: processes [1] run another config than process 0" in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_a_process_that_waits_in_vain_says_so(present, tmp_path):
    alone = start_two(tmp_path / "run", present=[present], timeout=5)
    codes, _, errs = devices.finish(alone, limit=120)
    assert codes == [2], errs
    last = [line for line in errs[0].splitlines() if line.startswith("dynadapt: ")]
    assert len(last) == 1 and "same command" in last[0]
    assert f"processes [{1 - present}] did not report within 5 s" in last[0]
    assert "Traceback" not in errs[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_of_three_the_one_that_is_missing_is_named(tmp_path):
    command = [sys.executable, "-m", "dynadapt", "train", f"--config={TINY}:", "--workdir=none"]
    for missing in range(3):
        present = [number for number in range(3) if number != missing]
        begun = time.monotonic()
        some = devices.several(3 * [command], present=present, timeout=6)
        codes, _, errs = devices.finish(some, limit=120)
        assert codes == [2, 2] and time.monotonic() - begun < 60
        assert all(f"processes [{missing}] did not report within 6 s" in err for err in errs)


LOST = [
    *((2, victim, how) for victim in (0, 1) for how in (signal.SIGKILL, signal.SIGSTOP)),
    *((3, victim, how) for victim in (0, 1, 2) for how in (signal.SIGKILL, signal.SIGSTOP)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "victim", "how"),
    [pytest.param(*c, marks=() if i in (0, 3) else pytest.mark.exhaustive)
     for i, c in enumerate(LOST)],
)  # fmt: skip
def test_a_process_that_is_lost_is_named_by_the_others(count, victim, how, tmp_path):
    """Killed or stopped in training: one line, exit code 3, within the bound of docs/launch.md."""
    work = tmp_path / "run"
    processes = started_training(work, count)
    begun = time.monotonic()
    processes[victim].send_signal(how)
    others = [p for p in processes if p is not processes[victim]]
    try:
        codes, _, errs = devices.finish(others, limit=60)
    finally:
        processes[victim].kill()
        processes[victim].communicate()
    assert codes == [3] * len(others), errs
    assert time.monotonic() - begun < WAITED + 10
    for err in errs:
        [line] = [row for row in err.splitlines() if row.startswith("dynadapt: ")]
        assert f"process {victim} gave no sign of life" in line
        assert f"go on with: dynadapt train --config={TINY}" in line
        assert "Traceback" not in err and "coordination" not in err and "terminate" not in err
    for manifest in (work / "checkpoints").glob("[1-9]*/manifest.json"):
        json.loads(manifest.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_process_that_pauses_is_waited_for(victim, tmp_path):
    both = started_training(tmp_path / "run", 2)
    both[victim].send_signal(signal.SIGSTOP)
    time.sleep(3)
    both[victim].send_signal(signal.SIGCONT)
    time.sleep(1)
    assert all(p.poll() is None for p in both)
    both[1].send_signal(signal.SIGTERM)
    codes, _, errs = devices.finish(both)
    assert codes == [143, 143], errs


WAITED = 8  # seconds that these processes wait for each other


def started_training(work, count):
    """The processes of a long training that has saved its first state."""
    command = [
        *(sys.executable, "-m", "dynadapt", "train", f"--config={TINY}:method=lora,steps=100000"),
        *(f"--workdir={work}", "--config.input.batch_size=12", "--config.save_every=10"),
        "--config.log.every=10",
    ]
    processes = devices.several(count * [command], timeout=WAITED)
    while not list((work / "checkpoints").glob("[1-9]*/manifest.json")):
        assert all(p.poll() is None for p in processes), devices.finish(processes)
        time.sleep(0.05)
    return processes


@pytest.mark.slow
def test_what_processes_tell_each_other():
    command = [sys.executable, str(Path(__file__).with_name("gathering.py"))]
    codes, outs, errs = devices.finish(devices.several([command, command]))
    assert codes == [0, 0], errs
    first, second = (json.loads(out.splitlines()[-1]) for out in outs)  # Gloo says a word before
    assert first == second
    assert first["rows"] == {"a": [0, 1, 10, 11], "b": [[0], [0], [1], [1]]}
    assert first["bytes"] == [[[], [0, 1, 2]], [[], []], [[1, 0], [1, 0]]]
    assert first["any"] == [True, False]
    assert first["strangers"] == "processes [1] run another config than process 0"


@pytest.mark.parametrize(
    "text", ["localhost", "localhost:1,2", "localhost:1,two,0", "localhost,2,0"]
)
def test_malformed_addresses(text, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DISTRIBUTED", text)
    with pytest.raises(MachineError, match="host:port,count,number"):
        processes.start()


@pytest.mark.parametrize(
    "text, part",
    [
        ("localhost:1,2,2", "no process 2 of 2"),
        ("localhost:1,2,5", "no process 5 of 2"),
        ("localhost:99999,2,0", "no port is 99999"),
        ("localhost:0,2,0", "no port is 0"),
        ("localhost:1,0,0", "1 to 100000 processes, not 0"),
        ("localhost:1,100000000000,0", "1 to 100000 processes"),
        ("localhost:1," + 5000 * "9" + ",0", "1 to 100000 processes"),
        ("localhost:1,2,-1", "host:port,count,number"),
    ],
)
def test_processes_that_cannot_be_are_refused_at_once(text, part, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DISTRIBUTED", text)
    begun = time.monotonic()
    with pytest.raises(MachineError, match=part):
        processes.start()
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("text", ["soon", "0", "-1", "1.5", "", "99999999999", "\uff11"])
def test_malformed_timeouts(text, monkeypatch):
    monkeypatch.setenv("DYNADAPT_DISTRIBUTED", "localhost:1,2,0")
    monkeypatch.setenv("DYNADAPT_TIMEOUT", text)
    with pytest.raises(MachineError, match="DYNADAPT_TIMEOUT"):
        processes.start()


@pytest.mark.slow
def test_strangers_and_doubles_do_not_keep_processes_from_meeting():
    """Who says no number, one that isn't there, or one twice is no process that is missing."""
    port = devices.free_port()
    found = {}

    def meet(name, number, count=3):
        try:
            processes.meet(f"localhost:{port}", count, number, 4)
            found[name] = ""
        except MachineError as error:
            found[name] = str(error)

    names = {"first": 0, "second": 1, "double": 1, "stranger": 7}
    threads = [threading.Thread(target=meet, args=item) for item in names.items()]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n")
    for thread in threads:
        thread.join(20)
    assert {*found} == {*names}
    said = {name: text.split(";")[0] for name, text in found.items()}
    assert said == dict.fromkeys(names, "processes [2] did not report within 4 s")


def test_alone_nothing_is_started_and_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("DYNADAPT_DISTRIBUTED", raising=False)
    processes.start()
    processes.agree("00ff")
    rows = {"a": np.arange(3)}
    assert processes.gather_rows(rows) is rows
    assert processes.gather_bytes(b"own") == [b"own"]
    assert [processes.any_process(flag) for flag in (False, True)] == [False, True]
    assert jax.process_count() == 1
