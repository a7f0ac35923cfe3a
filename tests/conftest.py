"""What every test starts from: the CPU, strict ranks, and where shared material lies."""

import gc
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

# In the environment, so that it holds before the first import of JAX and in every process that
# a test starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("DYNADAPT_ORACLES", str(ROOT.parent / "shared" / "oracles"))
os.environ.setdefault("DYNADAPT_DATA", str(ROOT.parent / "shared" / "data"))

# Emitters of before compile three times as fast, to programs that take longer; JAX after 0.10 may
# refuse the flag. Whoever sets XLA_FLAGS for a process of a test keeps them.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# Many tests run the same small program; it is compiled once in a session.
_cache = tempfile.TemporaryDirectory(prefix="dynadapt-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _optimize(whole: bool) -> None:
    import jax  # after the environment is set

    jax.config.update("jax_disable_most_optimizations", not whole)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(not whole)  # of processes that a test starts


# Fixtures whose making takes long, for whichever test comes first.
SLOW_FIXTURES = {"vtab_tfds", "vtab_folder", "eight", "two", "few"}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is exhaustive, unless it is asked for; marks users of slow fixtures."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if "exhaustive" not in config.option.markexpr:
        left = [item for item in items if item.get_closest_marker("exhaustive")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_module():
    """Drops compiled programs. A session's would need gigabytes, and more mappings of memory than
    Linux gives to a process: tests would fail, crash and hang in whatever comes last."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def fast_compiling():
    """Compiles with few optimizations, here and in processes that are started; much faster."""
    _optimize(False)
    yield
    _optimize(True)


@pytest.fixture
def compiled_as_for_users():
    """Compiles with all optimizations, in a module that is otherwise `fast_compiling`."""
    _optimize(True)
    yield
    _optimize(False)


def _folder(variable: str) -> Path:
    folder = Path(os.environ[variable])
    if not folder.is_dir():
        pytest.skip(f"{variable}: there is no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of reference outputs, `$DYNADAPT_ORACLES`; skips the test where it is absent."""
    return _folder("DYNADAPT_ORACLES")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real data sets, `$DYNADAPT_DATA`; skips the test where it is absent."""
    return _folder("DYNADAPT_DATA")


@pytest.fixture(scope="session")
def fabricate() -> ModuleType:
    """The module that writes stand-ins for the data of VTAB-1K."""
    file = ROOT / "tests" / "data" / "fabricate.py"
    spec = importlib.util.spec_from_file_location("fabricate", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def vtab_tfds(fabricate, tmp_path_factory) -> Path:
    """TFDS's data folder with stand-ins for the 16 builders of VTAB-1K."""
    folder = tmp_path_factory.mktemp("vtab_tfds")
    fabricate.tfds(folder)
    return folder


@pytest.fixture(scope="session")
def vtab_folder(fabricate, tmp_path_factory) -> Path:
    """The folder in which a stand-in for the shared `vtab-1k` lies, all 19 tasks."""
    folder = tmp_path_factory.mktemp("vtab_folder")
    fabricate.community(folder)
    return folder
