"""How processes end early: a line and a code for each signal, and who is lost of several."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dynadapt import ending

# A process that hears signals as the command does, while its main thread does one of these.
HEARING = """
import signal, sys, time
from dynadapt import ending
sys.argv[1:] = ["train", "--workdir=a b"]
ending.hold()
print("held", flush=True)
sys.stdin.readline()
ending.listen()
if {saving}:
    with ending.left_to(ending.Stop()) as _: time.sleep(60)
{work}
"""
WORK = {"sleep": "time.sleep(60)", "compute": "while True: pass"}


def hearing(work="sleep", saving=False):
    code = HEARING.format(work=WORK[work], saving=saving)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("number", ending.SIGNALS)
@pytest.mark.parametrize("work", WORK)
def test_a_signal_ends_a_process_with_a_line(work, number):
    process = hearing(work)
    process.send_signal(number)  # waits until it is listened to
    time.sleep(0.05)
    assert process.poll() is None
    _, err = process.communicate("go\n", timeout=10)
    assert process.returncode == 128 + number
    assert err == "dynadapt: stopped; go on with: dynadapt train '--workdir=a b'\n"


def test_a_signal_is_kept_while_a_process_starts_anew():
    again = "from dynadapt import ending; import time; ending.listen(); time.sleep(60)"
    code = "import os, sys\nfrom dynadapt import ending\nending.hold()\nprint('held', flush=True)\n"
    code += f"sys.stdin.readline()\nos.execv(sys.executable, [sys.executable, '-c', {again!r}])"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate("go\n", timeout=20)
    assert process.returncode == 130 and err.count("\n") == 1


@pytest.mark.parametrize("first", ending.SIGNALS)
@pytest.mark.parametrize("second", ending.SIGNALS)
def test_the_second_signal_ends_what_would_save(first, second):
    process = hearing(saving=True)
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(0.1)
    process.send_signal(first)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(second)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + second and err.count("\n") == 1


@pytest.fixture
def ended(monkeypatch):
    """What a process would have ended with."""
    found = []
    monkeypatch.setattr(ending, "end", lambda *given: found.append(given))
    monkeypatch.setattr(ending, "_heard", [])
    return found


def test_signals_go_to_who_saves_once(ended):
    stop = ending.Stop()
    with ending.left_to(stop):
        ending.hear(signal.SIGINT)
        assert stop.is_set() and stop.number == signal.SIGINT and not ended
        ending.hear(signal.SIGTERM)
    assert ended == [(143, "stopped")]
    ending.hear(signal.SIGINT)
    assert ended[1:] == [(130, "stopped")]


class Store:
    """A store of keys and values, as JAX's client has one; `gone` where process 0 is."""

    def __init__(self):
        self.values, self.gone = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.gone:
            raise RuntimeError("no connection")
        self.values[key] = value

    def key_value_dir_get(self, key):
        if self.gone:
            raise RuntimeError("no connection")
        return [(k, v) for k, v in self.values.items() if k.startswith(key)]


def beat(watches, store, silent=()):
    """One beat of all processes but the silent ones."""
    for watch in watches:
        if watch.number not in silent:
            watch.beats += 1
            watch.send(str(watch.beats))
    for watch in watches:
        if watch.number not in silent and not store.gone:
            watch.read(dict(store.key_value_dir_get(ending.SIGNS)))


def job(count, silence=5):
    store = Store()
    return store, [ending.Watch(store, i, count, silence) for i in range(count)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("silent", [1, 2])
def test_who_gives_no_sign_is_lost(count, silent):
    store, watches = job(count)
    beat(watches, store)
    left = [w for w in watches if w.number != silent]
    for _ in range(5):
        beat(watches, store, [silent])
        assert not any(w.lost() for w in left)
    beat(watches, store, [silent])
    for w in left:
        assert w.lost() == ([silent] if silent < count else [])


def test_a_pause_that_ends_in_time_is_none():
    store, watches = job(3)
    for _ in range(4):
        for silent in (1, 2, 0):  # of itself, too, a process that was paused thinks nothing
            for _ in range(4):
                beat(watches, store, [silent])
            beat(watches, store)
            assert not any(w.lost() for w in watches)


def test_process_0_that_does_not_answer_is_lost():
    store, watches = job(3)
    beat(watches, store)
    store.gone = True
    for _ in range(6):
        beat(watches, store, [0])
    assert [w.lost() for w in watches[1:]] == [[0], [0]]


def test_who_took_leave_is_not_lost():
    store, watches = job(2)
    watches[1].done()
    watches[1].send("7")  # a beat that comes too late
    for _ in range(20):
        beat(watches, store, [1])
    assert watches[0].lost() == []


def test_the_others_hear_from_process_0_who_is_lost(ended):
    store, watches = job(3)
    watches[0].send("1 4", ending.VERDICT)
    beat(watches, store)
    assert watches[2].lost() == [1, 4]
    watches[2]._look()
    [(code, text)] = ended
    assert code == ending.PEER_LOST and "processes 1, 4 gave no sign of life" in text


def test_who_was_asked_to_end_gets_that_code(ended):
    stop = ending.Stop()
    with ending.left_to(stop):
        ending.hear(signal.SIGTERM)
    ending.lost([1])
    assert ended[0][0] == 143 and "process 1 gave" in ended[0][1]


def test_a_line_that_nobody_reads_keeps_no_process():
    code = "import os, sys\nfrom dynadapt import ending\nos.write(2, b'x' * 65536)\n"
    read, write = os.pipe()
    try:
        ask = [sys.executable, "-c", f"{code}ending.end(3, 'lost')"]
        assert subprocess.run(ask, stderr=write, timeout=10).returncode == 3
    finally:
        os.close(read)
        os.close(write)
