"""Figures of saved adapters: files, numbers that are known beforehand, mistakes."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from dynadapt.commands import config_file
from dynadapt.errors import ConfigError, MachineError, UnknownName
from dynadapt.figures import attention, canvas, figures, gradcam, tsne
from dynadapt.figures.trained import Spaced, TrainedRun
from dynadapt.main import main
from tests import configs_dense, products
from tests.figures.saved import saved

pytestmark = pytest.mark.usefixtures("fast_compiling")

SPLIT = "test[:40]"


@pytest.fixture(scope="module")
def icon(tmp_path_factory):
    """The folder of a run of iConFormer."""
    return saved(tmp_path_factory.mktemp("icon"), split=SPLIT).parent


def assert_pictures(result, *names):
    """All figures are PNG files of a sensible size."""
    assert [figure["name"] for figure in result["figures"]] == list(names)
    for figure in result["figures"]:
        with Image.open(figure["file"]) as image:
            assert image.format == "PNG" and min(image.size) >= 300 and max(image.size) <= 1500
            assert len(image.convert("RGB").getcolors(1 << 24)) > 30  # it isn't empty
    json.dumps(result, allow_nan=False)


def numbers(result, name):
    return next(figure for figure in result["figures"] if figure["name"] == name)


def test_all_that_serve_a_run(icon, capsys):
    result = figures.run(icon)
    assert_pictures(result, "kernels", "spread", "tsne", "gradcam")
    assert numbers(result, "kernels")["images"] == 6 and numbers(result, "spread")["images"] == 40
    spread = numbers(result, "spread")["blocks"]
    assert [(row["site"], row["block"]) for row in spread] == [("mlp", 0), ("mlp", 1)]
    sizes = np.array([row["size"] for row in spread])
    shares = np.array([row["spread"] for row in spread])
    varies = np.sqrt(np.square(sizes * shares).mean() / np.square(sizes).mean())
    assert numbers(result, "kernels")["varies"] == pytest.approx(varies, rel=1e-5) and varies > 0.01
    assert numbers(result, "tsne")["width"] == 16
    images = numbers(result, "gradcam")["images"]
    assert len(images) == 6 and all(0.1 <= one["probability"] <= 1 for one in images)
    figures.show(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"kernels: {icon / 'figures' / 'kernels.png'}" and len(lines) == 8
    assert "router is left out: iconformer has no router; adapter_x does" in lines


def test_static_kernels_do_not_vary(tmp_path):
    run = saved(tmp_path, kernels="static", split="test[:10]").parent
    result = figures.run(run, ["kernels"], tmp_path / "out")
    assert_pictures(result, "kernels")
    assert numbers(result, "kernels")["varies"] < 1e-6
    assert numbers(result, "kernels")["largest"] < 1e-6


def test_importance_maps(tmp_path):
    """Of 2 x 2 positions each, they sum to 1."""
    run = saved(tmp_path, "vfm_adapter", split=SPLIT, z=4, prompts=3).parent
    result = figures.run(run, ["importance"], examples=2)
    assert_pictures(result, "importance")
    found = numbers(result, "importance")
    assert found["images"] == 2 and found["sum"] == pytest.approx(1, abs=1e-5)
    sites = [(row["site"], row["block"]) for row in found["peaks"]]
    assert sites == [("attn", 0), ("attn", 1), ("mlp", 0), ("mlp", 1)]
    assert all(1.01 < row["peak"] < 4 for row in found["peaks"])


def test_routes_by_place(tmp_path):
    """Sub-token j of token i goes to expert (i + j) mod 3; the second block has one token more.

    Behind the class token are places for two prompts, and then four patches.
    """
    run = saved(tmp_path, "adapter_x", split=SPLIT, routing="fixed", experts=3, heads=2).parent
    result = figures.run(run, ["router"])
    assert_pictures(result, "router")
    found = numbers(result, "router")
    for block, (load, chance) in enumerate(zip(found["load"], found["probability"], strict=True)):
        there = [*range(1 + block), *range(3, 7)]
        places = [(i + j) % 3 for i in there for j in range(2)]
        wanted = np.bincount(places, minlength=3) / len(places)
        np.testing.assert_allclose(load, wanted, rtol=1e-6)
        np.testing.assert_allclose(chance, wanted, rtol=1e-6)
    assert found["images"] == 40


def test_learned_routes(tmp_path):
    """Shares of whole sub-tokens, and probabilities that are no such shares, add to 1."""
    run = saved(tmp_path, "adapter_x", split=SPLIT, heads=2).parent
    found = numbers(figures.run(run, ["router"]), "router")
    counts = 40 * 5 * 2 * np.array([found["load"][0], found["probability"][0]])
    off = np.abs(counts - counts.round()).max(1)
    np.testing.assert_allclose(counts.sum(1), 400, rtol=1e-5)
    assert off[0] < 0.01 < off[1] and counts[0].std() > 1


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The folder of a run of two tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    arg = "task=multitask,tasks=semseg+normals"
    c = config_file.read_config(configs_dense.__file__, arg)
    c.task.channels, c.input.eval_split = 1, "test[:5]"
    products.leave(folder / "adapter", c)
    return folder


def test_figures_of_several_tasks(tasks):
    result = figures.run(tasks, ["attention", "gradcam"])
    assert_pictures(result, "attention", "gradcam")
    found = numbers(result, "attention")
    assert found["images"] == 3 and found["tasks"] == ["semseg", "normals"]
    assert [stage["grid"] for stage in found["stages"]] == [(4, 4)] * 3
    assert all(-0.18 < s["lowest"] < s["largest"] and 0 < s["apart"] < 1 for s in found["stages"])
    found = numbers(result, "gradcam")
    assert found["images"] == 5 and found["tasks"] == ["semseg", "normals"]
    assert 0 < found["alike"] < 1


def test_kernels_of_tasks_are_those_of_the_layers_where_they_part(tasks):
    run = TrainedRun(tasks / "adapter")
    layers = [f"part {part} {layer}" for part in range(3) for layer in ("proj", "fc1", "fc2")]
    assert list(run.sites(run.recorded("kernel")).values()) == layers


def test_how_far_tasks_differ():
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 1))
    assert attention._apart(np.repeat(maps, 3, axis=-1)) == pytest.approx(0, abs=1e-6)
    assert attention._apart(np.concatenate([maps, -maps], axis=-1)) == pytest.approx(1)
    one = np.eye(4).reshape(2, 2, 4)
    assert gradcam._alike([one, 2 * one]) == pytest.approx(1) == gradcam._alike([one])
    assert gradcam._alike([one, one[:, ::-1], one[:, ::-1]]) == pytest.approx(1 / 3)


def test_neighbours_of_the_same_class():
    places = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.0, 5.1], [9.0, 0.0]])
    names = np.array(["a", "a", "b", "b", "a"])
    assert tsne.neighbours(places, names) == pytest.approx(0.8)


@pytest.mark.parametrize(("classes", "entries"), [(10, 10), (25, 21)])
def test_a_legend_of_at_most_twenty_classes(classes, entries):
    names = np.array([f"class {n}" for n in range(classes) for _ in range(2 + n % 2)])
    figure = canvas.blank(4, 4)
    axes = figure.subplots()
    tsne.scatter(axes, np.random.default_rng(0).normal(size=(len(names), 2)), names)
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(shown) == entries and ("5 other classes" in shown) == (classes > 20)


def test_examples_are_spread_over_the_split():
    class Source(list):
        info = None

    spaced = Spaced(Source(range(100, 110)), 4)
    assert [spaced[i] for i in range(len(spaced))] == [100, 103, 106, 109]
    assert len(Spaced(Source(range(3)), 5)) == 3 and Spaced(Source(range(3)), 1)[0] == 0


def test_the_command(icon, tmp_path, capsys):
    argv = ["figures", f"--workdir={icon}", "--what=gradcam,spread", f"--out={tmp_path / 'out'}"]
    assert main([*argv, "--examples=3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert_pictures(result, "spread", "gradcam")
    assert len(numbers(result, "gradcam")["images"]) == 3
    assert numbers(result, "spread")["images"] == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["gradcam.png", "spread.png"]


MISTAKES = {
    "name": (["--what=kernel"], "unknown figure 'kernel'; did you mean 'kernels'?"),
    "name that is far": (
        ["--what=kernels,x"],
        "unknown figure 'x'; choose one of all, attention",
    ),
    "method": (["--what=kernels,router"], "no figure router: iconformer has no router; adapter_x"),
    "nothing tuned": (["--what=singular"], "tunes no matrices of the backbone; full does"),
    "beside what": (["--what=tsne", "--beside=x"], "--beside goes with the figure singular"),
    "beside nothing": (["--what=all", "--beside=x"], "--beside would change nothing"),
    "examples": (["--what=spread", "--examples=0"], "--examples must be from 1"),
    "few points": (["--what=tsne", "--examples=2"], "t-SNE needs at least 3 images, not 2"),
    "out": (["--out=nowhere/out"], "--out=nowhere/out must be a folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, icon, capsys):
    given, part = MISTAKES[name]
    assert main(["figures", f"--workdir={icon}", *given]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and part in shown.err


def test_a_task_without_classes(tmp_path):
    from dynadapt import config

    c = config.default(backbone="vit_mini", method="full", task="pretraining", data_set="digits")
    c.backbone.update(dict(dim=16, depth=1, heads=2, image_size=8))
    c.input.train = c.input.eval = "resize(8)"
    c.input.eval_split = "test[:4]"
    products.leave(tmp_path / "adapter", c)
    with pytest.raises(ConfigError, match="the head of pretraining pools no features") as caught:
        figures.run(tmp_path, ["tsne", "gradcam"])
    assert "pretraining predicts no class of an image; classification does" in str(caught.value)


def test_without_matplotlib(icon, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MachineError, match=r"plots need matplotlib: pip install 'dynadapt\[viz\]'"):
        figures.run(icon, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_run(tmp_path):
    with pytest.raises(UnknownName, match="unknown figure"):
        figures.run(tmp_path, ["tsn"])
