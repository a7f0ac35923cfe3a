"""What a wheel is built of: all that git has of the package, and the configs."""

import ast
from pathlib import Path

import pytest

from tests.test_layout import ROOT, modules, parse


def test_a_wheel_has_every_file_of_the_package(monkeypatch):
    """The files that setuptools takes, by the names that they get in the wheel."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    made = setuptools.Distribution({"script_name": "setup.py"})
    made.parse_config_files(["setup.cfg"])
    build = made.get_command_obj("build_py")
    build.ensure_finalized()
    found = {Path(file) for file in build.get_source_files()}
    found |= {Path(folder, name) for _, folder, _, names in build.data_files for name in names}
    package = {p.relative_to(ROOT) for p in (ROOT / "dynadapt").rglob("*") if p.is_file()}
    package = {p for p in package if not {"__pycache__", "configs"} & {*p.parts}}
    configs = {Path("dynadapt", p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.py")}
    assert found == package | configs
    assert Path("dynadapt/configs/quickstart.py") in found


def test_tensorflow_datasets_is_imported_where_it_is_used():
    """It takes seconds to import, and most runs have no use for it."""
    for path in modules():
        names = [name for node in parse(path).body for name in top_level(node)]
        assert "tensorflow_datasets" not in names, path


def top_level(node):
    """The packages that a statement of a module imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []
