"""`dynadapt.load`, `dynadapt.adapt`: what is answered, in which order, and what is refused."""

import inspect
import io
import json
import re
import textwrap

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import dynadapt
from dynadapt import api, files, tree
from dynadapt import model as models
from dynadapt.commands.config_file import read_config
from dynadapt.errors import CheckpointError, ConfigError, DataError
from dynadapt.main import main
from tests import devices, products
from tests.test_docs import blocks, run_page
from tests.test_predict import TINY, photo

DENSE = f"{devices.ROOT}/tests/configs_dense.py"
CLOUDS = f"{devices.ROOT}/tests/configs_clouds.py"
pytestmark = pytest.mark.usefixtures("fast_compiling")
PAGE = devices.ROOT / "docs" / "python.md"
README = devices.ROOT / "README.md"


def left(folder, file, arg):
    """A run's folder, with its adapter alone."""
    products.leave(folder / "adapter", read_config(file, arg))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, fast_compiling):
    return left(tmp_path_factory.mktemp("api") / "run", TINY, "method=linear")


@pytest.fixture(scope="module")
def model(run):
    return dynadapt.load(run, batch=4)


@pytest.fixture
def photos(tmp_path):
    """Five photos in files, of two sizes."""
    for number in range(5):
        photo(number, (24, 16 + number % 2)).save(tmp_path / f"{number}.png")
    return sorted(tmp_path.glob("*.png"))


def test_the_package_offers_them():
    assert dynadapt.load is api.load and dynadapt.adapt is api.adapt
    assert {"adapt", "load", "Predictor", "__version__"} <= {*dir(dynadapt)}
    with pytest.raises(AttributeError, match="'dynadapt' has no attribute 'laod'"):
        dynadapt.laod  # noqa: B018


def test_paths_pictures_and_arrays_are_answered_in_their_order(model, photos):
    pictures = [Image.open(path) for path in photos]
    arrays = [np.asarray(picture) for picture in pictures]
    found = model.predict(photos)
    assert [record["file"] for record in found] == [str(path) for path in photos]
    assert len({record["probability"] for record in found}) == 5

    def said(records):
        return [{**record, "file": ""} for record in records]

    assert said(model.predict(map(str, photos[::-1]))) == said(found)[::-1]
    mixed = [photos[0], pictures[1], arrays[2], pictures[3], arrays[4]]
    assert said(model.predict(mixed)) == said(model.predict(iter(arrays))) == said(found)
    assert model.predict(arrays)[3]["file"] == "items[3]"
    assert said(model.predict([photos[1], photos[1]])) == 2 * [said(found)[1]]
    same = np.stack([arrays[0], arrays[2]])
    assert said(model.predict(same)) == [said(found)[0], said(found)[2]]
    assert model.predict([]) == []


def test_it_answers_as_the_command_does(run, model, photos, tmp_path, capsys):
    command = ["predict", f"--workdir={run}", f"--images={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert main([*command, "--json"]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    own = [{**record, "file": record["file"].split("/")[-1]} for record in model.predict(photos)]
    assert list(lines) == own


def test_one_shape_is_compiled(model, photos, monkeypatch):
    shapes = []
    answers = model._answers
    monkeypatch.setattr(
        model, "_answers", lambda b: (shapes.append(b["image"].shape), answers(b))[1]
    )
    for count in (1, 3, 5):
        assert len(model.predict(photos[:count])) == count
    assert shapes == 4 * [(4, 8, 8, 3)]


def test_grey_and_turned_pictures(model, tmp_path):
    grey = photo(0).convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(1).save(tmp_path / "turned.png", exif=turned)
    grey.save(tmp_path / "grey.png")
    whole = np.repeat(np.asarray(grey)[..., None], 3, axis=-1)
    found = model.predict([grey, np.asarray(grey), whole, tmp_path / "grey.png"])
    assert len({record["probability"] for record in found}) == 1
    upright = photo(1).transpose(Image.Transpose.ROTATE_270)
    found = model.predict([tmp_path / "turned.png", Image.open(tmp_path / "turned.png"), upright])
    assert len({record["probability"] for record in found}) == 1


def cut():
    """A picture of Pillow's whose file is cut short."""
    content = io.BytesIO()
    photo(3).save(content, "jpeg")
    return Image.open(io.BytesIO(content.getvalue()[:-100]))


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        (["nowhere.jpg"], DataError, "cannot read the image nowhere.jpg: No such file"),
        (["/"], DataError, "cannot read the image /: Is a directory"),
        ([photo(0), TINY], DataError, "cannot decode .*configs_tiny.py"),
        ([photo(0), cut()], DataError, r"cannot decode items\[1\]: image file is truncated"),
        ([np.zeros((4, 4, 3))], DataError, r"items\[0\] is float64 .* must be uint8"),
        ([None], DataError, r"items\[0\] is object"),
        ("a.jpg", ConfigError, r"give a list, such as predict\(\['a.jpg'\]\)"),
        (photo(0), ConfigError, "give a list"),
        (7, ConfigError, "give a list"),
        (np.zeros((8, 8, 3), np.uint8), ConfigError, r"not one array of shape \(8, 8, 3\)"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_is_no_list_of_images(model, items, error, text):
    with pytest.raises(error, match=text):
        model.predict(items)


def test_a_run_and_its_adapter_are_one(run, photos):
    first, second = (dynadapt.load(str(path)) for path in (run, run / "adapter"))
    assert first.predict(photos) == second.predict(photos)
    assert first.classes == tuple("0123456789") and first.metrics == {}


@pytest.mark.parametrize(
    ("place", "settings", "error", "text"),
    [
        ("rnn", {}, CheckpointError, "there is no folder '.*/rnn'; did you mean '.*/run'"),
        ("", {}, CheckpointError, "no adapter in .*; give the folder of a finished run, or its"),
        ("run", {"weights": "vit_mini"}, CheckpointError, "weights"),
        ("run", {"batch": 0}, ConfigError, "batch must be at least 1"),
        ("run", {"method": "lora"}, ConfigError, "'lora' must be a file with the ending .py"),
    ],
)
def test_what_is_not_loaded(run, place, settings, error, text):
    with pytest.raises(error, match=text):
        dynadapt.load(run.parent / place, **settings)


def test_missing_weights_are_named(tmp_path):
    weights = tmp_path / "small.safetensors"
    c = read_config(TINY, "method=linear")
    c.backbone.weights = str(weights)
    write_backbone(c, weights)
    products.leave(tmp_path / "run" / "adapter", c)
    moved = weights.rename(tmp_path / "moved.safetensors")
    text = "no weights at .*small.safetensors'; .* where they have moved, give --weights=FILE"
    with pytest.raises(CheckpointError, match=text):
        dynadapt.load(tmp_path / "run")
    assert dynadapt.load(tmp_path / "run", weights=moved).predict([photo(0)])


def write_backbone(config, file):
    """Writes the random backbone of a config as a file of weights."""
    bare = config.copy_and_resolve_references()
    bare.backbone.weights = ""
    leaves = tree.leaves(nnx.state(models.loaded_backbone(bare)))
    files.write_tensors(file, {path: np.asarray(x) for path, x in leaves.items()})


@pytest.mark.slow
def test_maps_come_as_files(tmp_path, photos):
    model = dynadapt.load(left(tmp_path / "run", DENSE, "task=segment,method=linear"))
    record = model.predict(photos)[1]
    labels = Image.open(io.BytesIO(record["files"][".png"]))
    assert labels.size == (17, 24) and "classes" in record


@pytest.mark.slow
def test_clouds(tmp_path):
    model = dynadapt.load(left(tmp_path / "run", CLOUDS, "task=points,method=linear"))
    clouds = np.random.default_rng(0).normal(size=(3, 50, 3))
    np.savetxt(tmp_path / "cloud.txt", clouds[0])
    found = model.predict(clouds)
    assert [record["file"] for record in found] == [f"items[{i}]" for i in range(3)]
    assert model.predict([clouds[2]])[0]["probability"] == found[2]["probability"]
    assert model.predict([str(tmp_path / "cloud.txt")])[0]["file"].endswith("cloud.txt")
    with pytest.raises(ConfigError, match=r"not one array of shape \(50, 3\)"):
        model.predict(clouds[0])
    with pytest.raises(DataError, match=r"items\[0\] has 1 of 50 points that are not finite"):
        model.predict([np.where(np.arange(150).reshape(50, 3) == 4, np.nan, clouds[0])])
    with pytest.raises(DataError, match="photo.jpg is no cloud"):
        model.predict(["photo.jpg"])


@pytest.mark.slow
def test_training_gives_a_model(tmp_path):
    given = read_config(TINY, "method=linear,steps=2")
    model = dynadapt.adapt(given, tmp_path / "run", {"optim.lr": 0.02, "trainable": ()})
    assert given.optim.lr == 0.01
    card = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert card["config"]["optim"]["lr"] == 0.02 and model.metrics == card["metrics"]
    again = dynadapt.adapt(f"{TINY}:method=linear,steps=2", tmp_path / "run", {"optim.lr": 0.02})
    assert again.metrics == model.metrics
    with pytest.raises(ConfigError, match="optim.lr"):  # the folder is of another config
        dynadapt.adapt(given, tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "overrides", "text"),
    [
        ("quikstart", {}, "did you mean 'quickstart'"),
        ("quickstart:method=lorra", {}, "did you mean 'lora'"),
        ("quickstart", {"optim.lrr": 1}, "unknown config field 'optim.lrr'; did you mean"),
        ("quickstart", {"optim.steps": 1.5}, "steps=1.5 must be a whole number"),
        ({"optim": 1}, {}, r"what config.default\(…\) made, not dict"),
    ],
)
def test_configs_that_are_refused(tmp_path, config, overrides, text):
    with pytest.raises(ConfigError, match=text):
        dynadapt.adapt(config, tmp_path / "run", overrides)
    assert not (tmp_path / "run").exists()


def examples(text):
    """The indented blocks of a docstring before its sections."""
    text = inspect.cleandoc(text).split("\nArgs:")[0]
    found = re.findall(r"(?:^    .*\n?|^\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found if block.strip()]


@pytest.mark.slow
def test_the_page_and_the_docstrings_run(tmp_path, monkeypatch, capsys):
    def leave(config, folder):
        products.leave(folder / "adapter", config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api.train, "run", leave)  # as if it had trained
    for name in ("digit.png", "a.jpg", "photo.jpg"):
        photo(0, (8, 8)).save(name)
    names, shown = run_page(PAGE, capsys)
    assert shown == 3 and names["model"].card["method"] == "adaptformer"
    for content in blocks(README, "python"):
        exec(compile(content, str(README), "exec"), {})
    assert capsys.readouterr().out.endswith("(2, 8, 8, 128)\n")

    documented = (dynadapt, api.adapt, api.load, api.Predictor.predict)
    code = [block for given in documented for block in examples(given.__doc__)]
    assert len(code) == len(documented)
    monkeypatch.setattr(api.train, "run", lambda c, folder: None)  # it is complete
    for block in code:
        exec(block, {"dynadapt": dynadapt, "numpy": np, "model": names["model"]})
