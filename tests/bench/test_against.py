"""Steps beside PyTorch's; what needs a Python with torch is not run here."""

import sys

import pytest

from dynadapt.bench import against
from dynadapt.errors import ConfigError
from dynadapt.main import main


@pytest.mark.parametrize(
    ("backbone", "method", "said"),
    [
        ("vit_mini", "lora", "there is no reference of 'vit_mini'; choose of vit_b16"),
        ("vit_b16", "ssf", "'ssf' on vit_b16; choose of linear, lora, iconformer, full"),
        ("swin_t", "iconformer", "'iconformer' on swin_t; choose of linear, lora, full"),
    ],
)
def test_what_has_no_reference(backbone, method, said):
    with pytest.raises(ConfigError, match=said):
        against.run("python-with-torch", backbone, ["linear", method], 2, 1)


def test_either_a_reference_or_a_topology(capsys):
    argv = ["bench", "step", "--backbone=vit_b16", f"--reference={sys.executable}"]
    assert main([*argv, "--topology=v5e:2x2"]) == 2
    assert "takes --reference or --topology, not both" in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_of_two_processes():
    """Both sides ours: a plain product, which waits for nothing else."""
    given = ["4", "3", "2"]
    row = against._row(
        dict(method="x"),
        against._OUR_PRODUCT,
        given,
        sys.executable,
        against._OUR_PRODUCT,
        given,
        3,
    )
    assert row["first_s"] >= 0 and row["torch_ms"] > 0 and row["over_torch"]["ratio"] > 0
    assert 0.05 < row["peak_gib"] < 4 and row["torch_peak_gib"] == pytest.approx(
        row["peak_gib"], rel=0.3
    )
