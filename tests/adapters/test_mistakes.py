"""What no method serves: one sentence with the nearest valid value, and exit code 2."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynadapt import adapters, attach, backbones, model, tasks
from dynadapt.commands.config_file import read_config
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.main import main
from tests import infos

TINY = str(Path(__file__).resolve().parents[1] / "configs_tiny.py")

# Bad values of each setting, or of one method's, and what is said of them, on a ViT 16 wide with
# settings that else fit.
COUNT = ((0, "must be at least 1, not 0"), (-3, "must be at least 1, not -3"))
BAD = {
    "rank": (*COUNT, (17, "rank must be at most the width")),
    "kernel": ((4, "such as 5, not 4"), (0, "such as 1, not 0"), (-1, "kernel must be odd")),
    "dropout": ((-0.1, "dropout must be in [0, 1), not -0.1"), (1.0, "dropout must be in [0, 1)")),
    "groups": ((3, "not 3 for 4 and 16"), (0, "the nearest is 1"), (8, "the nearest is 4")),
    "heads": (
        (3, "3 heads do not divide the width 16; the nearest is 2"),
        (-1, "the nearest is 1"),
    ),
    "prompts": COUNT,
    "experts": COUNT,
    "width": COUNT,
    "z": COUNT,
    "branches": COUNT,
    "factor": (*COUNT, (17, "factor must be at most the width 16")),
    "project": ((-1, "project must be a width or 0, not -1"), (17, "project must be at most the")),
    "balance": ((-0.5, "balance must be at least 0, not -0.5"),),
    "targets": ((("qvk",), "did you mean 'qkv'"), ((), "at least one target")),
    "positions": ((("mpl",), "did you mean 'mlp'"), ((), "at least one position")),
    "form": (("wrong", "choose one of"),),
    "placement": (("wrong", "choose one of"),),
    "act": (("wrong", "unknown activation 'wrong'; choose one of"),),
    "routing": (("wrong", "choose one of fixed, learned, random"),),
    "identity_bias": ((False, "needs scaled=False"),),
    "prefix": (("wrong", "choose one of center, drop, identity"),),
    "kernels": (("wrong", "choose one of"),),
    "conv": (("wrong", "choose one of identity, xavier"),),
    "tasks": ((("a", "a"), "tasks must differ; a, a don't"), (("a b",), "not 'a b'")),
    "task_rank": (*COUNT, (17, "task_rank must be at most the width")),
    "ranks": (((2, 2), "ranks must be four"), ((2, 2, 2, 0), "ranks must be at least 1, not 0")),
    "filter": (("wrong", "choose one of dynamic, none, static"),),
    "skip": (("wrong", "choose one of released, tokens"),),
    "train": ((("nroms",), "did you mean 'norms'"),),
    "layers": ((-1, "adapter.layers must be from 1 to"), (3, "or 0 for all blocks, not 3")),
    "tadformer.prompts": ((-1, "prompts must be at least 0, not -1"),),
}
# Factors, of any sign and size, and switches.
FREE = {
    *("scale", "learn_scale", "norm", "ln_before", "filter_norm", "bias"),
    *("prompt", "scale_logits", "scaled", "tpc_logit_scale"),
}
# Settings that fit a ViT 16 wide, besides those of the config.
FITTING = {"adapter_x": ["--config.adapter.width=4"], "vfm_adapter": ["--config.adapter.z=4"]}
CASES = [
    (name, key, *case)
    for name in adapters.names()
    if name != "dapt"  # plans read images, not point clouds: see test_dapt.py
    for key, default in adapters.settings(name).items()
    for case in BAD.get(f"{name}.{key}", BAD.get(key, ()))
    if case[0] != 0 or default != 0  # where the default is 0, it follows from the backbone
]


def test_every_setting_has_bad_values_or_none():
    known = {key for name in adapters.names() for key in adapters.settings(name)}
    assert known == {*FREE, *(key for key in BAD if "." not in key)}


def config(name):
    return read_config(TINY, f"method={name}")


def abstract(c):
    info = infos.fitting(c)
    return model.abstract(c, tasks.from_config(c.task, info), infos.spec(info))


@pytest.mark.parametrize("name", adapters.names())
def test_the_settings_around_a_bad_one_fit(name):
    c = config(name)
    for override in FITTING.get(name, ()):
        key, _, value = override.removeprefix("--config.adapter.").partition("=")
        c.adapter[key] = int(value)
    abstract(c)


def sentence(capsys):
    """What the command said: one line, nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert err.startswith("dynadapt: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(("name", "key", "value", "said"), CASES)
def test_bad_values_end_the_command(name, key, value, said, capsys):
    argv = [*FITTING.get(name, ()), f"--config.adapter.{key}={value}"]
    assert main(["plan", f"--config={TINY}:method={name}", *argv]) == 2
    assert said in sentence(capsys)


@pytest.mark.parametrize("name", adapters.names())
def test_unknown_options_end_the_command(name, capsys):
    known = [k for k in adapters.settings(name) if len(k) > 3]
    wrong = f"{known[0]}s" if known else "rank"
    argv = ["plan", f"--config={TINY}:method={name}", f"--config.adapter.{wrong}=3"]
    assert main(argv) == 2
    said = sentence(capsys)
    assert f"adapter.{wrong}" in said
    assert f"'{known[0]}'" in said or f"adapter.{known[0]}" in said if known else True


def test_one_tap_has_no_deviation(capsys):
    argv = ["--config.adapter.kernel=1", "--config.adapter.filter_norm=True"]
    assert main(["plan", f"--config={TINY}", *argv]) == 2
    assert "filter_norm needs kernel of at least 3" in sentence(capsys)


# One of each family of backbones, small, and the methods that it can't serve as they start.
BACKBONES = {
    "vit": (dict(dim=64, depth=2, heads=2, patch=4, image_size=8), ("dapt",)),
    "swin": (
        dict(dim=64, depths=(1, 1), heads=(1, 2), window=2, image_size=16),
        ("adapter_x", "dapt", "fact", "vpt"),
    ),
    "sam": (
        dict(dim=64, depth=2, heads=2, patch=4, image_size=16, window=2, whole=(1,), neck=8),
        ("adapter_x", "dapt", "mtlora", "tadformer", "vpt"),
    ),
    "point_mae": (
        dict(dim=64, depth=2, heads=2, groups=4, group_size=4),
        ("convpass", "iconformer", "mona", "mtlora", "ssf", "tadformer", "vfm_adapter"),
    ),
}


@pytest.mark.parametrize("name", adapters.names())
@pytest.mark.parametrize("family", BACKBONES)
def test_a_method_serves_a_backbone_or_says_why_not(name, family):
    sizes, refusing = BACKBONES[family]
    x = jnp.zeros((2, 16, 3) if family == "point_mae" else (2, 16, 16, 3))

    def forward():
        network = backbones.of(family, **sizes)(nnx.Rngs(0))
        try:
            adapters.adapt(network, name, rngs=nnx.Rngs(1))
        except ConfigError as error:
            assert not attach.adapted(network)
            reasons.append(str(error))
            return None
        return network(x, Context()).maps

    reasons = []
    found = jax.eval_shape(forward)
    assert bool(reasons) == (name in refusing), reasons
    if reasons:
        assert "\n" not in reasons[0] and len(reasons[0].split()) > 5
    else:
        assert all(m.shape[0] == 2 for m in found)


@pytest.mark.slow
def test_experts_without_prompts_serve_windows_and_points():
    for family in ("sam", "point_mae"):
        network = backbones.of(family, **BACKBONES[family][0])(nnx.Rngs(0))
        adapters.adapt(network, "adapter_x", rngs=nnx.Rngs(1), prompt=False)
        x = jnp.zeros((2, 16, 3) if family == "point_mae" else (2, 16, 16, 3))
        assert jax.eval_shape(lambda n, x: n(x, Context()).maps, network, x)


def test_a_backbone_that_is_not_served_ends_the_command(tmp_path, capsys):
    file = tmp_path / "stages.py"
    file.write_text(
        "from dynadapt import config\n\n\ndef get_config(arg=None):\n"
        "    c = config.default(backbone='swin_t', method='vpt', data_set='digits')\n"
        "    c.backbone.update(dict(dim=8, depths=(1, 1), heads=(1, 2), window=2, image_size=8))\n"
        "    c.input.train = c.input.eval = 'resize(8)'\n    return c\n"
    )
    assert main(["plan", f"--config={file}"]) == 2
    assert "VPT needs a ViT" in sentence(capsys)
