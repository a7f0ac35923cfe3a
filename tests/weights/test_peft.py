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


@pytest.mark.slow
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
        dict(bias="some"),
        dict(modules_to_save=["norm"]),
        dict(rank_pattern={"attn.qkv": 0}),
        dict(alpha_pattern=[8]),
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
        (dict(rank_pattern={"attn.qkv": 8}), "but r is 8"),
        (dict(rank_pattern={"(attn": 8}), "no regular expression"),
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
            r"is not one of a LoRA on a ViT of timm or Hugging Face; served are .*attn\.qkv",
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


# The same layers of a block under three kinds of names; our path, and which part of its output.
TIMM = ("blocks.{}", {"attn.qkv": "attn/qkv", "attn.proj": "attn/proj", "mlp.fc1": "mlp/fc1"})
HUB = (
    "vit.encoder.layer.{}",
    {
        "attention.attention.query": "attn/qkv:0",
        "attention.attention.value": "attn/qkv:2",
        "attention.output.dense": "attn/proj",
        "intermediate.dense": "mlp/fc1",
    },
)
LIVE = (
    "vit.layers.{}",
    {
        "attention.q_proj": "attn/qkv:0",
        "attention.k_proj": "attn/qkv:1",
        "attention.o_proj": "attn/proj",
        "mlp.fc1": "mlp/fc1",
    },
)


class Folder:
    """A folder of peft on the small backbone, and the kernels and biases that it should lead to."""

    def __init__(self, folder, names, **config):
        self.folder, self.rng = folder, np.random.default_rng(7)
        self.config = dict(peft_type="LORA", r=2, lora_alpha=3, target_modules="all-linear")
        self.config |= config
        self.tensors, self.network = {}, backbone()
        self.wanted = {k: np.array(v) for k, v in tree.leaves(nnx.state(self.network)).items()}
        self.base = {k: v.copy() for k, v in self.wanted.items()}
        block, layers = names
        for i in range(2):
            for layer, ours in layers.items():
                path, _, part = ours.partition(":")
                self.add(f"{block.format(i)}.{layer}", f"blocks/{i}/{path}", part)

    def draw(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def rank(self, module):
        """By the rule of peft: the first pattern that ends the name, or the common value."""
        rank, alpha = self.config["r"], self.config["lora_alpha"]
        for option in ("rank_pattern", "alpha_pattern"):
            for pattern, value in self.config.get(option, {}).items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    rank, alpha = (value, alpha) if option == "rank_pattern" else (rank, value)
                    break
        return rank, alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def add(self, module, path, part=""):
        kernel = self.wanted[f"{path}/kernel"]
        d_in, d_out = kernel.shape[0], kernel.shape[1] // (3 if part else 1)
        rank, scale = self.rank(module)
        a, b = self.draw(rank, d_in), self.draw(d_out, rank)
        start = int(part or 0) * d_out
        kernel[:, start : start + d_out] += scale * (b @ a).T
        name = f"base_model.model.{module}"
        self.tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}

    def read(self, *base, renamed=lambda name: name):
        self.folder.mkdir(exist_ok=True)
        files.write_tensors(
            self.folder / peft.TENSORS, {renamed(k): v for k, v in self.tensors.items()}
        )
        (self.folder / peft.CONFIG).write_text(json.dumps(self.config))
        return peft.read(self.folder, *base)

    def check(self, adapter):
        """Merged by our own methods, the backbone is the wanted one."""
        adapters.adapt(self.network, adapter.method, rngs=nnx.Rngs(9), **adapter.settings)
        state = nnx.state(self.network)
        leaves = tree.leaves(state)
        given = {k: v for k, v in adapter.leaves.items() if not k.startswith("head/")}
        assert {k: leaves[k].shape for k in given} == {k: v.shape for k, v in given.items()}
        nnx.update(self.network, tree.replace(state, leaves | given))
        adapters.merge(self.network, adapter.method)
        found = tree.leaves(nnx.state(self.network)) | adapter.base
        for path, value in self.wanted.items():
            np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("names", [TIMM, HUB, LIVE], ids=["timm", "hub", "live"])
@pytest.mark.parametrize("wrapped", ["", "_orig_mod."])
def test_names_of_timm_and_of_hugging_face(names, wrapped, tmp_path):
    case = Folder(tmp_path / "peft", names)
    prefix = "base_model.model."
    found = case.read(renamed=lambda n: n.replace(prefix, prefix + wrapped))
    targets = {"timm": "qkv", "hub": "q v", "live": "q k"}[
        {id(TIMM): "timm", id(HUB): "hub", id(LIVE): "live"}[id(names)]
    ]
    assert found.settings["targets"] == (*targets.split(), "proj", "fc1") and found.base == {}
    case.check(found)
    case.read(renamed=lambda n: wrapped + n)


@pytest.mark.parametrize(
    "options",
    [
        dict(rank_pattern={"attn.qkv": 4, "fc1": 1}),
        dict(alpha_pattern={r"blocks\.0\.attn\.proj": 7}),
        dict(rank_pattern={r"blocks\.1\..*": 3}, alpha_pattern={"qkv": 5}, use_rslora=True),
        dict(rank_pattern={"qkv": 4}, alpha_pattern={"qkv": 6}),
    ],
)
def test_ranks_and_alphas_of_their_own(options, tmp_path):
    """All layers get the largest rank; the product of each is its own."""
    case = Folder(tmp_path / "peft", TIMM, **options)
    found = case.read()
    assert found.settings["rank"] == max([2, *options.get("rank_pattern", {}).values()])
    one_scale = len({case.rank(k.split(".lora_")[0])[1] for k in case.tensors}) == 1
    assert (found.settings["scale"] != 1.0) == one_scale
    case.check(found)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("inner", ["base_layer.", ""])
def test_biases(bias, inner, tmp_path):
    """Those of layers that are adapted, below `base_layer` or not; or all of the model's."""
    case = Folder(tmp_path / "peft", HUB, bias=bias)
    for i in range(2):
        for part, layer in ((0, "query"), (2, "value")):
            new = case.draw(16)
            case.wanted[f"blocks/{i}/attn/qkv/bias"][16 * part : 16 * part + 16] = new
            name = f"base_model.model.vit.encoder.layer.{i}.attention.attention.{layer}"
            case.tensors[f"{name}.{inner}bias"] = new
    if bias == "all":
        for name, path in (
            ("vit.encoder.layer.1.layernorm_after.bias", "blocks/1/mlp/norm/bias"),
            ("vit.embeddings.patch_embeddings.projection.bias", "embed/bias"),
            ("vit.layernorm.bias", "norm/bias"),
        ):
            case.tensors[f"base_model.model.{name}"] = case.wanted[path] = case.draw(16)
        case.tensors["base_model.model.classifier.bias"] = head = case.draw(5)
        case.base["head/linear/bias"] = np.zeros(5, np.float32)
    with pytest.raises(CheckpointError, match="changes .* of its base too; it is read with"):
        case.read()
    found = case.read(case.base)
    if bias == "all":
        np.testing.assert_array_equal(found.base["head/linear/bias"], head)
    case.check(found)


@pytest.mark.parametrize("dora", [False, True])
def test_patch_embedding_and_head_are_folded(dora, tmp_path):
    """`proj` names timm's patch embedding too, and `all-linear` the head."""
    layers = {"attn.qkv": "attn/qkv"}
    case = Folder(tmp_path / "peft", ("blocks.{}", layers), target_modules=["qkv", "proj", "head"])
    case.base["head/linear/kernel"] = kernel = case.draw(16, 5)
    a, b = case.draw(2, 3, 4, 4), case.draw(16, 2, 1, 1)
    names = [f"base_model.model.{n}" for n in ("patch_embed.proj", "head")]
    case.tensors |= {f"{names[0]}.lora_A.weight": a, f"{names[0]}.lora_B.weight": b}
    more = np.einsum("rchw,or->hwco", a, b[:, :, 0, 0]) * 1.5
    case.wanted["embed/kernel"] += more
    a, b = case.draw(2, 16), case.draw(5, 2)
    case.tensors |= {f"{names[1]}.lora_A.weight": a, f"{names[1]}.lora_B.weight": b}
    head = kernel + 1.5 * (b @ a).T
    if dora:
        case.config["use_dora"] = True
        blocks = {f"blocks/{i}/attn/qkv": f"base_model.model.blocks.{i}.attn.qkv" for i in (0, 1)}
        for path, name in ({"embed": names[0]} | blocks).items():
            kernel = case.wanted[f"{path}/kernel"].reshape(-1, 16 if path == "embed" else 48)
            kernel /= np.sqrt(np.square(kernel).sum(0))
            case.tensors[f"{name}.lora_magnitude_vector"] = length = 1 + case.rng.random(
                kernel.shape[1], dtype=np.float32
            )
            kernel *= length
        case.tensors[f"{names[1]}.lora_magnitude_vector"] = length = np.ones(5, np.float32)
        head = head / np.sqrt(np.square(head).sum(0)) * length
    found = case.read(case.base)
    np.testing.assert_allclose(found.base["head/linear/kernel"], head, rtol=1e-5, atol=1e-5)
    case.check(found)
    with pytest.raises(CheckpointError, match=r"changes (patch_embed\.proj|head) of its base too"):
        case.read()
    with pytest.raises(CheckpointError, match="the base has no head/linear/kernel, which head in"):
        case.read({k: v for k, v in case.base.items() if not k.startswith("head")})
    case.base["head/linear/kernel"] = case.draw(15, 5)
    with pytest.raises(CheckpointError, match="head is .*in the base, which its LoRA does not fit"):
        case.read(case.base)


def test_two_names_of_one_layer(tmp_path):
    case = Folder(tmp_path / "peft", TIMM)
    case.tensors |= {
        k.replace("model.blocks", "model.teacher.blocks"): v for k, v in case.tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"two layers in .* are blocks/0/attn/\w+; one is"):
        case.read()


def test_a_swin_is_no_vit(tmp_path):
    case = Folder(tmp_path / "peft", TIMM)
    with pytest.raises(CheckpointError, match="is not one of a LoRA on a ViT"):
        case.read(renamed=lambda n: n.replace("blocks", "layers.0.blocks"))


def test_the_head_of_hugging_face_goes_along(tmp_path):
    case = Folder(tmp_path / "peft", HUB, modules_to_save=["classifier"])
    case.tensors["base_model.model.classifier.weight"] = head = case.draw(5, 16)
    case.tensors["base_model.model.classifier.bias"] = case.draw(5)
    found = case.read()
    np.testing.assert_array_equal(found.leaves["head/linear/kernel"], head.T)
    assert found.base == {}
    case.check(found)


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


def test_the_last_blocks_alone_are_targets_by_their_whole_names(tmp_path):
    network = backbone()
    last = len(network.blocks) - 1
    settings = dict(rank=3, targets=("q", "v"), scale=1.0, layers=1)
    adapters.adapt(network, "lora", rngs=nnx.Rngs(2), **settings)
    config = peft.write(tmp_path, "lora", settings, of_adapters(network))
    assert config["target_modules"] == [f"blocks.{last}.attn.qkv"]
    assert all(f"/{last}/" in f"/{path}" for path in peft.read(tmp_path).leaves)
