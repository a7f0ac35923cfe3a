"""The command line: one clear sentence for each mistake, nothing written, help that runs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dynadapt
from dynadapt import files, pictures
from dynadapt import main as entry
from dynadapt.commands import COMMANDS, config_file
from dynadapt.commands.config_file import read_config
from dynadapt.main import main

TINY = str(Path(__file__).with_name("configs_tiny.py"))
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def command(capsys):
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*argv):
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def assert_sentence(answer, *parts):
    """Exit code 2, one line on standard error that holds the parts, no traceback, no output."""
    code, out, err = answer
    assert code == 2
    assert out == ""
    assert err.startswith("dynadapt: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


MISTAKES = {
    "command": (["trian"], "unknown command 'trian'", "'train'"),
    "option": (["train", "--confg=x"], "'--confg=x'", "'--config'"),
    "option of another command": (["plan", "--workdir=x"], "unknown option", "plan"),
    "stray word": (["train", "configs/x.py"], "configs/x.py"),
    "no config": (["train", "--workdir=W"], "--config="),
    "no workdir": (["train", f"--config={TINY}"], "--workdir"),
    "no workdir of eval": (["eval"], "--workdir"),
    "boolean option": (["plan", "--json=perhaps"], "json"),
    "config file": (["train", "--config=configs/quickstrat.py", "--workdir=W"], "quickstart.py"),
    "config argument": ("T:metod=lora", "'metod'", "'method'"),
    "config argument's type": ("T:steps=many", "'steps' must be int"),
    "config argument's value": ("T:method", "method=…"),
    "config key": ("--config.optim.lrr=0.1", "'optim.lrr'", "'optim.lr'"),
    "config key elsewhere": ("--config.batch_size=8", "'input.batch_size'"),
    "config section": ("--config.optimiser.lr=8", "'optim.lr'"),
    "type float": ("--config.optim.lr=fast", "optim.lr"),
    "type int": ("--config.optim.steps=1.5", "optim.steps"),
    "type bool": ("--config.backbone.scan=perhaps", "backbone.scan"),
    "type tuple": ("--config.optim.lr_mults=5", "optim.lr_mults"),
    "method as argument": ("T:method=lorra", "unknown method 'lorra'", "'lora'"),
    "method": ("--config.adapter.name=lorra", "unknown method 'lorra'", "'lora'"),
    "backbone": ("--config.backbone.name=vit_minni", "backbone 'vit_minni'", "'vit_mini'"),
    "data set": ("--config.data.name=digit", "unknown data set 'digit'", "'digits'"),
    "task": ("--config.task.name=clasification", "'clasification'", "'classification'"),
    "normalisation": ("--config.input.normalise=incept", "'incept'", "'inception'"),
    "transform": ("--config.input.train=resise(8)", "unknown transform 'resise'", "'resize'"),
    "transform's setting": ("--config.input.eval=resize(-8)", "size", "resize(-8)"),
    "random evaluation": ("--config.input.eval=resize(8)|flip", "flip", "random"),
    "optimizer": ("--config.optim.name=adam", "unknown optimizer 'adam'", "'adamw'"),
    "dtype": ("--config.compute.dtype=bf16", "compute.dtype 'bf16'", "'bfloat16'"),
    "split": ("--config.input.eval_split=tset", "'tset'", "'test'"),
    "slice": ("--config.input.train_split=train[:5000]", "train[:5000]", "1000"),
    "pooling": ("--config.task.pool=middle", "pooling 'middle'"),
    "placement": ("--config.adapter.placement=parallel_mpl", "'parallel_mlp'"),
    "setting's type": ("--config.adapter.rank=-1", "rank"),
    "rate pattern": (
        "--config.optim.lr_mults=(('hed/.*', 0.1),)", "'hed/.*'", "matches nothing", "head",
    ),
    "trainable pattern": (
        "--config.trainable=('backbone/nrm/.*',)", "'backbone/nrm/.*'", "matches nothing",
    ),
    "pattern that is no pattern": ("--config.trainable=('backbone/(',)", "'backbone/('"),
    "decay pattern": ("--config.optim.no_decay=('hed/.*',)", "'hed/.*'", "matches nothing"),
    "train image": ("--config.input.train=resize(9)", "9x9", "patch 4", "resize(8)"),
    "eval image": ("--config.input.eval=resize(13)", "13x13", "patch 4", "resize(12)"),
    "backbone's image": ("--config.backbone.image_size=10", "10", "patch 4"),
    "heads": ("--config.backbone.heads=3", "3 heads"),
    "mesh": ("--config.mesh.data=3", "data=3", "device"),
    "mesh of nothing": ("--config.mesh.fsdp=0", "fsdp=0"),
    "accumulate": ("--config.optim.accumulate=5", "16", "accumulate 5"),
    "batch": ("--config.input.batch_size=1200", "1200", "1000"),
    "seed": ("--config.seed=-1", "seed", "-1"),
    "steps": ("--config.optim.steps=-3", "steps"),
    "weights": ("--config.backbone.weights=none.safetensors", "no weights at 'none.safetensors'"),
    "folder": ("T:data=folder,path=nowhere", "no folder 'nowhere'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_sentence(name, command, tmp_path):
    given, *parts = MISTAKES[name]
    work = tmp_path / "run"
    if isinstance(given, str):
        spec, more = (f"{TINY}:{given[2:]}", []) if given[:2] == "T:" else (TINY, [given])
        given = ["train", f"--config={spec}", *more, "--workdir=W"]
    argv = [a.replace("=W", f"={work}") for a in given]
    assert_sentence(command(*argv), *parts)
    assert not work.exists()


def test_plan_makes_the_same_checks(command):
    assert_sentence(command("plan", f"--config={TINY}", "--config.input.train=resize(9)"), "patch")
    pattern = "--config.trainable=('backbone/nrm/.*',)"
    assert_sentence(command("plan", f"--config={TINY}", pattern), "'backbone/nrm/.*'")
    answer = command("plan", f"--config={TINY}", "--config.input.eval=resize(13)")
    assert_sentence(answer, "13x13")


def test_all_problems_are_listed(command, tmp_path):
    work = tmp_path / "run"
    code, out, err = command(
        "train",
        f"--config={TINY}",
        "--config.adapter.name=lorra",
        "--config.input.normalise=incept",
        "--config.optim.lr=-1",
        "--config.input.train=resise(8)",
        "--config.backbone.weights=none.safetensors",
        f"--workdir={work}",
    )
    assert code == 2 and out == "" and not work.exists()
    for part in ("5 problems", "'lora'", "'inception'", "optim.lr", "'resize'", "none.safetensors"):
        assert part in err
    assert len(err.splitlines()) == 6


def test_problems_of_compared_methods_are_found_before_the_first_runs(command, tmp_path):
    work = tmp_path / "run"
    given = (f"--config={TINY}", "--methods=linear,lorra")
    assert_sentence(command("train", *given, f"--workdir={work}"), "'lorra'", "'lora'")
    assert not work.exists()


def test_weights_that_do_not_fit(command, tmp_path, backbone_file):
    work = tmp_path / "run"
    spec = f"--config={TINY}:weights={backbone_file}"
    whole = backbone_file.read_bytes()

    other = files.read_tensors(backbone_file)
    other["norm/scale"] = np.ones(17, np.float32)
    other["norm/extra"] = other.pop("norm/bias")
    files.write_tensors(backbone_file, other)
    code, out, err = command("train", spec, f"--workdir={work}")
    assert code == 2 and out == ""
    rows = [line for line in err.splitlines() if line[:2] in ("+ ", "- ")]
    assert sorted(rows) == [
        "+ norm/extra (16,)",
        "+ norm/scale (17,)",
        "- norm/bias (16,)",
        "- norm/scale (16,)",
    ]

    backbone_file.write_bytes(whole[: len(whole) // 2])
    assert_sentence(command("train", spec, f"--workdir={work}"), str(backbone_file))
    backbone_file.write_bytes(b"")
    assert_sentence(command("train", spec, f"--workdir={work}"), str(backbone_file))
    assert not work.exists()


@pytest.mark.slow
def test_weights_that_moved_are_given_anew(command, tmp_path, backbone_file):
    work, moved = tmp_path / "run", tmp_path / "moved.safetensors"
    spec = f"--config={TINY}:method=linear,steps=4,weights={backbone_file}"
    assert command("train", spec, f"--workdir={work}")[0] == 0
    image = tmp_path / "image.png"
    pictures.write(image, np.zeros((9, 9, 3), np.uint8))
    asked = {
        "eval": ("eval", f"--workdir={work}"),
        "predict": ("predict", f"--workdir={work}", f"--images={image}", f"--out={tmp_path / 'o'}"),
    }
    backbone_file.rename(moved)
    for call in asked.values():
        assert_sentence(command(*call), str(backbone_file))
        assert command(*call, f"--weights={moved}")[0] == 0
    other = files.read_tensors(moved)
    files.write_tensors(moved, {k: x + 1 for k, x in other.items()})
    for call in asked.values():
        assert_sentence(command(*call, f"--weights={moved}"), "not those", "trained on")


@pytest.fixture
def backbone_file(tmp_path):
    """A file of random weights for the tiny backbone."""
    from flax import nnx

    from dynadapt import backbones, tree

    sizes = dict(dim=16, depth=2, heads=2, image_size=8)
    network = backbones.create("vit_mini", rngs=nnx.Rngs(5), **sizes)
    file = tmp_path / "backbone.safetensors"
    leaves = tree.leaves(nnx.state(network))
    files.write_tensors(file, {k: np.asarray(v) for k, v in leaves.items()})
    return file


def test_workdir_of_another_config(command, tmp_path):
    from dynadapt.runs import workdir

    work = tmp_path / "run"
    spec = f"--config={TINY}:method=linear"
    other = read_config(TINY, "method=linear")
    other.optim.lr = 0.001
    work.write_text("")
    assert_sentence(command("train", spec, f"--workdir={work}"), str(work), "file")
    work.unlink()
    workdir.start(other, work)
    before = sorted(work.iterdir())
    answer = command("train", spec, f"--workdir={work}")
    assert_sentence(answer, str(work), "optim.lr: 0.001 -> 0.01", "another --workdir")
    assert sorted(work.iterdir()) == before


def test_commands_on_folders_that_are_no_runs(command, tmp_path):
    for name in ("eval", "verify"):
        answer = command(name, f"--workdir={tmp_path / 'none'}")
        assert_sentence(answer, str(tmp_path / "none"))
    answer = command("convert", tmp_path / "none", tmp_path / "x.safetensors")
    assert_sentence(answer, str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(command):
    code, _, err = command("train", "--debug", f"--config={TINY}")
    assert code == 2
    assert "Traceback" in err and "ConfigError" in err and err.count("--workdir") > 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_parses(name, command, tmp_path):
    code, out, err = command(name, "--help")
    assert code == 0 and err == ""
    example = next(line for line in out.splitlines() if line.startswith("  dynadapt "))
    argv = shlex.split(example)[1:]
    assert argv[0] == name
    options = [a for a in argv[1:] if a.startswith("--")]
    several = bool(COMMANDS[name].several)
    assert several or len(argv) - 1 - len(options) <= len(COMMANDS[name].arguments)
    for argument in options:  # every option in it is one that the command lists
        assert f"{argument.split('=')[0]}:" in out
        if argument.startswith("--config="):
            assert config_file.locate(argument.split("=", 1)[1])


def test_the_version_is_told(command):
    assert command("--version") == (0, f"dynadapt {dynadapt.__version__}\n", "")


def test_help_of_all(command):
    for argv in ([], ["--help"], ["help"]):
        code, out, err = command(*argv)
        assert code == 0 and err == ""
        assert all(name in out for name in COMMANDS)


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    command = [sys.executable, "-m", "dynadapt", "plan", f"--config={TINY}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["trained"] > 0
    command = [sys.executable, "-m", "dynadapt", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /dev/full")
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_an_output_that_cannot_be_written(json_too):
    """A full disk is one sentence; a reader that has gone, as `| head` does, is none."""
    call = [sys.executable, "-m", "dynadapt", "data", "status", "offline", "--tasks=digits"]
    call += json_too
    with open("/dev/full", "w") as full:
        done = subprocess.run(call, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr
    gone, left = os.pipe()
    os.close(gone)
    done = subprocess.run(call, cwd=ROOT, stdout=left, stderr=subprocess.PIPE, text=True)
    os.close(left)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "closed, code", [(">&-", 2), ("2>&-", 0), ("<&-", 0), ("<&- 2>&-", 0), ("<&- >&- 2>&-", 2)]
)
def test_streams_that_are_closed(closed, code):
    """No file that is opened later takes the number of a stream that a library writes to."""
    call = f'exec "$0" -m dynadapt data --help {closed}'
    done = subprocess.run(["sh", "-c", call, sys.executable], cwd=ROOT, capture_output=True)
    assert done.returncode == code and bool(done.stdout) == (code == 0)
    assert done.stderr.count(b"\n") == (closed == ">&-")


def test_an_output_of_few_letters_gets_the_others_escaped():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    call = [sys.executable, "-m", "dynadapt", "convert", "--help"]
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "\\u2026" in done.stdout


# How a process starts.


def started(monkeypatch, **env):
    """The environment variables that a process is started again with, or None if it isn't."""
    found = []
    monkeypatch.setattr(os, "execv", lambda *args: found.append((args, dict(os.environ))))
    for name in ("JAX_PLATFORMS", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    entry.keep_memory()
    if not found:
        return None
    [((program, args), now)] = found
    assert program == args[0] == sys.executable and args[1:] == sys.orig_argv[1:]
    return now


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another C library")
def test_on_a_cpu_freed_memory_is_kept(monkeypatch):
    assert started(monkeypatch, JAX_PLATFORMS="cpu")["GLIBC_TUNABLES"] == entry.ALLOCATION
    assert started(monkeypatch, JAX_PLATFORMS="cpu", GLIBC_TUNABLES="") is None
    assert started(monkeypatch, JAX_PLATFORMS="cuda") is None
    assert started(monkeypatch) is None


def test_a_process_that_starts_again_keeps_its_arguments():
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    call = [sys.executable, "-m", "dynadapt", "data", "status", "offline", "--tasks=digit"]
    result = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    assert_sentence((result.returncode, result.stdout, result.stderr), "'digits'")
