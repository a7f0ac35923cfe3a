"""Export: the trained backbone as a file that other runs start from."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import files
from dynadapt.main import main

TINY = str(Path(__file__).with_name("configs_tiny.py"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with method full."""
    work = tmp_path_factory.mktemp("export") / "run"
    assert main(["train", f"--config={TINY}:method=full,steps=4", f"--workdir={work}"]) == 0
    return work


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_was_trained_is_written(dtype, made, tmp_path, capsys):
    out = tmp_path / "backbone.safetensors"
    assert main(["export", f"--workdir={made}", f"--out={out}", f"--dtype={dtype}"]) == 0
    assert files.sha256(out) in capsys.readouterr().out
    trained = files.read_tensors(made / "adapter" / "adapter.safetensors")
    backbone = {k.removeprefix("backbone/"): v for k, v in trained.items() if "head" not in k}
    written = files.read_tensors(out)
    assert set(written) == set(backbone) and "blocks/1/mlp/fc2/kernel" in written
    for name, value in backbone.items():
        assert written[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(written[name], value.astype(jnp.dtype(dtype)))


def test_another_run_starts_from_it(made, tmp_path):
    out = tmp_path / "backbone.safetensors"
    assert main(["export", f"--workdir={made}", f"--out={out}"]) == 0
    spec = f"--config={TINY}:method=linear,steps=3,weights={out}"
    assert main(["train", spec, f"--workdir={tmp_path / 'run'}"]) == 0
    card = files.read_json(tmp_path / "run" / "adapter" / "adapter.json")
    assert card["weights_sha256"] == files.sha256(out)
    assert main(["verify", f"--workdir={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--out=O", "--dtype=float8"], "unknown dtype 'float8'"),
        ([], "--out"),
        (["--out=missing/folder/x.safetensors"], "missing/folder"),
    ],
)
def test_mistakes(options, part, made, tmp_path, capsys):
    options = [o.replace("=O", f"={tmp_path / 'o'}") for o in options]
    assert main(["export", f"--workdir={made}", *options]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_method(tmp_path, capsys):
    work = tmp_path / "run"
    assert main(["train", f"--config={TINY}:method=linear,steps=2", f"--workdir={work}"]) == 0
    capsys.readouterr()
    assert main(["export", f"--workdir={work}", f"--out={tmp_path / 'o'}"]) == 2
    assert "'linear'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
