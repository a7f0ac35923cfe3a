"""The model card: what the hub reads of it, what it says of the run, lines that work."""

import shlex

import pytest
import yaml
from PIL import Image

from dynadapt import files, weights
from dynadapt.commands.config_file import read_config
from dynadapt.main import main
from dynadapt.release import model_card
from dynadapt.runs import product
from dynadapt.weights.catalogue import PUBLISHED
from tests import products
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.usefixtures("fast_compiling")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, with the figures of a run."""
    folder = tmp_path_factory.mktemp("card") / "run"
    adapter = products.leave(
        folder / "adapter", read_config(str(ROOT / "tests" / "configs_tiny.py"), "method=lora")
    )
    card = files.read_json(adapter / product.CARD)
    metrics = {"top1": 91.25, "loss": 0.123456, "examples": 40, "classes": {"0": {"acc": 1.0}}}
    product.save(
        adapter, files.read_tensors(adapter / product.TENSORS), card | {"metrics": metrics}
    )
    return folder


@pytest.fixture
def change(run, tmp_path):
    """Gives the adapter with other values in its card."""

    def changed(**values):
        leaves = files.read_tensors(run / "adapter" / product.TENSORS)
        card = files.read_json(run / "adapter" / product.CARD) | values
        product.save(tmp_path / "adapter", leaves, card)
        return product.read(tmp_path / "adapter")

    return changed


def head(text):
    """The values in the head of a card."""
    _, given, _ = text.split("---\n", 2)
    return yaml.safe_load(given)


def test_what_the_hub_reads(run):
    values = head(model_card.text(product.read(run / "adapter"), "someone/digits"))
    assert values["library_name"] == "dynadapt" and values["pipeline_tag"] == "image-classification"
    assert {"lora", "classification"} < set(values["tags"]) and values["metrics"] == [
        "top1",
        "loss",
    ]
    (model,) = values["model-index"]
    found = {m["type"]: m["value"] for m in model["results"][0]["metrics"]}
    assert model["name"] == "digits" and found == {"top1": 91.25, "loss": 0.1235}
    assert not {"license", "base_model"} & set(values)  # random weights


def test_what_it_says(run):
    text = model_card.text(product.read(run / "adapter"))
    card = files.read_json(run / "adapter" / product.CARD)
    for part in ("| `top1` | 91.25 |", "`test[:40]` of digits, 40 examples", "seed 0", "`rank=4`"):
        assert part in text
    assert f"| {card['counts']['trained']:,} |" in text
    assert "stretched to 8 x 8 pixels" in text and "the mean (0.5, 0.5, 0.5)" in text
    assert "random, made from the seed" in text and "ask where they come from" in text


@pytest.mark.parametrize(
    ("name", "model"),
    [("dinov2_s14", "facebook/dinov2-small"), ("vit_b16_mae", None), ("swin_t_in1k", None)],
)
def test_published_weights_are_known_by_hash_or_file(name, model, change):
    known = next(p for p in PUBLISHED if p.name == name)
    digest = known.digest.removeprefix("sha256:") if "sha256" in known.digest else "0" * 64
    text = model_card.text(change(weights=f"/home/someone/{known.file}", weights_sha256=digest))
    values = head(text)
    assert values["license"] == known.licence.lower() and values.get("base_model") == model
    assert f"({name}): {known.licence}" in text and f"`dynadapt weights {name}`" in text
    assert "/home/someone" not in text and "--weights=FILE" in text


def test_shipped_and_unknown_weights(change):
    assert head(model_card.text(change(weights=weights.shipped()[0])))["license"] == "apache-2.0"
    text = model_card.text(change(weights="/home/someone/mine.npz", weights_sha256="0" * 64))
    assert "license" not in head(text) and "backbone: not known to dynadapt" in text
    assert "`mine.npz`" in text and "/home/someone" not in text


def test_a_card_is_written_once(run, capsys):
    assert main(["card", f"--workdir={run}"]) == 0
    file = run / "adapter" / model_card.FILE
    assert str(file) in capsys.readouterr().out
    file.write_text("edited")
    assert main(["card", f"--workdir={run}"]) == 2
    assert "is there already" in capsys.readouterr().err and file.read_text() == "edited"
    assert main(["verify", f"--workdir={run}"]) == 0  # the adapter is what it was
    file.unlink()


def test_a_card_of_no_run(tmp_path, capsys):
    assert main(["card", f"--workdir={tmp_path}"]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_its_lines_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter").symlink_to(run / "adapter")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 12), (200, 30, 30)).save(tmp_path / "photos" / "red.png")
    (tmp_path / "card.md").write_text(model_card.text(product.read(run / "adapter")))
    pull, predict = blocks(tmp_path / "card.md", "bash")[0].splitlines()
    assert pull == "dynadapt hub pull --repo=OWNER/NAME --out=model"
    (tmp_path / "a.jpg").write_bytes((tmp_path / "photos" / "red.png").read_bytes())
    (python,) = blocks(tmp_path / "card.md", "python")
    exec(compile(python, "card.md", "exec"), {})
    assert "'file': 'a.jpg'" in capsys.readouterr().out
    assert main(shlex.split(predict)[1:]) == 0
