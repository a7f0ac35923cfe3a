"""The folder of a sweep: who works on what, and what is whole at any moment."""

import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import files
from dynadapt.errors import ConfigError, DataError, MachineError
from dynadapt.runs import claims
from dynadapt.sweep import results, store
from dynadapt.sweep.store import Store

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    **dict(suite="vtab", form="tfds", protocol="vtab", protocol_digest="a" * 64),
    **dict(backbone="vit_tiny", weights_sha256="b" * 64, methods={"lora": "c" * 64}),
}


def cell(number):
    return {"cell": f"{number:016x}"}


def line(number, **more):
    return {**cell(number), "task": "svhn", "data_fingerprint": "d" * 64, "top1": 50.0, **more}


CELLS = [cell(n) for n in range(6)]


def claimed(folder):
    return sorted(p.name for p in (folder / "claims").iterdir())


def lines(folder):
    text = (folder / results.FILE).read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(one) for one in text.splitlines()]


def plant(folder, number, host=None, process=None, age=0.0):
    """A claim of another process."""
    path = folder / "claims" / cell(number)["cell"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{host or platform.node()} {process or os.getpid()} {number:032x}")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@pytest.fixture
def dead():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def living():
    """The number of another process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


# Results.


def test_results_are_sorted_whole_lines(tmp_path):
    with Store(tmp_path / "a", SHARED) as kept:
        for numbers in ((4, 2), (), (0,), (3, 1)):
            kept.finish([line(n) for n in numbers])
            found = [one["cell"] for one in lines(tmp_path / "a")]
            assert found == sorted(kept.done())
    assert found == [c["cell"] for c in CELLS[:5]]
    assert not claimed(tmp_path / "a")


def test_the_next_process_knows_what_is_done(tmp_path):
    with Store(tmp_path, SHARED) as first:
        first.finish([line(1), line(3)])
    with Store(tmp_path, SHARED) as second:
        assert set(second.done()) == {cell(1)["cell"], cell(3)["cell"]}
        assert second.claim(CELLS, 9) == [CELLS[0], CELLS[2], *CELLS[4:]]


def test_nothing_is_written_where_nothing_is_new(tmp_path):
    with Store(tmp_path, SHARED) as first:
        first.finish([line(1)])
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*.json*")}
    with Store(tmp_path, SHARED) as second:
        second.finish([])
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*.json*")}
    assert after == before and len(after) == 3


def test_a_list_that_was_not_written_is_made_good(tmp_path):
    """A process may end between a result and the list of all, or in the middle of a cell."""
    with Store(tmp_path, SHARED) as first:
        first.finish([line(1)])
    files.write_json(tmp_path / "cells" / f"{cell(2)['cell']}.json", line(2))
    (tmp_path / "cells" / f".{cell(3)['cell']}.json.host.7").write_text('{"cell": "00')
    with Store(tmp_path, SHARED) as second:
        second.finish([])
    assert [one["cell"] for one in lines(tmp_path)] == [cell(1)["cell"], cell(2)["cell"]]


def test_the_list_is_whole_whenever_it_is_read(tmp_path):
    """Two stores finish cells by turns, while another thread reads the list."""
    stores = [Store(tmp_path, SHARED), Store(tmp_path, SHARED)]
    stores[0].finish([])
    faults, counts, over = [], [], threading.Event()

    def read():
        while not over.is_set():
            try:
                counts.append(len(lines(tmp_path)))
            except Exception as error:
                faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        stores[number % 2].finish([line(number, text="x" * 5000)])
    over.set()
    reader.join()
    assert not faults and counts == sorted(counts)
    assert len(lines(tmp_path)) == 40


# Claims.


def test_a_cell_is_claimed_once(tmp_path):
    with Store(tmp_path, SHARED) as one, Store(tmp_path, SHARED) as other:
        assert one.claim(CELLS, 2) == CELLS[:2]
        assert other.claim(CELLS, 3) == CELLS[2:5]
        assert one.claim(CELLS, 9) == CELLS[5:]
        assert other.claim(CELLS, 9) == []
        other.release([CELLS[3]["cell"]])
        assert one.claim(CELLS, 9) == [CELLS[3]]
        one.finish([line(3)])
        assert other.claim(CELLS, 9) == []
    assert claimed(tmp_path) == []


def test_claims_are_given_up_at_the_end(tmp_path):
    with pytest.raises(ValueError, match="planted"):
        with Store(tmp_path, SHARED) as one:
            one.claim(CELLS, 2)
            assert claimed(tmp_path) == [c["cell"] for c in CELLS[:2]]
            raise ValueError("planted")
    assert claimed(tmp_path) == []


def test_the_claim_of_a_living_process_stands(tmp_path, living):
    plant(tmp_path, 1, process=living)
    plant(tmp_path, 2, process=living, age=claims.STALE / 2)
    with Store(tmp_path, SHARED) as own:
        assert own.claim(CELLS[:4], 9) == [CELLS[0], CELLS[3]]
    assert claimed(tmp_path) == [CELLS[1]["cell"], CELLS[2]["cell"]]


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, dead):
    path = plant(tmp_path, 1, process=dead)
    with Store(tmp_path, SHARED) as own, Store(tmp_path, SHARED) as other:
        assert own.claim(CELLS[1:2], 1) == CELLS[1:2]
        assert path.read_text().split()[1] == str(os.getpid())
        assert other.claim(CELLS[1:2], 1) == []
    assert claimed(tmp_path) == []


def test_the_claim_of_another_machine_stands_until_it_is_stale(tmp_path, dead):
    """The number of its process tells nothing here."""
    plant(tmp_path, 1, host="elsewhere", process=dead, age=claims.STALE / 2)
    plant(tmp_path, 2, host="elsewhere", process=dead, age=claims.STALE + 60)
    with Store(tmp_path, SHARED) as own:
        assert own.claim(CELLS[:3], 9) == [CELLS[0], CELLS[2]]


def test_a_number_that_another_process_has_by_now(tmp_path, living):
    plant(tmp_path, 1, process=living, age=claims.STALE + 60)
    with Store(tmp_path, SHARED) as own:
        assert own.claim(CELLS[1:2], 1) == CELLS[1:2]


def test_an_empty_claim_stands_until_it_is_stale(tmp_path):
    for number, age in ((1, 0), (2, claims.STALE + 60)):
        path = plant(tmp_path, number, age=age)
        times = path.stat().st_atime, path.stat().st_mtime
        path.write_text("")
        os.utime(path, times)
    with Store(tmp_path, SHARED) as own:
        assert own.claim(CELLS[1:3], 9) == [CELLS[2]]


@pytest.mark.parametrize("text", [b"\xff\xfe\0", b"{}", b"x 99999999999999999999", b"a " * 10**5])
def test_garbage_in_a_claim_stands_until_it_is_stale(text, tmp_path):
    for number, age in ((1, 0), (2, claims.STALE + 60), (3, -claims.STALE - 60)):
        path = plant(tmp_path, number, age=age)
        times = path.stat().st_atime, path.stat().st_mtime
        path.write_bytes(text)
        os.utime(path, times)
    with Store(tmp_path, SHARED) as own:
        assert own.claim(CELLS[1:4], 9) == CELLS[2:4]


def test_half_written_files_of_dead_processes_go(tmp_path):
    with Store(tmp_path, SHARED):
        pass
    for age in (0, 2 * store.STRAY):
        left = files.partial_name(tmp_path / "running" / "a.safetensors")
        left.write_text("half")
        os.utime(left, (time.time() - age,) * 2)
    Store(tmp_path, SHARED)
    assert len(list((tmp_path / "running").iterdir())) == 1


def test_a_claim_is_touched_while_its_process_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "TOUCH", 0.02)
    with Store(tmp_path, SHARED) as own:
        own.claim(CELLS, 1)
        path = tmp_path / "claims" / CELLS[0]["cell"]
        os.utime(path, (1.0, 1.0))
        for _ in range(1000):
            if path.stat().st_mtime != 1.0:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime != 1.0


def race(monkeypatch, path, text):
    """Another process takes a dead claim over between our look at it and our hand on it."""
    real = os.rename

    def rename(source, target):
        if Path(source) == path:
            path.write_text(text)
        return real(source, target)

    monkeypatch.setattr(os, "rename", rename)


def test_a_dead_claim_that_another_one_took_first(tmp_path, dead, living, monkeypatch):
    path = plant(tmp_path, 1, process=dead)
    theirs = f"{platform.node()} {living} {9:032x}"
    with Store(tmp_path, SHARED) as own:
        race(monkeypatch, path, theirs)
        assert own.claim(CELLS[1:2], 1) == []
    assert path.read_text() == theirs
    assert [p.name for p in (tmp_path / "claims").iterdir()] == [path.name]


def test_a_claim_that_is_gone_when_it_is_looked_at(tmp_path, dead, monkeypatch):
    path = plant(tmp_path, 1, process=dead)
    with Store(tmp_path, SHARED) as own:
        monkeypatch.setattr(claims, "read", lambda path: None)
        assert own.claim(CELLS[1:2], 1) == []
    assert path.exists()


def test_a_process_that_slept_leaves_the_claim_of_who_took_over(tmp_path, living):
    with Store(tmp_path, SHARED) as own:
        own.claim(CELLS, 1)
        theirs = f"{platform.node()} {living} {9:032x}"
        (tmp_path / "claims" / CELLS[0]["cell"]).write_text(theirs)
    assert claimed(tmp_path) == [CELLS[0]["cell"]]


def test_a_cell_that_is_finished_between_look_and_claim(tmp_path, monkeypatch):
    with Store(tmp_path, SHARED) as own, Store(tmp_path, SHARED) as other:
        real = own._take

        def take(name):
            other.finish([line(int(name, 16))])
            return real(name)

        monkeypatch.setattr(own, "_take", take)
        assert own.claim(CELLS[:1], 1) == []
        assert claimed(tmp_path) == []


@pytest.mark.slow
def test_processes_share_cells_between_them(tmp_path):
    """Four processes take what they can, dead claims lying about: nothing twice, nothing left."""
    program = (
        "import json, sys, time; from pathlib import Path; from dynadapt.sweep.store import Store\n"
        "shared = json.loads(sys.argv[2]); cells = [{'cell': f'{n:016x}'} for n in range(60)]\n"
        "taken = []\n"
        "with Store(Path(sys.argv[1]), shared) as kept:\n"
        "    while mine := kept.claim(cells, 2):\n"
        "        taken += [c['cell'] for c in mine]; time.sleep(0.001)\n"
        "        kept.finish([{**c, 'task': 't', 'data_fingerprint': ''} for c in mine])\n"
        "print(json.dumps(taken))\n"
    )
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for number in range(0, 60, 3):
        plant(tmp_path, number, process=gone.pid)
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(SHARED)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    taken = [json.loads(process.communicate(timeout=200)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * 4
    everything = sorted(name for own in taken for name in own)
    assert everything == [f"{n:016x}" for n in range(60)]
    assert [one["cell"] for one in lines(tmp_path)] == everything


# Folders of something else.


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("suite", "offline", "another suite (vtab, now offline)"),
        ("form", "folder", "another form (tfds, now folder)"),
        ("protocol", "noah", "another protocol (vtab, now noah)"),
        ("protocol_digest", "e" * 64, "another protocol digest (aaaaaaaaaaaa…, now eeeeeeeeeeee…)"),
        ("backbone", "vit_b16", "another backbone (vit_tiny, now vit_b16)"),
        ("weights_sha256", "f" * 64, "another weights sha256 (bbbb"),
        ("methods", {"lora": "0" * 64}, "results of lora with other settings or another grid"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(field, value, part, tmp_path):
    with Store(tmp_path, SHARED) as own:
        own.finish([line(1)])
    before = (tmp_path / results.FILE).read_bytes()
    with pytest.raises(ConfigError) as error:
        Store(tmp_path, {**SHARED, field: value})
    assert part in str(error.value) and str(error.value).endswith("give another --workdir")
    assert "\n" not in str(error.value)
    assert (tmp_path / results.FILE).read_bytes() == before


def test_methods_are_added(tmp_path):
    Store(tmp_path, SHARED)
    Store(tmp_path, {**SHARED, "methods": {"ssf": "1" * 64}})
    Store(tmp_path, {**SHARED, "methods": {"lora": "c" * 64, "ssf": "1" * 64}})
    with pytest.raises(ConfigError, match="results of ssf with other settings"):
        Store(tmp_path, {**SHARED, "methods": {"lora": "c" * 64, "ssf": "2" * 64}})


def test_of_two_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    """The other one writes between our look and our file."""
    real, other = os.link, {**SHARED, "protocol": "noah"}

    def link(source, target):
        if Path(target).name == "sweep.json" and not Path(target).exists():
            files.write_json(Path(target), {k: v for k, v in other.items() if k != "methods"})
        return real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ConfigError, match="another protocol .noah, now vtab."):
        Store(tmp_path, SHARED)
    Store(tmp_path, other)


def test_results_that_no_sweep_wrote_there_are_left_alone(tmp_path):
    (tmp_path / results.FILE).write_text('{"cell": "1"}\n')
    with pytest.raises(ConfigError, match="no sweep wrote there; give another --workdir"):
        Store(tmp_path, SHARED)
    assert (tmp_path / results.FILE).read_text() == '{"cell": "1"}\n'
    assert [p.name for p in tmp_path.iterdir()] == [results.FILE]


def test_a_file_in_place_of_the_folder(tmp_path):
    place = tmp_path / "file"
    place.write_text("text")
    with pytest.raises(ConfigError, match="nothing can be written in .*give another --workdir"):
        Store(place, SHARED)


def test_results_of_other_data_are_refused(tmp_path):
    with Store(tmp_path, SHARED) as own:
        own.finish([line(1), line(2, task="dtd", data_fingerprint="e" * 64)])
        own.check_data({"svhn": "d" * 64, "kitti": "x" * 64})
        with pytest.raises(DataError) as error:
            own.check_data({"svhn": "d" * 64, "dtd": "d" * 64})
    text = str(error.value)
    assert text.startswith("the data of dtd are not those of its results") and "\n" not in text
    assert "eeeeeeeeeeee…" in text and text.endswith("give another --workdir")


# A full disk.


def full(monkeypatch, suffix):
    """Writing a file whose name has `suffix` in it fails, when half of it is written."""
    real = Path.write_text

    def write(path, text, *args, **kwargs):
        if suffix not in path.name:
            return real(path, text, *args, **kwargs)
        real(path, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", write)


@pytest.mark.parametrize("where", [".json.", results.FILE])
def test_a_full_disk_loses_nothing(where, tmp_path, monkeypatch):
    with Store(tmp_path, SHARED) as own:
        own.finish([line(1)])
    before = lines(tmp_path)
    with monkeypatch.context() as patch:
        with pytest.raises(MachineError) as error:
            with Store(tmp_path, SHARED) as own:
                mine = own.claim(CELLS, 3)
                full(patch, where)
                own.finish([line(int(c["cell"], 16)) for c in mine])
    assert "No space left on device" in str(error.value) and "\n" not in str(error.value)
    assert "start the same command again" in str(error.value)
    assert lines(tmp_path) == before and claimed(tmp_path) == []
    assert not [p for p in tmp_path.rglob(".*")]  # nor is there a half-written file
    with Store(tmp_path, SHARED) as own:
        left = own.claim(CELLS, 9)
        assert len(left) == (5 if where == ".json." else 2)
        own.finish([line(int(c["cell"], 16)) for c in left])
    assert [one["cell"] for one in lines(tmp_path)] == [c["cell"] for c in CELLS]


def test_a_full_disk_when_a_cell_is_claimed(tmp_path, monkeypatch):
    with pytest.raises(MachineError, match="No space left on device"):
        with Store(tmp_path, SHARED) as own:
            full(monkeypatch, "")
            own.claim(CELLS, 3)


def test_a_full_disk_at_the_start(tmp_path, monkeypatch):
    full(monkeypatch, "")
    with pytest.raises(ConfigError, match="No space left on device; give another --workdir"):
        Store(tmp_path / "run", SHARED)
    monkeypatch.undo()
    Store(tmp_path / "run", SHARED)


# What is being trained.


def state(seed=0):
    rng = np.random.default_rng(seed)
    train = {"head": {"kernel": jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)}}
    return {"train": train, "step": jnp.full(2, 7, jnp.int32), "opt": (jnp.ones(2), ())}


def kernel(found):
    return found["train"]["head"]["kernel"]


def test_a_kept_state_comes_back(tmp_path):
    own = Store(tmp_path, SHARED)
    assert own.restore("run", state(), "data")[0] == 0
    own.save("run", 3, state(1), "data")
    own.save("run", 5, state(2), "data")
    done, found = Store(tmp_path, SHARED).restore("run", state(0), "data")
    assert done == 5
    np.testing.assert_array_equal(kernel(found), kernel(state(2)))
    assert found["step"].dtype == np.int32 and isinstance(found["opt"], tuple)
    own.forget("run")
    assert own.restore("run", state(0), "data")[0] == 0
    own.forget("run")


def test_states_of_cells_that_others_finished_go(tmp_path):
    own = Store(tmp_path, SHARED)
    for number, mark in ((1, "x"), (1, "y"), (2, "x")):
        own.save(f"{cell(number)['cell']}-{mark}", 3, state(1), "data")
    own.finish([line(1)])
    own.tidy()
    assert [p.stem for p in (tmp_path / "running").iterdir()] == [f"{cell(2)['cell']}-x"]


def test_a_kept_state_that_is_no_good_is_passed_over(tmp_path):
    own = Store(tmp_path, SHARED)
    own.save("run", 3, state(1), "data")
    path = next((tmp_path / "running").iterdir())
    whole = path.read_bytes()
    assert own.restore("run", state(), "other data")[0] == 0
    larger = state()
    larger["train"]["head"]["bias"] = jnp.zeros(2)
    assert own.restore("run", larger, "data")[0] == 0
    narrow = state()
    narrow["step"] = narrow["step"].astype(jnp.int16)
    assert own.restore("run", narrow, "data")[0] == 0
    for damaged in (whole[:-5], whole[:-5] + bytes([whole[-5] ^ 8]) + whole[-4:], b""):
        path.write_bytes(damaged)
        done, found = own.restore("run", state(5), "data")
        assert done == 0
        np.testing.assert_array_equal(kernel(found), kernel(state(5)))
    path.write_bytes(whole)
    assert own.restore("run", state(), "data")[0] == 3


def test_a_full_disk_while_a_state_is_kept(tmp_path, monkeypatch):
    own = Store(tmp_path, SHARED)
    own.save("run", 3, state(1), "data")

    def save_file(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "save_file", save_file)
    with pytest.raises(MachineError, match="No space left on device"):
        own.save("run", 5, state(2), "data")
    assert own.restore("run", state(), "data")[0] == 3
    assert len(list((tmp_path / "running").iterdir())) == 1
