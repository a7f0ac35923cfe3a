"""Several tasks at once from a config to answers, on scenes of 16 pixels and a random backbone."""

import json

import numpy as np
import pytest
from PIL import Image

from dynadapt import config, files, inputs, model, tasks
from dynadapt.commands.config_file import read_config
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.runs import workdir
from tests import configs_dense, devices

pytestmark = pytest.mark.usefixtures("fast_compiling")

FILE = f"{devices.ROOT}/configs/multitask.py"
MODES = {"semseg": "P", "normals": "RGB", "saliency": "L", "depth": "I;16"}


@pytest.mark.slow
def test_a_run_answers_each_task_in_a_folder_of_its_own(tmp_path, capsys):
    """Streams of the tasks are trained, evaluated from the adapter's folder, and asked for new
    images."""
    work, out, photos = (tmp_path / name for name in ("run", "answers", "photos"))
    arg = f"task=multitask,method=mtlora,tasks={'+'.join(MODES)}"
    small = dict(depth=1, levels=(0,))
    given = [f"--config.backbone.{k}={v}" for k, v in small.items()]
    given += ["--config.task.channels=1", "--config.task.references=(50.,30.,40.,1.)"]
    given += ["--config.optim.steps=3", "--config.input.eval_split=test[:9]"]
    spec = f"{configs_dense.__file__}:{arg}"
    assert main(["train", f"--config={spec}", f"--workdir={work}", *given]) == 0
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    first, weights = lines[0], (1, 10, 5, 1)
    parts = [w * first[f"{name}/loss"] for w, name in zip(weights, MODES, strict=True)]
    assert first["loss"] == pytest.approx(sum(parts), rel=1e-5)
    metrics = files.read_json(work / "predictions" / "metrics.json")
    assert files.read_json(work / "result.json")["headline"] == "delta_m"
    assert metrics["examples"] == 9
    for name, mode in MODES.items():
        maps = sorted((work / "predictions" / name).iterdir())
        assert len(maps) == 9
        with Image.open(maps[0]) as image:
            assert (image.mode, image.size) == (mode, (16, 16)), name
    assert (work / "predictions" / "pictures.png").is_file()
    capsys.readouterr()
    assert main(["eval", f"--workdir={work}", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {k: again[k] for k in metrics} == metrics

    photos.mkdir()
    pixels = np.random.default_rng(0).integers(255, size=(30, 45, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "wide.jpg")
    asked = [f"--workdir={work}", f"--images={photos}", f"--out={out}", "--pictures"]
    assert main(["predict", *asked]) == 0
    for name, mode in MODES.items():
        with Image.open(out / name / "wide.png") as image:
            assert (image.mode, image.size) == (mode, (45, 30)), name
    assert (out / "pictures" / "wide.png").is_file()


@pytest.mark.parametrize(
    ("arg", "count"),
    [("recipe=pascal", 3_557_502), ("recipe=nyud", 3_092_370)],
)
def test_published_recipes_train_as_many_as_printed(arg, count):
    c = config.resolve(read_config(FILE, f"{arg},data=blank"))
    config.check(c)
    split = inputs.open_split(c, "train")
    network = model.abstract(c, tasks.from_config(c.task, split.source.info), split.spec)
    parts = model.split(network, c)
    assert workdir.counts(parts.train, parts.frozen)["trained_with_head"] == count
    assert c.optim.lr == pytest.approx(3.125e-5)


def test_arguments_choose_tasks_data_and_fields():
    c = read_config(FILE, "path=/data/rooms,tasks=semseg+human_parts,method=mtlora,rank=5")
    assert c.data.name == "folders" and c.data.labels == "labels/{split}"
    assert c.data.human_parts == "human_parts/{split}" and c.data.depth == ""
    assert c.adapter.tasks == c.task.tasks == ("semseg", "human_parts") and c.adapter.rank == 5
    c = read_config(FILE, "recipe=pascal,tasks=semseg+edges,path=/data")
    assert c.data.fields == ("labels", "edges") and c.task.references == ()
    assert c.input.eval_split == "val"
    for arg, words in (("method=bitfit,rank=4", "bitfit has no rank"), ("recipe=paskal", "pascal"),
                       ("tasks=semseg+", "unknown task ''")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            read_config(FILE, arg)


def test_the_tasks_of_an_adapter_are_those_of_the_heads():
    c = read_config(FILE, "method=mtlora,data=blank")
    c.backbone.weights, c.adapter.tasks = "", ("semseg", "depth")
    c = config.resolve(c)
    split = inputs.open_split(c, "train")
    with pytest.raises(ConfigError, match="the heads' semseg, .*; they must have the same names"):
        model.abstract(c, tasks.from_config(c.task, split.source.info), split.spec)
