"""Which steps are traced, where the trace lies, and what closes it."""

from pathlib import Path

import jax
import pytest

from dynadapt.errors import ConfigError
from dynadapt.runs import profile
from dynadapt.runs.profile import Profile, Window


@pytest.mark.parametrize("text", ["", "3", "5:5", "6:5", "-1:2", "1:2:3", "a:b", "1:2:", "1:٣"])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ConfigError, match="must be START:STOP"):
        profile.window(text)


def test_windows():
    assert profile.window("20:25") == Window(20, 25)
    assert profile.window("0:1:all") == Window(0, 1, everywhere=True)
    profile.check(None, 4)
    profile.check(Window(2, 4), 4)
    with pytest.raises(ConfigError, match="ends after step 5, and the run has 4; .* 2:4"):
        profile.check(Window(3, 5), 4)


@pytest.fixture
def profiler(monkeypatch):
    """JAX's, as far as files go; `.events` has what was asked of it."""

    class Profiler:
        events = []
        number = 0

        def start_trace(self, folder):
            self.folder = folder
            self.events.append("start")

        def stop_trace(self):
            self.number += 1
            place = Path(self.folder) / "plugins" / "profile" / str(self.number)
            place.mkdir(parents=True)
            (place / "host.xplane.pb").write_text("")
            self.events.append("stop")

    made = Profiler()
    made.events = []
    monkeypatch.setattr(jax, "profiler", made)
    return made


def trained(folder, asked, steps, profiler, done=0):
    """Steps with what a run asks at each; what was said."""
    said = []
    with Profile(folder, asked, done, said.append) as profiled:
        for number in range(done, steps):
            profiled.begin(number, ())
            profiler.events.append(number + 1)
            profiled.end(number + 1, ())
    return said


def left(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_steps_after_the_first_number_are_traced(profiler, tmp_path):
    said = trained(tmp_path, Window(1, 3), 4, profiler)
    assert profiler.events == [1, "start", 2, 3, "stop", 4]
    assert left(tmp_path) == ["profile/plugins/profile/1/host.xplane.pb"]
    assert said == [f"steps 2 to 3 are traced in {tmp_path / 'profile'}"]
    assert [p.name for p in tmp_path.iterdir()] == ["profile"]


def test_a_stop_closes_the_trace_and_the_rest_lies_beside_it(profiler, tmp_path):
    assert "steps 2 to 2 " in trained(tmp_path, Window(1, 4), 2, profiler)[0]
    assert profiler.events == [1, "start", 2, "stop"]
    assert "steps 3 to 4 " in trained(tmp_path, Window(1, 4), 5, profiler, done=2)[0]
    assert profiler.events[4:] == ["start", 3, 4, "stop", 5]
    assert [p.split("/")[3] for p in left(tmp_path)] == ["1", "2"]
    said = trained(tmp_path, Window(1, 4), 6, profiler, done=5)
    assert said == ["the steps of --profile=1:4 are done: nothing is traced"]
    assert profiler.events[9:] == [6]


def test_other_processes_trace_where_asked(profiler, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    assert trained(tmp_path, Window(0, 1), 1, profiler) == []
    assert profiler.events == [1]
    trained(tmp_path, Window(0, 1, everywhere=True), 1, profiler)
    assert left(tmp_path) == ["profile/process_3/plugins/profile/1/host.xplane.pb"]


def test_a_run_without_it_is_left_alone(profiler, tmp_path):
    assert trained(tmp_path, None, 2, profiler) == []
    assert profiler.events == [1, 2] and left(tmp_path) == []
