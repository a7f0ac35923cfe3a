"""Nothing is accepted and ignored; what other libraries call a field points to ours."""

import pytest

from dynadapt.commands.runs import comparison
from dynadapt.main import main


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["eval", "--workdir=w", "--config.input.eval_batch_size=4"], "eval takes no config"),
        (["predict", "--workdir=w", "--images=i", "--config.seed=1"], "predict takes no config"),
        (["convert", "a", "b", "--config.seed=1"], "convert takes no config"),
        (["verify", "--workdir=w", "--config.seed=1"], "verify takes no config"),
        (["data", "status", "offline", "--config.seed=1"], "data takes no config"),
        (["vtab", "report", "--workdir=w", "--seeds=1"], "vtab report takes no --seeds"),
        (["vtab", "report", "--workdir=w", "--config.seed=1"], "vtab report takes no config"),
        (["vtab", "run", "--workdir=w", "--partial"], "vtab run takes no --partial"),
        (["data", "prepare", "vtab", "--form=tfds"], "data prepare takes no --form"),
        (["predict", "--pictures=maybe"], "--pictures=maybe must be true or false"),
        (["predict", "--batch=1.5"], "--batch=1.5 must be a whole number"),
        (["bench", "bank", "--topology=v5e:2x2"], "bench bank takes no --topology"),
        (["bench", "dynamic", "--methods=lora"], "bench dynamic takes no --methods"),
        (["bench", "step", "--backbone=vit_b16,swin_t"], "bench step is of one backbone"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_what_a_command_does_not_use_is_refused(argv, part, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("optim.learning_rate=1", "optim.lr"),
        ("learning_rate=1", "optim.lr"),
        ("optim.num_epochs=3", "optim.epochs"),
        ("train_batch_size=3", "input.batch_size"),
        ("optim.max_grad_norm=1", "optim.clip_norm"),
        ("optim.gradient_accumulation_steps=2", "optim.accumulate"),
        ("backbone.pretrained=x", "backbone.weights"),
    ],
)
def test_fields_of_other_libraries_point_to_ours(given, ours, capsys):
    argv = ["plan", "--config=configs/quickstart.py", f"--config.{given}"]
    assert main(argv) == 2
    assert f"did you mean {ours!r}?" in capsys.readouterr().err


def test_a_command_that_compares_methods_is_shown_where_the_config_has_methods(tmp_path):
    assert comparison("configs/pretrain_mini.py", [], tmp_path / "run") == ""
    shown = comparison("configs/quickstart.py", ["--config.seed=1"], tmp_path / "run")
    wanted = "train --config=configs/quickstart.py --config.seed=1 --methods=all"
    assert shown == f"{wanted} --workdir={tmp_path / 'all'}"
