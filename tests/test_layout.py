"""The repository's layout: which room may import which, sizes, names, what never appears."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dynadapt"

# Rooms from top to bottom; an import points down.
ROOMS = (
    {"__main__"},
    {"main", "api"},
    {"commands"},
    {"bench"},
    {"sweep"},
    {"plans", "figures", "release"},
    {"train", "predict", "serving", "convert"},
    {"evaluate"},
    {"runs"},
    {"step", "inputs"},
    {"model"},
    {"config"},
    {"tasks"},
    {"targets", "pictures"},
    {"weights"},
    {"adapters", "backbones", "heads"},
    {"attach", "context", "dynamic", "layers", "mixture"},
    {"data", "sharding", "optim"},
    {"processes"},
    {"choices", "ending", "files", "tree"},
    {"errors"},
    {"__init__"},
)
# Members of these rooms know nothing of each other.
APART = (
    {"train", "predict", "serving", "convert"},
    {"adapters", "backbones", "heads"},
    {"data", "sharding", "optim"},
)
LOOSE = 24  # files beside the folders, at most

BANNED_IMPORTS = (
    "torch",
    "torchvision",
    "tensorflow",
    "clu",
    "albumentations",
    "jax.experimental.pjit",
    "flax.nnx.jit",
    "flax.nnx.grad",
    "flax.nnx.value_and_grad",
    "flax.nnx.scan",
    "flax.nnx.Optimizer",
)
# What opens connections, and who may: weights are downloaded in one module, adapters go to and
# from the hub in another, the hosts of a run meet, and dashboards that a config names get its
# numbers.
NETWORK = {
    **dict.fromkeys(("http", "urllib.request", "urllib.error"), {"plans/weights_table.py"}),
    **dict.fromkeys(("socket", "socketserver"), {"processes.py"}),
    "huggingface_hub": {"release/hub.py"},
    **dict.fromkeys(("aiohttp", "ftplib", "httpx", "requests"), set()),
    **dict.fromkeys(("smtplib", "ssl", "urllib3", "xmlrpc"), set()),
    **dict.fromkeys(("wandb", "mlflow"), {"runs/sinks.py"}),
}
DRAWERS = {"util", "utils", "helper", "helpers", "misc"}
LINES = 400

REQUIRED = {
    *("dynadapt", "configs", "launch", "tests", "setup.cfg", "README.md"),
    *("pyproject.toml", "LICENSE", ".ci"),
}
ALLOWED = REQUIRED | {
    *("docs", ".gitignore", ".pre-commit-config.yaml"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules(folder: Path = PACKAGE) -> list[Path]:
    # dynadapt/configs is a link to configs/, for the wheel; what lies there is no room.
    left = {"__pycache__", "configs"}
    return sorted(p for p in folder.rglob("*.py") if not left & {*p.relative_to(folder).parts})


def place(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def report(faults: list[str]) -> None:
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of all that a module imports, wherever in the module."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("import_module", "__import__"):
                start = node.args[0]
                if isinstance(start, ast.JoinedStr) and start.values:
                    start = start.values[0]  # f"dynadapt.data.{name}" tells its room
                if isinstance(start, ast.Constant) and isinstance(start.value, str):
                    yield node.lineno, start.value.rstrip(".")


def uses(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of all imports and of all attributes, aliases written out."""
    meaning = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                meaning[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    yield from imports(path)
    for node in ast.walk(parse(path)):
        names, inner = [], node
        while isinstance(inner, ast.Attribute):
            names.append(inner.attr)
            inner = inner.value
        if names and isinstance(inner, ast.Name) and inner.id in meaning:
            yield node.lineno, ".".join((meaning[inner.id], *reversed(names)))


def room(dotted: str) -> str | None:
    """Names the room of `dynadapt.x.y`, that is `x`; None for what is not dynadapt's."""
    package, *rest = dotted.split(".")
    if package != "dynadapt":
        return None
    if rest and ((PACKAGE / f"{rest[0]}.py").exists() or (PACKAGE / rest[0]).is_dir()):
        return rest[0]
    return "__init__"  # such as `from dynadapt import __version__`


def level(name: str) -> int:
    return next(i for i, r in enumerate(ROOMS) if name in r)


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if any({importer, imported} <= rooms for rooms in APART):
        return False
    if importer == "__init__":  # where it is asked for
        return imported == "api"
    return level(importer) <= level(imported)


def test_imports_point_down():
    faults = []
    for path in modules():
        first = path.relative_to(PACKAGE).parts[0]
        importer = first.removesuffix(".py")
        for line, dotted in imports(path):
            imported = room(dotted)
            if imported and not may_import(importer, imported):
                faults.append(f"{place(path, line)}: {importer} may not import {dotted}")
    report(faults)


def test_every_module_has_a_room():
    named = set().union(*ROOMS)
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    report([f"dynadapt/{name}: is in no room" for name in sorted(found - named)])


def test_few_files_are_loose():
    loose = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(loose) <= LOOSE, loose


def test_no_two_classes_of_one_name():
    found: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(place(path, node.lineno))
    # The family and the size table of a backbone, and a task, are found by these names.
    allowed = {"Backbone", "Config", "Task"}
    report([f"{name}: {where}" for name, where in found.items()
            if len(where) > 1 and name not in allowed])  # fmt: skip


def test_package_starts_nothing():
    code = "import sys; before = {*sys.modules}; import dynadapt; print({*sys.modules} - before)"
    call = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "{'dynadapt'}\n"


def test_nothing_banned_is_used():
    faults = set()
    for path in (*modules(), *modules(ROOT / "configs")):
        for line, dotted in uses(path):
            for banned in BANNED_IMPORTS:
                if dotted == banned or dotted.startswith(f"{banned}."):
                    faults.add(f"{place(path, line)}: uses {banned}")
    report(sorted(faults))


def test_one_module_downloads():
    faults = set()
    for path in (*modules(), *modules(ROOT / "configs")):
        for line, dotted in uses(path):
            for name, allowed in NETWORK.items():
                known = dotted == name or dotted.startswith(f"{name}.")
                if known and path not in {PACKAGE / module for module in allowed}:
                    faults.add(f"{place(path, line)}: may not use {dotted}")
    report(sorted(faults))


def test_modules_are_documented():
    paths = (*modules(), *modules(ROOT / "configs"))
    report([f"{place(p)}: has no docstring" for p in paths if not ast.get_docstring(parse(p))])


def test_files_are_small_and_named():
    faults = []
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES:
            faults.append(f"{place(path, lines)}: {lines} lines are more than {LINES}")
        if DRAWERS & {*path.relative_to(PACKAGE).parts[:-1], path.stem}:
            faults.append(f"{place(path)}: is a drawer; name it after what lives in it")
    report(faults)


def test_folders_are_packages():
    folders = sorted({path.parent for path in modules()})
    report([f"{place(f)}: has no __init__.py" for f in folders if not (f / "__init__.py").exists()])


def test_adapters_have_adapt():
    faults = []
    for path in sorted((PACKAGE / "adapters").glob("*.py")):
        functions = {n.name for n in parse(path).body if isinstance(n, ast.FunctionDef)}
        if path.stem != "__init__" and "adapt" not in functions:
            faults.append(f"{place(path)}: has no function adapt(backbone, *, rngs, ...)")
    report(faults)


def test_tests_mirror_the_package():
    faults = []
    for path in modules():
        inside = path.relative_to(PACKAGE)
        folder = inside.parent.as_posix()
        if folder in (
            ".",
            "data",
            "plans",
            "release",
            "runs",
            "weights",
        ) and not inside.stem.startswith("__"):
            test = ROOT / "tests" / inside.with_name(f"test_{inside.name}")
            if not test.exists():
                faults.append(f"{place(path)}: has no {test.relative_to(ROOT)}")
    report(faults)


def entries() -> set[str]:
    """Names at the top that git has or would add; without git, that .gitignore lets through."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
        return {name for name in names if (ROOT / name).exists()}
    except (OSError, subprocess.CalledProcessError):
        ignored = [".git", *(ROOT / ".gitignore").read_text(encoding="utf-8").split()]
        names = {path.name for path in ROOT.iterdir()}
        return {n for n in names if not any(fnmatch(n, i.strip("/")) for i in ignored)}


def test_top_level():
    names = entries()
    report(
        [f"{name}:1: does not belong at the top level" for name in sorted(names - ALLOWED)]
        + [f"{name}:1: is missing" for name in sorted(REQUIRED - names)]
    )
