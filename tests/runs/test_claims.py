"""Claims: one owner, and what is no living owner's is given up; never an exception."""

import contextlib
import os
import platform
import subprocess
import sys
import threading
import time

import pytest

from dynadapt import files
from dynadapt.errors import ConfigError, MachineError
from dynadapt.runs import claims
from dynadapt.runs.claims import OWNER, STALE, Claims


@pytest.fixture(scope="module")
def dead():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def plant(folder, text, age=0.0):
    path = folder / OWNER
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def alive():
    return f"{platform.node()} {os.getpid()} theirs"


def test_of_many_at_once_one_takes_it(tmp_path):
    every, ready = [Claims(tmp_path) for _ in range(16)], threading.Barrier(16)
    taken = []

    def take(own):
        ready.wait()
        taken.append(own.take("it"))

    threads = [threading.Thread(target=take, args=(own,)) for own in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 15 + [True]
    assert [own.holds("it") for own in every].count(True) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_given_up_at_every_end(error, tmp_path):
    with pytest.raises(error) if error else contextlib.nullcontext():
        with claims.owner(tmp_path / "run"):
            assert (tmp_path / "run" / OWNER).exists()
            if error:
                raise error
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("age", [0, STALE / 2, -STALE / 2])
def test_a_living_owner_is_named(age, tmp_path):
    plant(tmp_path, alive(), age)
    for attempt in (claims.refuse, lambda folder: claims.owner(folder).__enter__()):
        with pytest.raises(ConfigError) as error:
            attempt(tmp_path)
        assert f"in use by process {os.getpid()} on {platform.node()}" in str(error.value)
        assert "\n" not in str(error.value) and "give another --workdir" in str(error.value)


@pytest.mark.parametrize("age", [STALE + 60, -STALE - 60, -(10**9)])
@pytest.mark.parametrize("text", ["elsewhere 1 theirs", "", b"\xff\xfe\0", "x" * 10**6, "a -1 b"])
def test_what_is_no_sign_of_life_is_given_up(text, age, tmp_path):
    plant(tmp_path, text, age)
    with claims.owner(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", b"\xff\0\xfe", "{}", "x" * 10**6, *(f"{platform.node()} {n}" for n in ("x", -1, 10**30))],
)
def test_garbage_of_now_is_refused_in_a_sentence(text, tmp_path):
    plant(tmp_path, text)
    with pytest.raises(ConfigError, match="is in use by") as error:
        claims.refuse(tmp_path)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_dead_process_here_is_passed_over_at_once(dead, tmp_path):
    plant(tmp_path, f"{platform.node()} {dead} theirs")
    claims.refuse(tmp_path)
    with claims.owner(tmp_path):
        with pytest.raises(ConfigError, match="in use"):
            claims.refuse(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / OWNER
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("none")
    else:
        os.mkfifo(path)
    with pytest.raises(ConfigError, match="a process without a name"):
        claims.refuse(tmp_path)
    then = time.time() - STALE - 60
    os.utime(path, (then, then), follow_symlinks=False)
    with claims.owner(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_is_touched_only_while_it_is_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "TOUCH", 0.02)
    with claims.owner(tmp_path) as still_ours:
        still_ours()
        path = tmp_path / OWNER
        os.utime(path, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 1.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime != 1.0
        plant(tmp_path, "elsewhere 1 theirs", time.time() - 1)
        time.sleep(0.1)
        assert path.stat().st_mtime < 2
        with pytest.raises(MachineError, match="is no longer this process's"):
            still_ours()
    assert path.read_text() == "elsewhere 1 theirs"


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="nothing can be written in .*give another --out"):
        with claims.owner(tmp_path / "file" / "run", option="--out"):
            pass


def test_what_killed_processes_left_goes(tmp_path):
    """What lies in folders that are not ours may be of a process that lives."""
    for part in ("", "mine", "other"):
        (tmp_path / part / "7.orbax-checkpoint-tmp").mkdir(parents=True)
        files.partial_name(tmp_path / part / "a.json").write_text("half")
    with claims.owner(tmp_path, ["mine", "none"]):
        left = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
        assert left == {OWNER, "mine", "other"}
        assert len(list((tmp_path / "other").iterdir())) == 2
        assert list((tmp_path / "mine").iterdir()) == []


def test_a_new_owner_that_sweeps_meanwhile_is_named(tmp_path, monkeypatch):
    """What a loser is about to give its name to is among what the winner sweeps."""
    link = os.link

    def swept_first(source, target):
        monkeypatch.setattr(os, "link", link)
        plant(tmp_path, f"{platform.node()} {os.getpid()} winner")
        files.sweep(tmp_path)
        return link(source, target)

    monkeypatch.setattr(os, "link", swept_first)
    with pytest.raises(ConfigError, match="is in use by process"), claims.owner(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [OWNER]
