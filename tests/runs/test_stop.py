"""A signal is heard at the next step; a second one acts at once."""

import os
import signal
import threading

import pytest

from dynadapt.runs.stop import Preempted, asked, interruptible, stop_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_the_next_one_acts(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with pytest.raises(Preempted) as stopped, stop_signal() as stop:
            assert not asked(stop, True)
            os.kill(os.getpid(), number)
            assert asked(stop, False) and heard == []
            os.kill(os.getpid(), number)
            assert heard == [number]
        assert stopped.value.code == 128 + number  # also where nothing else answered it
        os.kill(os.getpid(), number)
        assert heard == [number, number]  # what was there before is there again
    finally:
        signal.signal(number, before)


def test_batches_end_where_a_stop_is_asked_for():
    stop, seen = threading.Event(), []
    with pytest.raises(Preempted):
        for batch in interruptible(range(9), stop):
            seen.append(batch)
            if batch == 3:
                stop.set()
    assert seen == [0, 1, 2, 3]
    assert list(interruptible(range(3), threading.Event())) == [0, 1, 2]


def test_other_threads_hear_nothing():
    found = []

    def work():
        with stop_signal() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
