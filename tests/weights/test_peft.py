"""LoRA and DoRA in the folders of Hugging Face's peft, read and written."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, backbones, files, tree, weights
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.weights import peft

_SPEC = importlib.util.spec_from_file_location(
    "peft_cases_lora", Path(__file__).parents[1] / "peft_cases" / "lora.py"
)
published = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(published)

NAMES = ("attention", "all_linear", "rslora", "dora")
MODULES = [
    f"blocks.{i}.{layer}"
    for i in range(2)
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
] + ["patch_embed.proj", "norm", "head"]


@pytest.fixture(params=NAMES)
def case(request, oracles):
    return oracles / "peft" / f"lora_hf_{request.param}"


def meta_of(case):
    return json.loads((case / "meta.json").read_text())


def named(wanted):
    """The layers of a timm ViT of two blocks that peft adapts."""
    if isinstance(wanted, str):
        return {m for m in MODULES if re.fullmatch(wanted, m)}
    return {m for m in MODULES if any(m == w or m.endswith(f".{w}") for w in wanted)}


def test_a_folder_of_peft_is_ours(case):
    meta, found = meta_of(case), peft.read(case / "adapter")
    assert found.method == published.method(meta)
    given = dict(found.settings)
    assert given.pop("dropout") == 0.0
    assert given == published.settings(meta)
    wanted = published.ours(files.read_tensors(case / "adapter" / peft.TENSORS))
    assert found.leaves.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found.leaves[path], value)


def test_back_it_is_bit_equal(case, tmp_path):
    found = peft.read(case / "adapter")
    old = json.loads((case / "adapter" / peft.CONFIG).read_text())
    peft.write(
        tmp_path, found.method, found.settings, found.leaves, rslora=old["use_rslora"], base="x"
    )
    first, last = (files.read_tensors(f / peft.TENSORS) for f in (case / "adapter", tmp_path))
    assert first.keys() == last.keys()
    for name, value in first.items():
        assert value.dtype == last[name].dtype
        np.testing.assert_array_equal(value, last[name])
    new = json.loads((tmp_path / peft.CONFIG).read_text())
    for name in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias"):
        assert new[name] == old[name], name
    assert named(new["target_modules"]) == named(old["target_modules"]) != set()
    again = peft.read(tmp_path)
    assert (again.method, again.settings) == (found.method, found.settings)


def backbone():
    sizes = dict(dim=16, depth=2, heads=2, image_size=16)
    return backbones.create("vit_mini", rngs=nnx.Rngs(1), **sizes)


def of_adapters(network):
    """The adapters' leaves by path."""
    leaves = tree.leaves(nnx.state(network))
    return {k: np.asarray(v) for k, v in leaves.items() if "adapter" in k.split("/")}


def filled(network, seed):
    """Adapters with random values; lengths stay positive."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        if "adapter" not in path.split("/"):
            return x
        noise = jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
        return x * (1.0 + 0.2 * jnp.tanh(noise)) if path.endswith("magnitude") else noise

    nnx.update(network, tree.map_leaves(draw, nnx.state(network)))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    "targets", [("q", "v"), ("v", "q"), ("k",), ("q", "k", "v"), ("q", "v", "proj"), ("qkv", "fc1")]
)
def test_q_and_v_apart_are_one_fused_layer(method, targets, tmp_path):
    """The merged weights are those of our own merge, whatever was fused."""
    bare, first, second = backbone(), backbone(), backbone()
    settings = dict(rank=3, targets=targets, scale=0.7)
    adapters.adapt(first, method, rngs=nnx.Rngs(2), **settings)
    filled(first, 3)
    leaves = of_adapters(first)
    kernels = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(bare)).items()}
    config = peft.write(tmp_path, method, settings, leaves, kernels=kernels)
    apart = max(1, len({*targets} & {*"qkv"}))
    assert config["r"] == 3 * apart
    assert config["lora_alpha"] / config["r"] == pytest.approx(0.7, rel=1e-12)
    found = peft.read(tmp_path)
    adapters.adapt(second, method, rngs=nnx.Rngs(4), **found.settings)
    state = nnx.state(second)
    nnx.update(second, tree.replace(state, tree.leaves(state) | found.leaves))
    image = jnp.asarray(np.random.default_rng(5).normal(size=(2, 16, 16, 3)), jnp.float32)
    wanted = first(image, Context()).tokens
    np.testing.assert_allclose(second(image, Context()).tokens, wanted, rtol=2e-5, atol=2e-5)
    for network in (first, second):
        adapters.merge(network, method)
    before, after = kernels, tree.leaves(nnx.state(first))
    moved = [k for k in before if np.abs(before[k] - after[k]).max() > 1e-3]
    assert len(moved) == 2 * len({*targets} - {*"qkv"}) + 2 * bool({*targets} & {*"qkv"})
    for path, value in tree.leaves(nnx.state(second)).items():
        np.testing.assert_allclose(value, after[path], rtol=1e-6, atol=1e-6, err_msg=path)


def test_the_head_goes_along(tmp_path):
    network = backbone()
    settings = dict(rank=2, targets=("qkv",), scale=1.0)
    adapters.adapt(network, "lora", rngs=nnx.Rngs(0), **settings)
    leaves = {
        k: np.asarray(v) for k, v in tree.leaves(nnx.state(network)).items() if "adapter" in k
    }
    rng = np.random.default_rng(6)
    leaves["head/linear/kernel"] = rng.normal(size=(16, 5)).astype(np.float32)
    leaves["head/linear/bias"] = rng.normal(size=5).astype(np.float32)
    assert peft.write(tmp_path, "lora", settings, leaves)["modules_to_save"] == ["head"]
    tensors = files.read_tensors(tmp_path / peft.TENSORS)
    assert tensors["base_model.model.head.weight"].shape == (5, 16)
    found = peft.read(tmp_path).leaves
    assert found.keys() == leaves.keys()
    for path, value in leaves.items():
        np.testing.assert_array_equal(found[path], value)


def changed(case, folder, **options):
    """A copy of a case's folder with another config."""
    shutil.copytree(case / "adapter", folder)
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(config | options))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        dict(peft_type="IA3"),
        dict(r=0),
        dict(r="4"),
        dict(lora_alpha=None),
        dict(bias="all"),
        dict(modules_to_save=["norm"]),
        dict(rank_pattern={"attn.qkv": 8}),
        dict(alpha_pattern={"attn.qkv": 8}),
        dict(fan_in_fan_out=True),
        dict(init_lora_weights="pissa"),
        dict(layer_replication=[[0, 1]]),
        dict(some_later_option=3),
    ],
)
def test_an_option_that_is_not_served_is_named(oracles, tmp_path, options):
    folder = changed(oracles / "peft" / "lora_hf_attention", tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError) as caught:
        peft.read(folder)
    (name,) = options
    assert f" has {name}=" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(r=8), "but r is 8"),
        (dict(use_dora=True), "lora_magnitude_vector is missing"),
        (dict(target_modules=["attn.qkv"]), "do not name blocks.0.attn.proj"),
        (dict(target_modules="(attn"), "no regular expression"),
    ],
)
def test_a_config_of_other_tensors(oracles, tmp_path, options, words):
    folder = changed(oracles / "peft" / "lora_hf_attention", tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        peft.read(folder)


def test_damaged_tensors(oracles, tmp_path):
    case = oracles / "peft" / "lora_hf_dora"
    folder = changed(case, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="use_dora is off"):
        peft.read(changed(case, tmp_path / "off", use_dora=False))
    tensors = files.read_tensors(folder / peft.TENSORS)
    lost = "base_model.model.blocks.1.attn.qkv.lora_B.weight"
    for wrong, words in (
        ({k: v for k, v in tensors.items() if k != lost}, f"{lost} is missing"),
        (tensors | {lost: np.full_like(tensors[lost], np.nan)}, f"{lost} in .* is not finite"),
        ({}, "holds no LoRA"),
        (
            {k.replace("blocks", "vit.encoder.layer"): v for k, v in tensors.items()},
            r"is not one of a LoRA on a timm ViT; served are .*attn\.qkv",
        ),
    ):
        files.write_tensors(folder / peft.TENSORS, wrong)
        with pytest.raises(CheckpointError, match=words):
            peft.read(folder)
    (folder / peft.TENSORS).rename(folder / peft.PICKLE)
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        peft.read(folder)


def test_what_peft_does_not_have(tmp_path):
    settings = dict(rank=2, targets=("q", "v"), scale=1.0)
    with pytest.raises(ConfigError, match="lora and dora"):
        peft.write(tmp_path, "iconformer", settings, {})
    norm = {"norm/scale": np.ones(3, np.float32)}
    with pytest.raises(ConfigError, match="no place for 'norm/scale'"):
        peft.write(tmp_path, "lora", settings, norm)
    network = backbone()
    adapters.adapt(network, "dora", rngs=nnx.Rngs(0), **settings)
    leaves = {
        k: np.asarray(v) for k, v in tree.leaves(nnx.state(network)).items() if "adapter" in k
    }
    with pytest.raises(ConfigError, match="needs the base's kernels"):
        peft.write(tmp_path, "dora", settings, leaves)
    assert not list(Path(tmp_path).iterdir())


def test_half_precision_stays(tmp_path):
    settings = dict(rank=2, targets=("fc2",), scale=1.0)
    network = backbone()
    adapters.adapt(network, "lora", rngs=nnx.Rngs(0), **settings)
    half = {k: v.astype(jnp.bfloat16) for k, v in of_adapters(network).items()}
    peft.write(tmp_path, "lora", settings, half)
    assert {v.dtype for v in peft.read(tmp_path).leaves.values()} == {np.dtype(jnp.bfloat16)}


def test_is_folder(oracles, tmp_path):
    assert peft.is_folder(oracles / "peft" / "lora_hf_dora" / "adapter")
    assert not peft.is_folder(tmp_path) and not peft.is_folder(weights.ASSETS)
