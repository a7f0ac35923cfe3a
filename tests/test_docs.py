"""What the documents show: their code runs, prints what stands there, and their commands parse."""

import contextlib
import functools
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

import dynadapt
from dynadapt import adapters, attach, backbones, data, errors, tasks
from dynadapt import config as configs
from dynadapt.commands import COMMANDS, config_file
from dynadapt.figures import figures
from dynadapt.layers import SameKey
from dynadapt.main import main
from dynadapt.plans import compare
from dynadapt.sweep import protocol
from tests import products

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "add_a_method.md"
METHODS = ROOT / "docs" / "methods.md"
HANDING_ON = ROOT / "docs" / "handing_on.md"
SERVING = ROOT / "docs" / "serving.md"
FIGURES = ROOT / "docs" / "figures.md"
DENSE = ROOT / "docs" / "dense.md"
DETECTION = ROOT / "docs" / "detection.md"
SEVERAL = ROOT / "docs" / "multitask.md"
POINTS = ROOT / "docs" / "points.md"
SWEEPS = ROOT / "docs" / "sweeps.md"
LOGGING = ROOT / "docs" / "logging.md"
TASKS = ROOT / "docs" / "add_a_task.md"
SECURITY = ROOT / "SECURITY.md"
NAME = "mlp_affine"


def all_blocks(document):
    """Language and content of the document's code blocks, in order."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks(document, language):
    """The contents of the document's code blocks of a language, in order."""
    return [content for kind, content in all_blocks(document) if kind == language]


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The guide's method file, in a folder where methods are found while the test runs."""
    source = blocks(GUIDE, "python")[0]
    (tmp_path / f"{NAME}.py").write_text(source)
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    yield adapters.module(NAME)
    sys.modules.pop(f"{adapters.__name__}.{NAME}", None)
    vars(adapters).pop(NAME, None)


@contextlib.contextmanager
def anew(test):
    """A file of tests, as a module of its own."""
    spec = importlib.util.spec_from_file_location("suite_of_the_guide", ROOT / "tests" / test)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@pytest.fixture
def suite():
    """The common suite over all methods."""
    with anew("test_adapters.py") as module:
        yield module


def test_the_guides_file_is_a_method(method):
    assert f"dynadapt/adapters/{NAME}.py" in GUIDE.read_text(encoding="utf-8")
    assert NAME in adapters.names() and adapters.settings(NAME) == {"dropout": 0.0, "layers": 0}
    backbone = backbones.create("vit_mini", rngs=nnx.Rngs(0))
    adapters.adapt(backbone, NAME, rngs=nnx.Rngs(1))
    hosts = [path for path, _ in attach.adapted(backbone)]
    assert hosts == [f"blocks/{i}/mlp" for i in range(6)]


def test_the_guides_method_is_gone_afterwards():
    assert NAME not in adapters.names()
    assert f"{adapters.__name__}.{NAME}" not in sys.modules


@pytest.mark.slow
def test_the_guides_use_prints_what_it_says(method, capsys):
    exec(compile(blocks(GUIDE, "python")[1], str(GUIDE), "exec"), {})
    assert [capsys.readouterr().out] == blocks(GUIDE, "")


@pytest.mark.slow
def test_the_guides_row_passes_the_suite(method, suite, fast_compiling):
    before = len(suite.COUNTS)
    rows = blocks(GUIDE, "python")[2:]
    assert len(rows) == 2
    for row in rows:
        exec(row, vars(suite))
    suite.test_every_method_has_a_row()
    assert len(suite.COUNTS) == before + 2
    for row in suite.COUNTS[before:]:
        suite.test_exact_parameter_counts(*row)
    suite.test_zero_effect_at_the_start(NAME)
    suite.test_a_changed_adapter_has_an_effect(NAME)
    suite.test_what_trains_and_what_is_frozen(NAME)
    suite.test_only_trained_leaves_change(NAME)
    suite.test_every_trained_leaf_gets_a_gradient_soon(NAME)
    suite.test_what_does_not_fold_says_so(NAME)
    suite.test_detaching_gives_the_bare_model(NAME)


def test_the_guides_commands(method, capsys):
    train, plan = blocks(GUIDE, "bash")[0].splitlines()
    assert main(shlex.split(plan)[1:]) == 0
    assert "18,432" in capsys.readouterr().out
    config = loaded(shlex.split(train)[2:])
    assert config.adapter.to_dict() == {"name": NAME, "dropout": 0.1, "layers": 0}


def loaded(argv):
    """The checked config of a command line."""
    spec = next(a for a in argv if a.startswith("--config="))
    overrides = [a for a in argv if a.startswith("--config.")]
    file = str(ROOT / spec.removeprefix("--config="))
    config = config_file.load(file, overrides)
    config.backbone.weights = ""
    configs.check(config)
    return config


def lines():
    """Method and options of each row under "On the command line"."""
    text = METHODS.read_text(encoding="utf-8").split("## On the command line")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| `(--.*)` \|$", text, re.MULTILINE)


def test_every_method_with_settings_has_a_line():
    own = [n for n in adapters.names() if adapters.settings(n).keys() > {"layers"}]
    assert [name for name, _ in lines()] == own


@pytest.mark.parametrize(("name", "options"), lines())
def test_a_line_changes_the_method(name, options):
    overrides = shlex.split(options)
    config = loaded([f"--config=configs/folder.py:path=DIR,method={name}", *overrides])
    given = config.adapter.to_dict()
    assert given.pop("name") == name
    defaults = adapters.settings(name)
    changed = {key for key in given if given[key] != defaults[key]}
    assert changed == {o.split("=")[0].removeprefix("--config.adapter.") for o in overrides}

    def adapted():
        variant = "point_mae_s" if name == "dapt" else "vit_mini"
        backbone = backbones.create(variant, rngs=SameKey())
        adapters.adapt(backbone, name, rngs=SameKey(), **given)
        return backbone

    assert attach.adapted(nnx.eval_shape(adapted))


@pytest.mark.slow
def test_the_readme_compares_methods(capsys):
    line = "launch/local.sh plan --methods=all --backbone=vit_b16"
    assert [line + "\n"] == [b for b in blocks(README, "bash") if "plan --methods" in b]
    assert main(shlex.split(line)[1:]) == 0
    out = capsys.readouterr().out
    assert all(f"│ {name} " in out for name in adapters.names())


def typed(line):
    """Runs a command of the page: a training leaves its adapter alone, a benchmark nothing."""
    command, *argv = shlex.split(line)[1:]
    if command == "train":
        given = dict(a.split("=", 1) for a in argv)
        overrides = [a for a in argv if a.startswith("--config.")]
        config = config_file.load(str(ROOT / given["--config"]), overrides)
        products.leave(Path(given["--workdir"]) / "adapter", config, config.seed)
    elif command != "bench":
        assert main([command, *argv]) == 0


def run_page(page, capsys):
    """Runs a page from top to bottom: its names at the end, and how many outputs it shows."""
    names, printed, outputs = {}, "", 0
    for language, content in all_blocks(page):
        if language == "python":
            capsys.readouterr()
            exec(compile(content, str(page), "exec"), names)
            printed = capsys.readouterr().out
        elif language == "bash":
            for line in content.splitlines():
                typed(line)
        else:
            assert content == printed
            outputs += 1
    return names, outputs


@pytest.mark.slow
def test_the_page_on_serving_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, outputs = run_page(SERVING, capsys)
    assert outputs == len(blocks(SERVING, "python"))
    # The page's equalities are not those of adapters that all say the same.
    logits = names["logits"]
    assert np.abs(logits["one"] - logits["two"]).max() > 1e-2


@pytest.fixture
def dots(tmp_path, monkeypatch):
    """The task, the data set and the config of their page, in the folder where the test runs."""
    monkeypatch.chdir(tmp_path)
    sources = blocks(TASKS, "python")
    places = ((data, "data", "dots"), (tasks, "tasks", "counting"))
    for (package, folder, name), source in zip(places, sources[:2], strict=True):
        Path(folder).mkdir()
        Path(folder, f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    Path("dots.py").write_text(sources[2])
    yield sources[3]
    for package, _, name in places:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


def test_the_page_on_tasks_has_commands_that_are_understood(dots):
    for line in blocks(TASKS, "bash")[0].splitlines()[:3]:
        configs.check(config_file.load(shlex.split(line)[2].removeprefix("--config="), []))
    assert data.settings("dots") == {"most": 6, "balance": ""}
    with pytest.raises(errors.DataError, match="most must be from 1 to 16, not 17"):
        data.module("dots").source("train", most=17)


@pytest.mark.slow
def test_the_page_on_tasks_trains_and_answers(dots, fast_compiling):
    config = config_file.read_config("dots.py", "method=linear")
    config.backbone.update(dict(weights="", dim=16, depth=1, heads=2))
    config.data.most = 3
    config.input.eval_split = "test[:20]"
    config.optim.steps = 12
    found = dynadapt.adapt(config, "runs/dots").metrics
    assert found["examples"] == 20
    assert 0 < found["error"] < 1.5  # 2 at the start, where the head says 0
    Path("photos").mkdir()
    for number in range(3):
        picture = Image.fromarray(data.module("dots").source("test")[number]["image"])
        picture.save(f"photos/{number}.png")
    assert main(shlex.split(blocks(TASKS, "bash")[0].splitlines()[3])[1:]) == 0
    assert Path("answers/predictions.csv").read_text().startswith("file,number\n0.png,")
    assert Path("answers/pictures/2.png").exists()


@pytest.mark.slow
def test_the_page_on_tasks_passes_the_protocol(dots, fast_compiling):
    with anew("tasks/test_protocol.py") as suite:
        exec(dots, vars(suite))
        suite.test_a_task_says_what_it_is("counting")
        suite.test_a_field_that_is_missing_is_named("counting")
        suite.test_a_task_goes_from_a_batch_to_metrics_and_records("counting")
        suite.test_padding_has_no_part_in_the_loss("counting")


def test_the_readme_says_what_adapts_what():
    """Its table of methods and backbones is what `plan` refuses; its configs come along."""
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|(.*)\|$", text, re.MULTILINE)
    found = {
        name: [cell.strip() == "yes" for cell in cells.split("|")]
        for names, cells in rows
        for name in re.findall(r"`(\w+)`", names)
        if name in adapters.names()
    }
    assert sorted(found) == adapters.names()
    everyone = {name: {} for name in found}
    for column, backbone in enumerate(("dinov2_b14", "sam_b16", "swin_t", "point_mae_s")):
        refused = compare.refusals(backbone, everyone)
        assert {n for n in found if not found[n][column]} == set(refused), backbone
    tasks = re.findall(r"^\| [\w ,]+ \| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(tasks))
    assert {*named} <= {*config_file.names()} and len(named) > 10


def test_every_figure_has_a_line():
    rows = re.findall(r"^\| `(\w+)` \|", FIGURES.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(figures.FIGURES)


@pytest.mark.parametrize(
    "document",
    [README, FIGURES, DENSE, POINTS, DETECTION, SEVERAL, SWEEPS, HANDING_ON, LOGGING],
    ids=lambda p: p.name,
)
def test_commands_are_understood(document):
    lines = "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    for line in (line for line in lines if not line.startswith("export ")):
        words = [word for word in shlex.split(line) if not word.startswith("EXTRAS=")]
        if words[0] == "launch/test.sh":
            continue
        command, *argv = words[1:]
        if words[0] == "launch/vtab.sh":
            command, argv = "vtab", ["run", command, *argv]
        overrides = [a for a in argv if a.startswith("--config.")]
        given = next((a.removeprefix("--config=") for a in argv if a.startswith("--config=")), "")
        if given:
            theirs = [a for a in overrides if "backbone.weights=weights/" not in a]
            if command == "vtab":
                config_file.load(given, theirs, problems=protocol.field_problems)
            else:
                c = config_file.load(given, theirs)
                if c.backbone.weights.startswith("weights/"):  # a download
                    c.backbone.weights = ""
                configs.check(c)
        options = flags.FlagValues()
        COMMANDS[command].define(options)
        words = options(["", *[a for a in argv if a not in overrides]])[1:]
        assert len(words) == len(COMMANDS[command].arguments) or COMMANDS[command].several


SITE = runpy.run_path(str(ROOT / "docs" / "conf.py"))
PAGES = [ROOT / name for name in SITE["include_patterns"]]


def test_the_site_has_every_page_once():
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("dynadapt/assets/*.md")]
    assert PAGES[0] == README and sorted(PAGES) == sorted(found)


@functools.cache
def anchors(document):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = document.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", document.read_text(encoding="utf-8"))
    for link, anchor in links:
        page = document.parent / link if link else document
        assert page.exists(), link
        assert page.suffix != ".md" or page.resolve() in PAGES, f"{link} is not in the site"
        assert not anchor or anchor in anchors(page.resolve()), f"{link}#{anchor}"


def test_what_is_promised_names_tests():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SECURITY.read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
