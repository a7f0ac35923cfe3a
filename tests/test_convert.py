import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, convert, files, tree, weights
from dynadapt.context import Context
from dynadapt.convert import merged
from dynadapt.errors import CheckpointError, ConfigError, UnknownName
from dynadapt.main import main
from dynadapt.runs import product
from dynadapt.weights import peft, source
from tests import products, saved_runs

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = Path(__file__).with_name("configs_tiny.py")


def known(folder):
    config = json.loads((folder / "meta.json").read_text())["config"]
    if "num_attention_heads" in config:
        return dict(heads=config["num_attention_heads"])
    heads = config["num_heads"]
    return dict(image_size=config["image_size"]) if isinstance(heads, list) else dict(heads=heads)


def cases(oracles):
    return sorted(p.parent for p in (oracles / "backbones").glob("*/meta.json"))


@pytest.mark.slow
def test_source_to_ours_and_back_is_bit_equal(oracles, tmp_path):
    """Every publisher's file, all its tensors and dtypes, also what the backbone does not need."""
    seen = set()
    for folder in cases(oracles):
        file = next(folder.glob("checkpoint.*"))
        found = weights.read(file)
        seen.add((found.family, found.publisher))
        own = tmp_path / f"{folder.name}.safetensors"
        convert.run(file, own, **known(folder))
        suffix = ".npz" if found.publisher in convert.NPZ else ".safetensors"
        back = tmp_path / f"back_{folder.name}{'' if found.publisher == 'hf' else suffix}"
        told = convert.run(own, back, found.publisher)
        first, last = source.read(file).tensors, source.read(back).tensors
        # Hugging Face's class of an encoder has no decoder, and that of DINOv2 a mask token.
        for name in told["left"]:
            assert found.publisher == "hf" and name in found.rest, name
            del first[name]
        if found.publisher == "hf" and not found.head and found.family == "vit":
            first = {k.removeprefix(found.prefix): v for k, v in first.items()}
        for name in [n for n in last if n.endswith("embeddings.mask_token") and n not in first]:
            assert not last.pop(name).any()
        assert first.keys() == last.keys(), folder.name
        for name, value in first.items():
            assert value.dtype == last[name].dtype and value.shape == last[name].shape, name
            assert value.tobytes() == last[name].tobytes(), (folder.name, name)
    assert len(seen) >= 11


@pytest.mark.slow
def test_one_publisher_to_another(oracles, tmp_path):
    """The same features, whoever's names the file has."""
    folder = oracles / "backbones" / "vit_hf"
    image = jnp.asarray(np.load(folder / "inputs.npz")["image"])
    first = weights.from_checkpoint(folder / "checkpoint.safetensors", heads=2)
    wanted = first(image, Context()).tokens
    for to in ("timm", "google", "big_vision"):
        out = tmp_path / f"{to}{'.npz' if to in convert.NPZ else '.safetensors'}"
        told = convert.run(folder / "checkpoint.safetensors", out, to, heads=2)
        assert told["left"] == []
        again = weights.from_checkpoint(out, heads=2, epsilon=1e-12)
        np.testing.assert_array_equal(again(image, Context()).tokens, wanted)
        assert weights.read(out).head.keys() == {"head/linear/kernel", "head/linear/bias"}


def test_what_has_no_place_is_named(oracles, tmp_path):
    file = oracles / "backbones" / "mae_hf" / "checkpoint.safetensors"
    told = convert.run(file, tmp_path / "out.safetensors", "timm", heads=2)
    assert "decoder.mask_token" in told["left"]


@pytest.mark.parametrize("method", ["lora", "full", "linear"])
@pytest.mark.slow
def test_a_merged_run_is_a_file_of_its_publisher(oracles, tmp_path, method):
    """Names and shapes are those of the publisher's own file; features are the adapted ones."""
    file = oracles / "backbones" / "vit_timm_safetensors" / "checkpoint.safetensors"
    sizes = "dim=24 depth=2 heads=2 patch=8 image_size=32".split()
    work = tmp_path / "run"
    argv = [f"--config={TINY}:method={method},steps=2,weights={file}", f"--workdir={work}"]
    argv += ["--config.input.train=resize(32)", "--config.input.eval=resize(32)"]
    config = tmp_path / "config.py"
    config.write_text(
        f"import runpy\nmake = runpy.run_path({str(TINY)!r})['get_config']\n"
        f"def get_config(arg=None):\n    c = make(arg)\n"
        f"    c.backbone.update(dict({', '.join(sizes)}))\n    return c\n"
    )
    argv[0] = argv[0].replace(str(TINY), str(config))
    assert main(["train", *argv]) == 0
    out = tmp_path / "merged.safetensors"
    assert main(["convert", str(work), str(out), "--to=timm"]) == 0
    first, last = files.read_tensors(file), files.read_tensors(out)
    assert first.keys() == last.keys()
    for name, value in first.items():
        wanted = (10, 24) if name == "head.weight" else (10,) if name == "head.bias" else None
        assert last[name].shape == (wanted or value.shape)
    plain = weights.from_checkpoint(out, heads=2)
    network = products.network(work / "adapter")
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    wanted = network.backbone(image, Context()).tokens
    np.testing.assert_allclose(plain(image, Context()).tokens, wanted, rtol=2e-5, atol=2e-5)
    before = weights.from_checkpoint(file, heads=2)(image, Context()).tokens
    assert (method == "linear") == bool(np.allclose(before, wanted, atol=1e-4))


PEFT_CASES = ("attention", "all_linear", "rslora", "dora")


@pytest.mark.slow
@pytest.mark.parametrize("name", PEFT_CASES)
def test_a_folder_of_peft_is_merged_into_its_base(oracles, tmp_path, name):
    """The merged weights and logits are those of the publisher's own merge."""
    case = oracles / "peft" / f"lora_hf_{name}"
    base, out = case / "checkpoint.safetensors", tmp_path / "merged.safetensors"
    argv = [str(case / "adapter"), str(out), f"--base={base}", "--heads=2", "--to=timm"]
    assert main(["convert", *argv]) == 0
    expected, found = np.load(case / "expected.npz"), files.read_tensors(out)
    before = files.read_tensors(base)
    assert found.keys() == before.keys()
    merged = [k.removeprefix("merged/") for k in expected if k.startswith("merged/")]
    assert merged
    for layer in merged:
        np.testing.assert_allclose(found[layer], expected[f"merged/{layer}"], atol=1e-6)
    layers = {k.split(".", 2)[2] for k in merged}
    for key, value in before.items():
        same = np.array_equal(value, found[key])
        assert same == (key.split(".", 2)[-1] not in layers or "blocks" not in key), key
    image = jnp.asarray(np.load(case / "inputs.npz")["image"])
    token = weights.from_checkpoint(out, heads=2)(image, Context()).tokens[:, 0]
    logits = token @ found["head.weight"].T + found["head.bias"][None]
    atol = json.loads((case / "meta.json").read_text())["atol"]["logits"]
    np.testing.assert_allclose(logits, expected["merged_logits"], atol=atol)


def test_the_base_keeps_its_dtype_and_its_size(oracles, tmp_path):
    """Only the kernels of targets change, also where the backbone is built for other images."""
    case, out = oracles / "peft" / "lora_hf_attention", tmp_path / "out.safetensors"
    whole, base = files.read_tensors(case / "checkpoint.safetensors"), tmp_path / "half.safetensors"
    files.write_tensors(base, {k: v.astype(np.float16) for k, v in whole.items()})
    convert.run(case / "adapter", out, "timm", base=str(base), heads=2, image_size=64)
    found, merged = files.read_tensors(out), np.load(case / "expected.npz")
    for name, value in files.read_tensors(base).items():
        assert found[name].dtype == np.float16 and found[name].shape == value.shape
        if ".attn.qkv.weight" not in name and ".attn.proj.weight" not in name:
            np.testing.assert_array_equal(found[name], value)
    name = "blocks.0.attn.qkv.weight"
    np.testing.assert_allclose(found[name], merged[f"merged/{name}"], atol=2e-3)


def tiny_run(work, method, file="", **options):
    argv = [f"--config={TINY}:method={method},steps=2,weights={file}", f"--workdir={work}"]
    argv += [f"--config.{k}={v}" for k, v in options.items()]
    assert main(["train", *argv, "--config.optim.lr=0.1"]) == 0
    return work


@pytest.mark.parametrize("method, targets", [("lora", "('q','v')"), ("dora", "('v','fc1')")])
@pytest.mark.slow
def test_a_run_to_peft_and_back(tmp_path, method, targets):
    """Merged by way of peft, the weights are those that the run merges to."""
    sizes = dict(dim=16, depth=2, heads=2, image_size=8)
    base = tmp_path / "base.safetensors"
    state = nnx.state(backbones.create("vit_mini", rngs=nnx.Rngs(3), **sizes))
    # A file that names its family: our own layout is told by its metadata.
    plain = tmp_path / "vit_mini.safetensors"
    files.write_tensors(plain, tree.leaves(state))
    own = json.dumps(dict(family="vit", config=dict(sizes, patch=4)))
    files.write_tensors(base, tree.leaves(state), {"dynadapt": own})
    work = tiny_run(tmp_path / "run", method, base, **{"adapter.targets": targets})
    direct, folder = tmp_path / "direct.safetensors", tmp_path / "peft"
    assert main(["convert", str(work), str(direct), "--to=timm"]) == 0
    assert main(["convert", str(work), str(folder), "--to=peft"]) == 0
    assert sorted(p.name for p in folder.iterdir()) == [peft.CONFIG, peft.TENSORS]
    assert files.read_json(folder / peft.CONFIG)["r"] == (8 if method == "lora" else 4)
    by_way = tmp_path / "by_way.safetensors"
    assert main(["convert", str(folder), str(by_way), f"--base={base}", "--to=timm"]) == 0
    first, last = files.read_tensors(direct), files.read_tensors(by_way)
    assert first.keys() == last.keys() and "head.weight" in first
    for name, value in first.items():
        np.testing.assert_allclose(last[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    kernel = np.asarray(tree.leaves(state)["blocks/0/attn/qkv/kernel"]).T
    assert np.abs(first["blocks.0.attn.qkv.weight"] - kernel).max() > 1e-3


@pytest.mark.slow
def test_mistakes_with_peft(oracles, tmp_path, capsys):
    case = oracles / "peft" / "lora_hf_attention"
    base, out = case / "checkpoint.safetensors", tmp_path / "out.safetensors"
    with pytest.raises(ConfigError, match="is an adapter alone; give the weights .* --base="):
        convert.run(case / "adapter", out)
    with pytest.raises(ConfigError, match="--base is for a folder of peft"):
        convert.run(base, out, base=str(base), heads=2)
    with pytest.raises(ConfigError, match="--to=peft needs the folder of a run"):
        convert.run(base, tmp_path / "folder", "peft")
    swin = oracles / "backbones" / "swin_timm_padded" / "checkpoint.safetensors"
    with pytest.raises(ConfigError, match="plain ViT of timm, not for a swin"):
        convert.run(case / "adapter", out, base=str(swin), image_size=64)
    wide = tmp_path / "vit_mini.safetensors"
    files.write_tensors(
        wide, tree.leaves(nnx.state(backbones.create("vit_mini", rngs=nnx.Rngs(0))))
    )
    with pytest.raises(CheckpointError, match="does not fit .*vit_mini.* at blocks/0/attn/proj/"):
        convert.run(case / "adapter", out, base=str(wide))
    work = tiny_run(tmp_path / "run", "iconformer")
    capsys.readouterr()
    assert main(["convert", str(work), str(tmp_path / "folder"), "--to=peft"]) == 2
    assert "peft has no 'iconformer' of ours; it has lora and dora" in capsys.readouterr().err
    assert main(["convert", str(work), str(work / "config.json"), "--to=peft"]) == 2
    assert "config.json must be a folder" in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_a_dynamic_run_is_not_mergeable(tmp_path, capsys):
    work = tmp_path / "run"
    assert main(["train", f"--config={TINY}:steps=1", f"--workdir={work}"]) == 0
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(work), str(out), "--to=timm"]) == 2
    assert "iconformer can't be merged" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_a_run_on_quantised_weights_is_merged_into_those_of_the_file(tmp_path):
    plain, found = (tmp_path / kind for kind in ("float32", "nf4"))
    for folder in (plain, found):
        sizes = dict(dim=16, depth=1, heads=2)
        saved_runs.save(folder, method="lora", frozen_dtype=folder.name, **sizes)
    frozen = tree.leaves(product.load(found / "adapter").parts.frozen)
    assert frozen["backbone/blocks/0/attn/qkv/kernel/codes"].dtype == jnp.uint8
    plain, found = (merged.of_run(folder / "adapter") for folder in (plain, found))
    assert "it was trained on weights in nf4" in found.notes[0]
    assert len(found.notes) == len(plain.notes) + 1
    for path, x in plain.found.values.items():
        np.testing.assert_array_equal(found.found.values[path], x)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with method full, for what other runs start from."""
    work = tmp_path_factory.mktemp("full") / "run"
    assert main(["train", f"--config={TINY}:method=full,steps=4", f"--workdir={work}"]) == 0
    return work


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_was_trained_is_written(dtype, full, tmp_path, capsys):
    out = tmp_path / "backbone.safetensors"
    assert main(["convert", str(full), str(out), f"--dtype={dtype}"]) == 0
    assert files.sha256(out) in capsys.readouterr().out
    trained = files.read_tensors(full / "adapter" / "adapter.safetensors")
    own = {k.removeprefix("backbone/"): v for k, v in trained.items()}
    written = files.read_tensors(out)
    assert set(written) == set(own) and "blocks/1/mlp/fc2/kernel" in written
    for name, value in own.items():
        assert written[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(written[name], value.astype(jnp.dtype(dtype)))


def test_another_run_starts_from_it(full, tmp_path):
    out = tmp_path / "backbone.safetensors"
    assert main(["convert", str(full), str(out)]) == 0
    spec = f"--config={TINY}:method=linear,steps=3,weights={out}"
    assert main(["train", spec, f"--workdir={tmp_path / 'run'}"]) == 0
    card = files.read_json(tmp_path / "run" / "adapter" / "adapter.json")
    assert card["weights_sha256"] == files.sha256(out)
    assert main(["verify", f"--workdir={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    ("out", "options", "part"),
    [
        ("o", ["--dtype=float8"], "unknown dtype 'float8'"),
        ("", [], "out"),
        ("missing/folder/x.safetensors", [], "missing/folder"),
    ],
)
def test_mistakes_with_a_run(out, options, part, full, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(full), *filter(None, [out]), *options]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_mistakes(oracles, tmp_path):
    file = oracles / "backbones" / "vit_hf" / "checkpoint.safetensors"
    out = tmp_path / "out.safetensors"
    with pytest.raises(UnknownName, match="unknown layout 'tim'; did you mean 'timm'"):
        convert.run(file, out, "tim")
    with pytest.raises(UnknownName, match="unknown layout of a vit 'microsoft'"):
        convert.run(file, out, "microsoft", heads=2)
    with pytest.raises(ConfigError, match=r"google weights are \.npz"):
        convert.run(file, out, "google", heads=2)
    with pytest.raises(CheckpointError, match="how many heads they have; say heads=…"):
        convert.run(file, out, "timm")
    with pytest.raises(CheckpointError, match="no weights at"):
        convert.run(tmp_path / "none", out)
    given = files.read_tensors(file)
    del given["vit.encoder.layer.1.output.dense.bias"]
    given["vit.encoder.layer.1.strange"] = np.zeros(3, np.float32)
    broken = tmp_path / "broken.safetensors"
    files.write_tensors(broken, given)
    with pytest.raises(CheckpointError) as caught:
        convert.run(broken, out, heads=2)
    assert str(caught.value).splitlines()[1:] == [
        "- vit.encoder.layer.1.output.dense.bias (24,)",
        "+ vit.encoder.layer.1.strange",
    ]
    assert not out.exists()


def test_our_layout_says_what_it_is_of(oracles, tmp_path):
    """A backbone is built from the file alone."""
    for name, told in (("swin_timm_padded", dict(image_size=64)), ("dinov2_hf_swiglu", {})):
        folder = oracles / "backbones" / name
        heads = {} if told else dict(heads=2)
        out = tmp_path / f"{name}.safetensors"
        convert.run(folder / "checkpoint.safetensors", out, **told, **heads)
        first = weights.from_checkpoint(folder / "checkpoint.safetensors", **told, **heads)
        again = weights.from_checkpoint(out)
        assert again.config == first.config
        for path, value in tree.leaves(nnx.state(first)).items():
            np.testing.assert_array_equal(value, tree.leaves(nnx.state(again))[path])


def test_show(capsys):
    convert.show(dict(file="x", tensors=3, sha256="ab", left=list("abcdefg"), load="f()"))
    out = capsys.readouterr().out
    assert "x: 3 tensors, sha256 ab" in out and "left behind 7" in out and "a, b, c, d, e, …" in out
