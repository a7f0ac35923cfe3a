"""Signals in each phase and at random moments: the right code, one line, and nothing lost."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from dynadapt import ending
from tests.faults.forked import PHASES, Forker

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")
OPTIONS = (
    f"--config={TINY}:method=lora,steps=16",
    "--config.save_every=4",
    "--config.eval_every=6",
    "--config.log.every=1",
    "--config.optim.ema=0.9",
)
KILL = signal.SIGKILL
NUMBERS = (signal.SIGTERM, signal.SIGINT, KILL)
# In the order in which a run comes to them; after `finish` it is whole.
ORDER = [
    *("data", "model", "start", "restore", "compilation", "saving", "evaluation", "predictions"),
    *("product", "finish"),
]
MOST = 10  # seconds from a signal to the end


@pytest.fixture(scope="module")
def forker():
    with Forker() as made:
        yield made


@pytest.fixture(scope="module")
def reference(forker, tmp_path_factory):
    """A run that nothing stopped, and about the seconds that it takes when all is compiled."""
    folder = tmp_path_factory.mktemp("reference")
    begun = time.monotonic()
    forker.start(train(folder), folder)
    assert forker.code() == 0, said(folder)
    return folder, (time.monotonic() - begun) / 2


def train(folder):
    return ["train", *OPTIONS, f"--workdir={folder / 'run'}"]


def said(folder):
    return (folder / "err").read_text()


def left(folder):
    """What a run leaves, but times and speed."""
    work, rows = folder / "run", []
    for line in (work / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {k: v for k, v in row.items() if k != "time" and not k.endswith("_per_second")}
        rows.append(kept)
    files = ("adapter/adapter.safetensors", "predictions/predictions.csv")
    return rows, [(work / name).read_bytes() for name in files]


def assert_ended(folder, code, number):
    """The code of the signal, and one line with the command that goes on."""
    assert code == (-number if number == KILL else 128 + number), said(folder)
    lines = [line for line in said(folder).splitlines() if line.startswith("dynadapt: ")]
    assert "Traceback" not in said(folder)
    if number == KILL:
        assert lines == []
    else:
        assert len(lines) == 1 and f"go on with: dynadapt train --config={TINY}" in lines[0], lines


def stopped_in(forker, folder, phase, number):
    forker.start(train(folder), folder, phase, number)
    assert_ended(folder, forker.code(), number)


def assert_goes_on(forker, folder, reference):
    forker.start(train(folder), folder)
    assert forker.code() == 0, said(folder)
    assert left(folder) == left(reference[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param({"compilation": 15, "saving": KILL, "evaluation": 2}, id="few"),
        pytest.param(
            dict(zip(ORDER, (15, 2, KILL, 15, 2, KILL, 15, KILL, KILL, 2), strict=True)),
            id="all", marks=pytest.mark.exhaustive,
        ),
    ],
)  # fmt: skip
def test_stopped_in_phase_after_phase(stops, forker, reference, tmp_path):
    """One run that is stopped in one phase after another, and goes on each time."""
    for phase, number in stops.items():
        stopped_in(forker, tmp_path, phase, number)
    assert_goes_on(forker, tmp_path, reference)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("phase", ORDER)
def test_stopped_in_a_phase(phase, number, forker, reference, tmp_path):
    stopped_in(forker, tmp_path, phase, number)
    assert_goes_on(forker, tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_plan_is_stopped(number, forker, tmp_path):
    forker.start(["plan", OPTIONS[0]], tmp_path, "compilation", number)
    assert forker.code() == 128 + number
    assert (tmp_path / "out").read_text() == "" and said(tmp_path).count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(NUMBERS[1:2], id="few"),
        pytest.param(50 * (KILL,), id="kills", marks=pytest.mark.exhaustive),
        pytest.param(20 * NUMBERS[:2], id="asked", marks=pytest.mark.exhaustive),
    ],
)
def test_stopped_at_random_moments(numbers, forker, reference, tmp_path):
    """Each start gets one signal; runs that end before it comes are whole, and begin anew."""
    rng, runs, slowest, codes = random.Random(len(numbers)), 0, 0.0, []
    folder = tmp_path / "0"
    folder.mkdir()
    for number in numbers:
        pid = forker.start(train(folder), folder)
        time.sleep(rng.uniform(0, reference[1]))
        sent = time.monotonic()
        os.kill(pid, number)
        codes.append(forker.code())
        slowest = max(slowest, time.monotonic() - sent)
        if codes[-1]:
            assert_ended(folder, codes[-1], number)
        else:
            assert left(folder) == left(reference[0])
            runs += 1
            folder = tmp_path / str(runs)
            folder.mkdir()
    assert slowest < MOST
    assert_goes_on(forker, folder, reference)
    print(f"{len(numbers)} signals, {codes.count(0)} too late, {runs + 1} runs, {slowest:.1f} s")


def test_phases_are_named():
    assert {*ORDER} <= {*PHASES}
