"""Run folders from outside: what is damaged, swapped, full, unreadable, shared or a stranger's."""

import concurrent.futures
import contextlib
import copy
import ctypes
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dynadapt import config as configs
from dynadapt import files, train
from dynadapt.commands import config_file
from dynadapt.errors import CheckpointError, DynadaptError, TrainingError
from dynadapt.main import main
from dynadapt.runs import claims, product, verify, workdir
from dynadapt.runs.predictions import Predictions

pytestmark = pytest.mark.usefixtures("fast_compiling")

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "configs_tiny.py"
OPTIONS = (f"--config={TINY}:method=lora,steps=6", "--config.save_every=3", "--config.log.every=1")


def start(work, *more):
    return main(["train", *OPTIONS, f"--workdir={work}", *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("whole") / "run"
    assert start(work) == 0
    return work


@pytest.fixture
def run(whole, tmp_path):
    """A complete run."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def unfinished(run):
    return unfinish(run)


def unfinish(run):
    """Takes away all that comes after the last checkpoint."""
    for name in ("adapter", "predictions"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("result.json", "manifest.json"):
        (run / name).unlink(missing_ok=True)
    return run


def assert_equal_end(run, whole):
    for name in ("adapter/adapter.safetensors", "predictions/predictions.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [row for row in verify.run(run) if row["fault"]]


def sentence(capsys, code):
    """The one line of an error; there is nothing of a traceback."""
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("dynadapt: ")]
    assert err.splitlines()[-1] == lines[-1]
    return lines[-1]


# Damage.


def contents(run):
    return [p for p in sorted(run.rglob("*")) if p.is_file() and p.stat().st_size]


def damage(run, rng):
    """One fault in one file, or two swapped; says what it was, "" where it means nothing."""
    kind = rng.choice(("flip", "cut", "delete", "swap"))
    file, other = rng.sample(contents(run), 2)
    old = file.read_bytes()
    said = f"{kind} {file.relative_to(run)}"
    if kind == "delete":
        file.unlink()
        return said
    if kind == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(old)
        return f"{said} and {other.relative_to(run)}" if file.read_bytes() != old else ""
    new = bytearray(old[: rng.randrange(len(old))] if kind == "cut" else old)
    if kind == "flip":
        new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    file.write_bytes(new)
    with contextlib.suppress(ValueError):
        if file.name == "manifest.json" and json.loads(new) == json.loads(old):
            return ""  # white space says nothing
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "seed"), [(30, 1), pytest.param(100, 2, marks=pytest.mark.exhaustive)]
)
def test_every_damage_is_found(count, seed, whole, tmp_path, capsys):
    rng = random.Random(seed)
    for number in range(count):
        run = shutil.copytree(whole, tmp_path / "run")
        said = damage(run, rng)
        if said:
            assert any(row["fault"] for row in verify.run(run)), said
        if count > 30:  # and with one whole checkpoint and the command line it goes on
            if number % 2:
                unfinish(run)
            faults = {row["part"]: row["fault"] for row in verify.run(run)}
            if all(faults[f"checkpoints/{step}"] for step in (3, 6)):  # a swap between them
                shutil.rmtree(run)
                continue
            assert start(run) == 0, said
            for name in ("adapter/adapter.safetensors", "predictions/predictions.csv"):
                assert (run / name).read_bytes() == (whole / name).read_bytes(), said
            assert "Traceback" not in capsys.readouterr().err, said
        shutil.rmtree(run)


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 8
    file.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_log_is_set_aside(unfinished, whole, caplog):
    log = unfinished / "metrics.jsonl"
    flip(log, log.read_bytes().index(b"\n") + 1)
    was = log.read_bytes()
    assert start(unfinished) == 0
    assert (unfinished / "metrics.damaged-1.jsonl").read_bytes() == was
    assert caplog.text.count("metrics.jsonl is damaged") == 1
    assert_equal_end(unfinished, whole)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 3, 4, 5, 6, 6]


def test_a_complete_run_with_a_damaged_log_is_not_run_again(run, caplog, monkeypatch):
    flip(run / "metrics.jsonl", 1)
    before = {p: p.read_bytes() for p in contents(run)}
    assert [row["part"] for row in verify.run(run) if row["fault"]] == ["metrics.jsonl"]
    monkeypatch.setattr(train, "make_step", None)
    assert start(run) == 0
    assert "the run is complete, and its result stands" in caplog.text
    assert {p: p.read_bytes() for p in contents(run)} == before


@pytest.mark.parametrize("kind", ["cut", "flip", "stranger", "gone"])
def test_a_damaged_config_is_written_anew(kind, unfinished, whole, capsys, caplog):
    file = unfinished / "config.json"
    text = file.read_text()
    damaged = {"cut": text[:300], "flip": text.replace('"lr"', '"lp"'), "stranger": "[]"}
    file.unlink() if kind == "gone" else file.write_text(damaged[kind])
    assert "optim.lr: 0.01 -> 0.5" in sentence(capsys, start(unfinished, "--config.optim.lr=0.5"))
    assert not file.exists() if kind == "gone" else file.read_text() == damaged[kind]
    caplog.clear()
    assert start(unfinished) == 0
    assert caplog.text.count("it is written anew") == 1
    assert_equal_end(unfinished, whole)


def test_a_damaged_config_without_a_checkpoint(unfinished, capsys):
    shutil.rmtree(unfinished / "checkpoints")
    (unfinished / "config.json").write_text('{"config": {"optim": 3}}')
    said = sentence(capsys, start(unfinished))
    assert "holds no config" in said and "give another --workdir" in said


def test_checkpoints_of_another_run(unfinished, capsys):
    """The config file is that of the command, and the checkpoints lie in a strange folder."""
    values = files.read_json(unfinished / "config.json")
    values["config"]["seed"] = 4
    values["digest"] = configs.digest(values["config"])
    files.write_json(unfinished / "config.json", values)
    assert "seed: 0 -> 4" in sentence(capsys, start(unfinished, "--config.seed=4"))


def test_a_checkpoint_under_another_number(unfinished, whole, caplog):
    saved = unfinished / "checkpoints"
    shutil.rmtree(saved / "6")
    (saved / "3").rename(saved / "6")
    shutil.copytree(whole / "checkpoints" / "3", saved / "3")
    assert start(unfinished) == 0
    assert "checkpoint 6 is passed over: it is of step 3" in caplog.text
    assert_equal_end(unfinished, whole)


@pytest.mark.slow
def test_checkpoints_of_an_earlier_version_go_on(whole, tmp_path, monkeypatch):
    work = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(workdir, "known_by", lambda config: {})
        patch.setattr(workdir, "start", lambda config, folder: None)
        assert start(work) == 0
    shutil.copy(whole / "config.json", unfinish(work) / "config.json")
    flip(work / "config.json", (work / "config.json").read_text().index('"digest": "') + 12)
    assert start(work) == 0
    assert_equal_end(work, whole)


# Owners.


@pytest.mark.parametrize("early", [True, False])
def test_a_folder_has_one_owner(early, unfinished, whole, capsys, monkeypatch):
    if not early:
        monkeypatch.setattr(claims, "refuse", lambda folder: None)
    with claims.owner(unfinished):
        before = {p: p.read_bytes() for p in contents(unfinished)}
        said = sentence(capsys, start(unfinished))
        assert {p: p.read_bytes() for p in contents(unfinished)} == before
    assert f"{unfinished} is in use by process {os.getpid()} on " in said
    assert "give another --workdir" in said
    assert not (unfinished / claims.OWNER).exists()


@pytest.mark.slow
def test_two_at_once(whole, tmp_path, capsys):
    """Two threads, each of which is an owner of its own."""
    work, codes = tmp_path / "run", []
    threads = [threading.Thread(target=lambda: codes.append(start(work))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 2]
    assert "is in use by process" in capsys.readouterr().err
    assert_equal_end(work, whole)
    assert not (work / claims.OWNER).exists()


@pytest.mark.exhaustive
def test_two_processes_at_once(whole, tmp_path):
    work = tmp_path / "run"
    command = [sys.executable, "-m", "dynadapt", "train", *OPTIONS, f"--workdir={work}"]
    given = dict(cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen(command, **given) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in running]
    codes = [process.returncode for process in running]
    for code, err in zip(codes, errors, strict=True):
        assert code == 0 or "is in use by process" in sentence_of(err), err
    assert 0 in codes
    assert_equal_end(work, whole)
    assert not (work / claims.OWNER).exists()


def sentence_of(err):
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_a_run_that_lost_its_folder_writes_no_more(unfinished, capsys, monkeypatch):
    real = train.restore

    def restore(*given):
        (unfinished / claims.OWNER).write_text("elsewhere 1 theirs")
        return real(*given)

    shutil.rmtree(unfinished / "checkpoints")
    monkeypatch.setattr(train, "restore", restore)
    assert "is no longer this process's" in sentence(capsys, start(unfinished))
    assert list((unfinished / "checkpoints").iterdir()) == []
    assert (unfinished / claims.OWNER).read_text() == "elsewhere 1 theirs"


def test_what_killed_processes_left_goes(unfinished, whole):
    for name in ("checkpoints/9.orbax-checkpoint-tmp/train", "adapter"):
        (unfinished / name).mkdir(parents=True)
    left = files.partial_name(unfinished / "adapter" / "adapter.json")
    left.write_text("half")
    (unfinished / claims.OWNER).write_text(f"{os.uname().nodename} 999999999 gone")
    assert start(unfinished) == 0
    assert not [p for p in unfinished.rglob("*") if p.name.startswith(".") or "tmp" in p.name]
    assert sorted(p.name for p in unfinished.iterdir()) == sorted(p.name for p in whole.iterdir())


# Disks and permissions.


@contextlib.contextmanager
def full(size):
    """No file may be longer than so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("owner", "name", "size", "part"),
    [
        (train.Journal, "record", 50, "metrics.jsonl"),
        (train.checkpoint.Checkpoints, "save", 200, "checkpoints/3"),
        (train.checkpoint.Checkpoints, "save", 1500, "checkpoints/3"),
        (Predictions, "finish", 100, "predictions"),
        (product, "save", 100, "adapter"),
        (product, "save", 3690, "adapter"),
        (workdir, "finish", 100, "run"),
    ],
)
def test_a_full_disk(owner, name, size, part, whole, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    if owner not in (train.Journal, train.checkpoint.Checkpoints):
        shutil.copytree(whole, run)
        unfinish(run)
    real = getattr(owner, name)

    def limited(*given):
        with full(size):
            return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, limited)
        said = sentence(capsys, start(run))
    assert f"cannot write {run.parent / part if part == 'run' else run / part}: " in said
    assert "File too large" in said and "the same command goes on" in said
    assert not (run / claims.OWNER).exists() and not list(run.rglob(".*"))
    if owner is workdir:
        assert start(run) == 0
        assert_equal_end(run, whole)


def bound_by_modes(function, *given):
    """Calls a function where root, too, may read and write only what modes allow."""

    def call():
        libc = ctypes.CDLL(None)
        header, values = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, values)
        for part in (0, 1):  # of this thread: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            values[part] &= ~0b110
        libc.capset(header, values)
        return function(*given)

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_checkpoint_that_may_not_be_read(unfinished, whole, caplog):
    (unfinished / "checkpoints" / "6").chmod(0)
    assert bound_by_modes(start, unfinished) == 0
    assert "checkpoint 6 is passed over: it cannot be read" in caplog.text
    assert_equal_end(unfinished, whole)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("name", ["adapter", "adapter/adapter.json", "adapter/adapter.safetensors"])
def test_an_adapter_that_may_not_be_read(name, run, capsys):
    (run / name).chmod(0)
    said = sentence(capsys, bound_by_modes(main, ["eval", f"--workdir={run}"]))
    assert "Permission denied" in said and "adapter" in said
    assert bound_by_modes(main, ["verify", f"--workdir={run}"]) == 2
    (run / name).chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("name", ["", "checkpoints", "predictions"])
def test_a_folder_that_may_not_be_written(name, unfinished, capsys, monkeypatch):
    (unfinished / "predictions").mkdir()
    monkeypatch.setattr(train.inputs, "open_split", None)  # it is found before any work
    (unfinished / name).chmod(0o500)
    assert "nothing can be written in" in sentence(capsys, bound_by_modes(start, unfinished))
    (unfinished / name).chmod(0o700)


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128, "a\udcff", "/".join(["x" * 200] * 20)])
def test_names_that_no_file_system_has(name, tmp_path, capsys):
    for command in ("train", "verify"):
        options = OPTIONS if command == "train" else ()
        said = sentence(capsys, main([command, *options, f"--workdir={tmp_path / name}"]))
        wanted = "is no text in UTF-8" if "\udcff" in name else "give another --workdir"
        assert wanted in said and said.isprintable() and len(said) < 300
    assert list(tmp_path.iterdir()) == []


def test_modes_are_those_of_the_umask(whole):
    umask = os.umask(0)
    os.umask(umask)
    for path in whole.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


# Cards of strangers.

VALUES = (
    *(None, True, "", "x", "\ud800", "a\0b", -1, 0, 1, 7, 10**18, -(10**30), 1e308, 0.5),
    *(float("nan"), float("inf"), [], [1], ["x", 2], {}, {"name": 3}, [[[]]]),
)


def places(values, path=()):
    """Paths to all values in a card."""
    yield path
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from places(values[key], (*path, key))


def changed(card, rng):
    """A card with one or two values of something else, or without them."""
    card = copy.deepcopy(card)
    for _ in range(rng.choice((1, 1, 2))):
        # Each part is as likely as the others, however long it is.
        part = rng.choice(sorted(k for k in card if not k.endswith("sha256")) or ["format"])
        path = (part, *rng.choice(list(places(card.get(part)))))
        inner = card
        for key in path[:-1]:
            inner = inner[key]
        if rng.random() < 0.35:
            inner.pop(path[-1], None) if isinstance(inner, dict) else inner.pop(path[-1])
        else:
            inner[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return card, path


def write(folder, card):
    """As a stranger does who knows how the hashes are made."""
    card = {k: v for k, v in card.items() if k != "card_sha256"}
    text = json.dumps(card, sort_keys=True)
    card["card_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / product.CARD).write_text(json.dumps(card))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "seed"), [(200, 3), pytest.param(2000, 4, marks=pytest.mark.exhaustive)]
)
def test_cards_of_strangers(count, seed, run):
    """Each is read, or refused in a sentence; some of those that are read are made models of."""
    folder, rng, read, made = run / "adapter", random.Random(seed), 0, 0
    card = files.read_json(folder / product.CARD)
    slowest = 0.0
    for _ in range(count):
        mutated, path = changed(card, rng)
        write(folder, mutated)
        began = time.process_time()
        try:
            product.read(folder)
            read += 1
            if path[0] in ("config", "fields") and (count > 200 or rng.random() < 0.3):
                product.load(folder)
                made += 1
        except DynadaptError as error:
            assert str(error).isprintable() or "problems" in str(error), path
        except Exception as error:
            raise AssertionError(f"{path}: {error!r}") from error
        slowest = max(slowest, time.process_time() - began)
    print(f"{count} cards, {read} read, {made} made, at most {slowest:.2f} s")
    assert read and slowest < 2


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 5), pytest.param(2000, 6, marks=pytest.mark.exhaustive)]
)
def test_configs_of_strangers(count, seed, unfinished):
    """A config file of whatever values, and of the right hash, is compared or passed over."""
    file, rng = unfinished / "config.json", random.Random(seed)
    config = configs.resolve(config_file.load(OPTIONS[0].removeprefix("--config="), []))
    whole, kinds = files.read_json(file), set()
    for _ in range(count):
        values, path = changed({"config": whole["config"]}, rng)
        with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
            values["digest"] = configs.digest(values["config"])
        file.write_text(json.dumps(values))
        try:
            workdir.check(config, unfinished)
            kinds.add("same")
        except DynadaptError as error:
            kinds.add("another")
            assert "\n" not in str(error), path
        except Exception as error:
            raise AssertionError(f"{path}: {error!r}") from error
        verify.run(unfinished)
    assert kinds == {"same", "another"}


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_not_finite_are_no_adapter(value, run, capsys):
    folder = run / "adapter"
    card, leaves = (
        files.read_json(folder / product.CARD),
        files.read_tensors(folder / product.TENSORS),
    )
    leaves["head/linear/bias"] = np.full(10, value, np.float32)
    with pytest.raises(TrainingError, match="head/linear/bias has values that are not finite"):
        product.save(folder, leaves, card)
    product.read(folder)  # nothing was written over
    files.write_tensors(folder / product.TENSORS, leaves)
    write(folder, {**card, "file_sha256": files.sha256(folder / product.TENSORS)})
    said = sentence(capsys, main(["eval", f"--workdir={run}"]))
    assert "head/linear/bias has values that are not finite" in said


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_values_of_another_type(dtype, run):
    folder = run / "adapter"
    card, leaves = (
        files.read_json(folder / product.CARD),
        files.read_tensors(folder / product.TENSORS),
    )
    leaves = {k: v.astype(dtype) for k, v in leaves.items()}
    files.write_tensors(folder / product.TENSORS, leaves)
    write(folder, {**card, "file_sha256": files.sha256(folder / product.TENSORS)})
    with pytest.raises(CheckpointError, match=f"is of {dtype}, not of float32"):
        product.read(folder)
