"""Merged runs answer alike in the libraries that they are written for.

Where those are installed, what `convert` says loads its files is run as it stands; elsewhere, what
stands in the files is compared with what was seen to answer alike.
"""

import functools
import json

import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, convert, files, tree, weights
from dynadapt.convert import hf, merged, timm
from dynadapt.errors import ConfigError
from dynadapt.main import main
from tests import saved_runs

VIT = dict(dim=16, depth=2, heads=2, image_size=16)
DEIT = VIT | dict(backbone="deit_ti16_distilled", patch=4)
DINOV2 = VIT | dict(backbone="dinov2_s14", patch=4)
GATED = dict(dim=24, act="silu", gated=True, mlp_ratio=8 / 3)
SWIN = dict(backbone="swin_t", dim=8, depths=(2, 2), heads=(1, 2), window=2, image_size=16)
SAM = VIT | dict(backbone="sam_b16", patch=4, window=2, whole=(1,), neck=8)
METHODS, POOLS = ("lora", "ssf", "full"), ("cls", "mean", "max")

RUNS = {
    **{f"vit {m} {p}": VIT | dict(method=m, pool=p) for m in METHODS for p in POOLS[:2]},
    "vit max": VIT | dict(pool="max"),
    "vit of another activation": VIT | dict(act="gelu_tanh", pool="cls"),
    "vit of another epsilon": VIT | dict(epsilon=1e-3),
    "vit of another size": VIT | dict(side=24),
    "vit of another mlp": VIT | dict(mlp_ratio=37 / 16),
    "deit": DEIT | dict(pool="cls"),
    "mae": VIT | dict(backbone="mae_b16", patch=4),
    **{f"dinov2 {p}": DINOV2 | dict(pool=p) for p in POOLS},
    **{f"dinov2 registers {p}": DINOV2 | dict(pool=p, registers=4) for p in POOLS[:2]},
    "dinov2 gated": DINOV2 | GATED,
    "swin": SWIN,
    "swin max": SWIN | dict(method="lora", pool="max"),
    "swin of another size": SWIN | dict(image_size=32, side=48),
    "sam": SAM,
    "sam max": SAM | dict(pool="max", epsilon=1e-5),
}
EQUAL = 1e-5  # of the largest logit


@pytest.fixture(scope="module")
def libraries():
    """The modules that the printed Python uses."""
    found = {"functools": functools}
    for name in ("torch", "timm", "transformers", "peft", "safetensors.torch"):
        module = pytest.importorskip(name, exc_type=ImportError)
        found[name.partition(".")[0]] = module
    return found | {"safetensors": pytest.importorskip("safetensors")}


def image(side=16):
    return np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)


def answers(load, images, libraries):
    """The model that the printed Python loads, and its logits."""
    torch = libraries["torch"]
    given = dict(libraries, x=torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    with torch.no_grad():
        exec(load, given)
        found = given.get("logits")
        found = given["model"](given["x"]) if found is None else found
    return given["model"], getattr(found, "logits", found).numpy()


def check(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EQUAL * np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_logits_are_equal(libraries, tmp_path, name):
    network = saved_runs.save(tmp_path / "run", **RUNS[name])
    images = image(RUNS[name].get("side", 16))
    wanted = saved_runs.logits(network, images)
    for out in ("folder", "file.safetensors"):
        told = convert.run(tmp_path / "run", tmp_path / out, "timm")
        check(answers(told["load"], images, libraries)[1], wanted)
    if name == "deit":
        return
    told = convert.run(tmp_path / "run", tmp_path / "hf", "hf")
    model, found = answers(told["load"], images, libraries)
    check(found, wanted)
    options = {k: False for k in ("add_pooling_layer",) if k in told["load"]}
    _, loaded = type(model).from_pretrained(told["file"], output_loading_info=True, **options)
    assert not any(loaded.values()), loaded


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_peft_gives_equal_logits(libraries, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    network = peft_run(tmp_path, method)
    told = convert.run(tmp_path / "run", tmp_path / "out", "peft")
    convert.run(tmp_path / "own.safetensors", tmp_path / "base.safetensors", "timm")
    check(answers(told["load"], image(), libraries)[1], saved_runs.logits(network, image()))


def peft_run(folder, method):
    """A run on weights of a file, `own.safetensors`."""
    backbone = backbones.create("vit_mini", rngs=nnx.Rngs(3), **VIT)
    card = json.dumps(dict(family="vit", config=VIT | dict(patch=4)))
    own = folder / "own.safetensors"
    files.write_tensors(own, tree.leaves(nnx.state(backbone)), {"dynadapt": card})
    return saved_runs.save(folder / "run", method=method, weights=str(own), **VIT)


def given(backbone="vit_mini", pool="mean", **sizes):
    """What is converted; of the backbone's values there are those alone that are asked for."""
    abstract = backbones.abstract(backbone, **sizes)
    kernel = np.ones((abstract.dims[-1], 2), np.float32)
    values = {"embed/kernel": kernel, "class_token": np.ones((1, 1, 16), np.float32)}
    head = {"head/linear/kernel": kernel, "head/linear/bias": np.zeros(2, np.float32)}
    family = backbones.family(backbone)
    found = weights.Checkpoint(None, family=family, values=values, head=head if pool else {})
    return merged.Merged(found, abstract, pool, ("ant", "bee") if pool else ())


TIMM = {
    "vit mean": (
        dict(backbone="vit_b16", image_size=32),
        ("vit_base_patch16_224", dict(img_size=32, global_pool="avg", fc_norm=False)),
    ),
    "vit cls": (
        dict(backbone="vit_s8", pool="cls"),
        ("vit_small_patch16_224", dict(patch_size=8, global_pool="token", fc_norm=False)),
    ),
    "vit max": (
        dict(backbone="vit_h14", pool="max"),
        ("vit_huge_patch14_224", dict(global_pool="max", fc_norm=False)),
    ),
    "deit": (
        dict(backbone="deit_s16_distilled", pool="cls"),
        ("vit_small_patch16_224", dict(reg_tokens=1, global_pool="token", fc_norm=False)),
    ),
    "dinov2 with registers": (
        dict(backbone="dinov2_b14_reg", pool="mean"),
        (
            "vit_base_patch16_224",
            dict(img_size=518, patch_size=14, init_values=1.0, reg_tokens=4, no_embed_class=True)
            | dict(global_pool="avg", fc_norm=False),
        ),
    ),
    "no head": (
        dict(backbone="vit_b16", pool=""),
        ("vit_base_patch16_224", dict(global_pool="token", fc_norm=False)),
    ),
    "swin": (
        dict(backbone="swin_s"),
        ("swin_small_patch4_window7_224", dict(global_pool="avg")),
    ),
    "sam": (dict(backbone="sam_l16"), ("samvit_large_patch16", dict(global_pool="avg"))),
}


@pytest.mark.parametrize("name", TIMM)
def test_the_model_of_timm(name):
    case, expected = TIMM[name]
    assert timm.model(given(**case)) == expected


def test_what_timm_can_not_be_told():
    assert timm.epsilon("vit", backbones.config("vit_b16")) is None
    assert timm.epsilon("sam", backbones.config("sam_b16")) == 1e-6
    call = timm.create(given(**SAM))
    assert "norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-06)" in call
    assert "before it pads" in timm.unlike("swin", backbones.config("swin_t", image_size=200))
    assert not timm.unlike("swin", backbones.config("swin_t"))
    run = backbones.config("swin_t", small="run", pad="shift_then_pad")
    assert "shrinks" in timm.unlike("swin", run)


def test_positions_of_some_leading_tokens_are_added_in():
    config = backbones.config("dinov2_s14", **(VIT | dict(patch=4, registers=2)))
    rng = np.random.default_rng(0)
    names = {"cls_token": 1, "reg_token": 2, "pos_embed": 17}
    old = {k: rng.normal(size=(1, n, 16)).astype(np.float32) for k, n in names.items()}
    new = timm.tensors(old, config)
    np.testing.assert_array_equal(new["cls_token"], old["cls_token"] + old["pos_embed"][:, :1])
    np.testing.assert_array_equal(new["pos_embed"], old["pos_embed"][:, 1:])
    np.testing.assert_array_equal(new["reg_token"], old["reg_token"])
    distilled = backbones.config("deit_ti16_distilled")
    assert timm.tensors({"dist_token": old["cls_token"]}, distilled).keys() == {"reg_token"}


LABELS = dict(id2label={"0": "ant", "1": "bee"}, label2id=dict(ant=0, bee=1))
LABELS |= dict(problem_type="single_label_classification")
COMMON = dict(image_size=16, patch_size=4, num_channels=3, qkv_bias=True, torch_dtype="float32")
COMMON |= dict(hidden_act="gelu", layer_norm_eps=1e-6)
BLOCKS = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
HF = {
    "vit cls": (
        VIT | dict(pool="cls"),
        dict(architectures=["ViTForImageClassification"], model_type="vit", intermediate_size=64)
        | BLOCKS
        | LABELS,
    ),
    "vit mean": (
        VIT,
        dict(architectures=["ViTModel"], model_type="vit", intermediate_size=64) | BLOCKS,
    ),
    "dinov2": (
        DINOV2 | dict(pool="mean"),
        dict(architectures=["Dinov2ForImageClassification"], model_type="dinov2", mlp_ratio=4)
        | dict(use_swiglu_ffn=False, layerscale_value=1.0)
        | BLOCKS
        | LABELS,
    ),
    "dinov2 gated, with registers": (
        DINOV2 | GATED | dict(registers=4, pool="cls", heads=3),
        dict(architectures=["Dinov2WithRegistersForImageClassification"], num_register_tokens=4)
        | dict(model_type="dinov2_with_registers", mlp_ratio=4, layerscale_value=1.0)
        | BLOCKS
        | dict(use_swiglu_ffn=True, hidden_act="silu", hidden_size=24, num_attention_heads=3)
        | LABELS,
    ),
    "swin": (
        SWIN,
        dict(architectures=["SwinForImageClassification"], model_type="swin", window_size=2)
        | dict(embed_dim=8, depths=[2, 2], num_heads=[1, 2], mlp_ratio=4.0, drop_path_rate=0.0)
        | dict(layer_norm_eps=1e-5)
        | LABELS,
    ),
    "sam": (
        SAM,
        dict(architectures=["SamVisionModel"], model_type="sam_vision_model", output_channels=8)
        | dict(window_size=2, global_attn_indexes=[1], mlp_dim=64, mlp_ratio=4.0, num_pos_feats=4)
        | dict(use_abs_pos=True, use_rel_pos=True)
        | BLOCKS,
    ),
}


@pytest.mark.parametrize("name", HF)
def test_the_config_of_hugging_face(name):
    case, expected = HF[name]
    assert hf.describe(given(**case)).config == COMMON | expected


@pytest.mark.parametrize("pool", POOLS)
def test_half_of_the_head_of_dinov2_is_zero(pool):
    """The class token comes first, then the mean of the patches."""
    case = given(**DINOV2, pool=pool)
    written = hf.describe(case)
    if pool == "max":
        assert not written.found.head and written.head["weight"].shape == (2, 16)
        assert "amax" in hf.call(written, case, "x") and hf.HEAD in hf.note(written, case)
        return
    halves = written.found.head["head/linear/kernel"].reshape(2, 16, 2)
    assert [h.any() for h in halves] == [pool == "cls", pool == "mean"]


MISFITS = {
    "class token": VIT | dict(class_token=False),
    "ends in a norm": VIT | dict(final_norm=False),
    "a whole number of times": DINOV2 | dict(mlp_ratio=2.5),
    "multiple of 8": DINOV2 | GATED | dict(mlp_ratio=2.5),
    "has a neck": SAM | dict(neck=0),
    "smaller than a window": SWIN | dict(window=3),
    "pads before it shifts": SWIN | dict(image_size=40, window=4, pad="shift_then_pad"),
}


@pytest.mark.parametrize("why", MISFITS)
def test_what_no_class_of_hugging_face_is_like(why):
    with pytest.raises(ConfigError, match=f"no class of Hugging Face is like .*{why}"):
        hf.describe(given(**MISFITS[why]))


def test_a_run_tells_what_its_head_pools(tmp_path, capsys):
    """In the files, in the answer and, where no file can, on standard error."""
    run, out = tmp_path / "run", tmp_path / "timm"
    saved_runs.save(run, side=24, text="resize_short(32)|center_crop(24)", **VIT)
    assert main(["convert", str(run), str(out), "--to=timm", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["load"] == f"model = timm.create_model('local-dir:{out}', pretrained=True).eval()"
    card = files.read_json(out / "config.json")
    assert card["architecture"] == "vit_base_patch16_224" and card["num_classes"] == 3
    sizes = dict(img_size=24, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    assert card["model_args"] == sizes | dict(global_pool="avg", fc_norm=False)
    assert card["global_pool"] == "avg" and card["num_features"] == 16
    half = [0.5] * 3
    assert card["pretrained_cfg"] == dict(
        **dict(input_size=[3, 24, 24], fixed_input_size=True, num_classes=3, pool_size=None),
        **dict(first_conv="patch_embed.proj", classifier="head", mean=half, std=half),
        **dict(interpolation="bicubic", crop_pct=0.75, crop_mode="center"),
        label_names=["ant", "bee", "cat"],
    )
    assert files.read_tensors(out / "model.safetensors")["pos_embed"].shape == (1, 37, 16)

    assert main(["convert", str(run), str(tmp_path / "hf"), "--to=hf"]) == 0
    said = capsys.readouterr()
    assert "load it with: model = transformers.ViTModel.from_pretrained(" in said.out
    assert "note: the head pools the mean of the patches, which no class" in said.err
    names = {"config.json", "head.safetensors", "model.safetensors", "preprocessor_config.json"}
    assert {p.name for p in (tmp_path / "hf").iterdir()} == names
    assert files.read_json(tmp_path / "hf" / "preprocessor_config.json") == dict(
        **dict(image_processor_type="BitImageProcessor", do_resize=True, resample=3),
        **dict(size=dict(shortest_edge=32), crop_size=dict(height=24, width=24)),
        **dict(do_center_crop=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True),
        **dict(image_mean=half, image_std=half, do_convert_rgb=True),
    )

    assert main(["convert", str(run), str(tmp_path / "x.safetensors")]) == 0
    assert "does not say that its head pools the mean of the patches" in capsys.readouterr().err

    assert main(["convert", str(run), str(out), "--to=timm"]) == 2
    assert "holds files; give one that is empty" in capsys.readouterr().err
    assert main(["convert", str(run), str(tmp_path / "y.safetensors"), "--to=hf"]) == 2
    assert "--to=hf writes a folder" in capsys.readouterr().err


def test_other_heads_and_transforms_are_named(tmp_path):
    """Several labels are a classification too; a head for other outputs stays behind."""
    saved_runs.save(tmp_path / "run", task="multilabel", pool="cls", **VIT)
    told = convert.run(tmp_path / "run", tmp_path / "hf", "hf")
    card = files.read_json(tmp_path / "hf" / "config.json")
    assert card["problem_type"] == "multi_label_classification" and told["left"] == []
    transforms = "resize(16, method='plain_bilinear')"
    saved_runs.save(tmp_path / "other", task="pretraining", text=transforms, **VIT)
    told = convert.run(tmp_path / "other", tmp_path / "timm", "timm")
    assert any(name.startswith("head/") for name in told["left"])
    assert "plain_bilinear" in told["notes"][0]
    assert files.read_json(tmp_path / "timm" / "config.json")["num_classes"] == 0


def test_peft_says_which_base_it_is_put_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    peft_run(tmp_path, "lora")
    told = convert.run(tmp_path / "run", tmp_path / "out", "peft")
    assert "num_classes=3" in told["load"] and "global_pool='avg', fc_norm=False" in told["load"]
    assert "peft.PeftModel.from_pretrained(base, " in told["load"]
    assert told["notes"][0].endswith("own.safetensors base.safetensors --to=timm")
