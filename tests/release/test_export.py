"""Exported models: answers in a process that has jax alone, any batch size, what is refused."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dynadapt import files, predict
from dynadapt.commands.config_file import read_config
from dynadapt.context import Context
from dynadapt.data import images, transforms
from dynadapt.errors import ConfigError, MachineError, NotMergeable
from dynadapt.main import main
from dynadapt.release import export
from dynadapt.runs import product
from tests import products
from tests.test_docs import ROOT, blocks

pytest.importorskip("flatbuffers", reason="flatbuffers is in the extra [export]")
pytestmark = pytest.mark.usefixtures("fast_compiling")

TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "handing_on.md"

# The lines of the page see jax and numpy; those that prepare photographs see Pillow besides.
SCRIPT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"{name} is not to be had here")

REFUSED = {"dynadapt", "flax", "optax", "orbax", "safetensors", "grain", "ml_collections", "PIL"}
sys.meta_path.insert(0, Refuse())
LOAD
REFUSED.discard("PIL")
"""
ASKED = """
ASK
one = model(pixels[:1])
np.savez("OUT.npz", seven=answer["logits"], one=one["logits"], classes=answer["classes"])
"""


def leave(folder, method="lora", change=None, file="configs_tiny.py", arg=None):
    """The folder of a run that left random values."""
    config = read_config(str(TESTS / file), arg or f"method={method}")
    if change:
        change(config)
    products.leave(folder / "adapter", config)
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return leave(tmp_path_factory.mktemp("export") / "lora")


def in_bfloat16(config):
    config.compute.frozen_dtype = "bfloat16"


@pytest.mark.slow
def test_the_lines_of_the_page_answer_as_the_runs_do(tmp_path):
    photos, rng = tmp_path / "photos", np.random.default_rng(5)
    photos.mkdir()
    for number in range(7):
        pixels = rng.integers(255, size=(20 + number, 13, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    runs = {"model": ("iconformer", None), "other": ("lora", in_bfloat16)}
    for out, (method, change) in runs.items():
        run = leave(tmp_path / method, method, change)
        assert main(["export", f"--workdir={run}", f"--out={tmp_path / out}"]) == 0
    load, ask = blocks(PAGE, "python")[:2]
    asked = "".join(ASKED.replace("ASK", ask.replace('"model"', repr(out))).replace("OUT", out)
                    for out in runs)  # fmt: skip
    (tmp_path / "script.py").write_text(SCRIPT.replace("LOAD", load) + asked)
    beside = Path(importlib.util.find_spec("flatbuffers").origin).parents[1]
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(beside)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    transform = transforms.pipeline("resize(8)")
    seen = [transform({"image": f.read_bytes()})["image"] for f in sorted(photos.iterdir())]
    named = []
    for out, (method, _) in runs.items():
        found = np.load(tmp_path / f"{out}.npz")
        network = products.network(tmp_path / method / "adapter")
        wanted = network(images.normalise(np.stack(seen), "inception"), Context())
        assert np.ptp(wanted, axis=0).max() > 0.1  # photographs differ
        np.testing.assert_allclose(found["seven"], wanted, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["one"], wanted[:1], rtol=0, atol=1e-5)
        named += [str(n) for n in found["classes"][:, 0]]
    assert done.stdout.split() == named


def to_onnx(program, given, *, input_names, output_names, return_mode, output_path):
    """jax2onnx's in its place: notes what it was given."""
    assert return_mode == "file" and output_path == "model.onnx"
    Session.seen = program, given, input_names, output_names


class Session:
    """onnxruntime's in its place: the file is the program that was noted."""

    def __init__(self, path):
        assert path == "model.onnx"
        self.program, _, self.inputs, _ = self.seen

    def run(self, names, feed):
        answer = jax.jit(self.program)(*(feed[name] for name in self.inputs))
        return [np.asarray(answer[name]) for name in names]


@pytest.mark.slow
def test_the_lines_of_the_page_for_onnx(tmp_path, monkeypatch, capsys):
    leave(tmp_path / "runs" / "quickstart", "iconformer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=to_onnx))
    runtime = SimpleNamespace(InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    names = {}
    exec(compile(blocks(PAGE, "python")[2], str(PAGE), "exec"), names)
    assert capsys.readouterr().out.count("logits") == 2
    np.testing.assert_allclose(names["found"]["logits"], names["wanted"]["logits"], atol=1e-5)
    program, given, inputs, outputs = Session.seen
    assert (given[0].shape, given[0].dtype, inputs) == (("b", 8, 8, 3), np.uint8, ["image"])
    assert outputs == ["classes", "logits", "probabilities"]
    # onnxruntime refuses what jax2onnx 0.17.1 writes for `.at[:, :1].add`.
    assert "scatter" not in str(jax.make_jaxpr(program)(*names["shapes"](2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "arg", "names"),
    [
        ("configs_dense.py", "task=segment", {"scores"}),
        pytest.param(
            *("configs_clouds.py", "task=points", {"classes", "probabilities", "voted"}),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            *("tiny_detector.py", "5", {"boxes", "scores", "classes"}),
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_other_tasks_answer_as_predict_does(file, arg, names, tmp_path):
    run = leave(tmp_path / "run", file=file, arg=arg)
    card = export.run(run / "adapter", tmp_path / "model", ["cpu"])
    assert {x["name"] for x in card["outputs"]} == names
    trained, rng = product.load(run / "adapter"), np.random.default_rng(2)
    batch = {}
    for given in card["inputs"]:
        shape, name = (3, *given["shape"][1:]), given["name"]
        batch[name] = {
            "image": rng.integers(255, size=shape),
            "points": rng.normal(size=shape),
            "extent": np.tile(np.int32([[20, 32]]), (3, 1)),
        }[name].astype(given["dtype"])
    program = jax.export.deserialize(bytearray((tmp_path / "model" / export.PROGRAM).read_bytes()))
    found = program.call(files.read_tensors(tmp_path / "model" / export.WEIGHTS), *batch.values())
    graph, train, stats, frozen = trained.parts
    step = predict.make_step(graph, trained.task, trained.config)
    mask = np.ones(3, np.float32)
    wanted = step({"train": train, "stats": stats}, frozen, {**batch, "mask": mask})
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_is_written(lora, tmp_path):
    out = tmp_path / "model"
    card = export.run(lora / "adapter", out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [export.CARD, export.PROGRAM, export.WEIGHTS]
    )
    assert json.loads(json.dumps(card)) == files.read_json(out / export.CARD)
    assert card["platforms"] == list(export.PLATFORMS)
    assert card["inputs"][0]["shape"] == ["b", 8, 8, 3]
    # Where the sources lie on this machine is nobody's business.
    assert str(ROOT).encode() not in (out / export.PROGRAM).read_bytes()


def test_verify_knows_an_export(lora, tmp_path, capsys):
    out = tmp_path / "model"
    export.run(lora / "adapter", out, ["cpu"])
    assert main(["verify", f"--workdir={out}"]) == 0
    for name in (export.PROGRAM, export.WEIGHTS):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        faults = {row["part"]: row["fault"] for row in export.verify(out)}
        assert faults[name] == f"{name} was changed" and sum(map(bool, faults.values())) == 1
        (out / name).write_bytes(whole)
    (out / export.WEIGHTS).unlink()
    card = files.read_json(out / export.CARD)
    files.write_json(out / export.CARD, card | {"classes": []})
    capsys.readouterr()
    assert main(["verify", f"--workdir={out}"]) == 2
    assert capsys.readouterr().out.count("was changed") == 1


def test_merging_is_asked_for(lora, tmp_path):
    def tensors(name, merge):
        export.run(lora / "adapter", tmp_path / name, ["cpu"], merge=merge)
        return files.read_tensors(tmp_path / name / export.WEIGHTS)

    plain, merged = tensors("plain", False), tensors("merged", True)
    assert any("adapter" in path for path in plain)
    assert not any("adapter" in path for path in merged) and merged.keys() < plain.keys()
    kernel = "backbone/blocks/0/attn/qkv/kernel"
    assert np.abs(plain[kernel] - merged[kernel]).max() > 1e-3


def test_what_cannot_be_merged(tmp_path):
    run = leave(tmp_path / "run", "iconformer")
    with pytest.raises(NotMergeable, match="iconformer"):
        export.run(run / "adapter", tmp_path / "model", merge=True)
    assert not (tmp_path / "model").exists()


def test_mistakes_get_one_sentence(lora, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for argv, part in (
        ([f"--workdir={lora}", "--platforms=gpu", f"--out={tmp_path / 'm'}"], "unknown platform"),
        ([f"--workdir={tmp_path}", f"--out={tmp_path / 'm'}"], "adapter.json"),
        ([f"--workdir={lora}", f"--out={full}"], "holds files"),
        ([f"--workdir={lora}"], "--out="),
    ):
        assert main(["export", *argv]) == 2
        err = capsys.readouterr().err
        assert part in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "m").exists()


def test_a_model_for_one_batch_size_alone(lora, tmp_path, monkeypatch):
    from dynadapt.tasks.classification import Task

    monkeypatch.setattr(Task, "answer", lambda self, logits, batch: {"count": len(logits)})
    with pytest.raises(ConfigError, match="'lora' with the task 'classification' can't be exp"):
        export.run(lora / "adapter", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_task_without_an_answer(tmp_path):
    def pretext(config):
        config.task = {"name": "pretraining"}

    run = leave(tmp_path / "run", "full", pretext)
    with pytest.raises(ConfigError, match="'pretraining' has no answer"):
        export.run(run / "adapter", tmp_path / "model")


def test_a_full_disk_leaves_no_export(lora, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_tensors", full)
    with pytest.raises(MachineError, match="No space left"):
        export.run(lora / "adapter", tmp_path / "model", ["cpu"])
    assert not export.is_folder(tmp_path / "model")


def test_without_flatbuffers(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"dynadapt\[export\]"):
        export.run(lora / "adapter", tmp_path / "model")
