"""Files of every layout, made of random values: what is found in them, and what is not."""

import dataclasses
import hashlib
import io
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, files, tree, weights
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, UnknownName
from dynadapt.layers import SameKey
from dynadapt.layers.resample import resample
from dynadapt.main import main
from dynadapt.weights import published, source
from dynadapt.weights.layouts import LAYOUTS

VIT = dict(dim=192, depth=1, heads=3, patch=4, image_size=8)
SAM = dict(dim=64, depth=2, heads=2, patch=4, image_size=32, window=3, whole=(1,), neck=16)
SWIN = dict(dim=16, depths=(2, 2), heads=(2, 4), window=2, patch=2, image_size=8)
POINTS = dict(dim=192, depth=1, heads=3, groups=4, group_size=4)
DINOV2 = VIT | dict(layer_scale=1.0)
# name: publisher, family, fields, names that come along
CASES = {
    "timm": ("timm", "vit", VIT, ()),
    "timm distilled": ("timm", "vit", VIT | dict(registers=1, positioned=2), ()),
    "timm registers": ("timm", "vit", VIT | dict(registers=4), ()),
    "MAE": ("meta", "vit", VIT, ("mask_token", "decoder_embed.weight", "decoder_pos_embed")),
    "DINOv2": ("meta", "vit", DINOV2, ("mask_token",)),
    "DINOv2 registers": ("meta", "vit", DINOV2 | dict(registers=2), ("mask_token",)),
    "DINOv2 gated": ("meta", "vit", DINOV2 | dict(gated=True, act="silu"), ("mask_token",)),
    "hf": ("hf", "vit", VIT, ("pooler.dense.weight",)),
    "hf distilled": ("hf", "vit", VIT | dict(registers=1, positioned=2), ("pooler.dense.bias",)),
    "hf DINOv2": ("hf", "vit", DINOV2 | dict(registers=2), ("embeddings.mask_token",)),
    "hf gated": ("hf", "vit", DINOV2 | dict(gated=True, act="silu"), ()),
    "google": ("google", "vit", VIT, ("pre_logits/kernel",)),
    "big_vision": ("big_vision", "vit", VIT, ("MAPHead_0/probe",)),
    "SAM": ("meta", "sam", SAM, ()),
    "timm SAM": ("timm", "sam", SAM, ()),
    "hf SAM": ("hf", "sam", SAM, ()),
    "Swin": ("microsoft", "swin", SWIN, ("layers.0.blocks.1.attn_mask",)),
    "Swin detection": ("microsoft", "swin", SWIN | dict(level_norms=True), ()),
    "timm Swin": ("timm", "swin", SWIN, ("layers.0.blocks.0.attn.relative_position_index",)),
    "hf Swin": ("hf", "swin", SWIN, ()),
    "OpenMMLab Swin": ("openmmlab", "swin", SWIN | dict(level_norms=True), ()),
    "Point-MAE": ("point_mae", "point_mae", POINTS, ("mask_token",)),
}
NPZ = ("google", "big_vision")


def made(name, prefix="", drop=(), seed=0, **changes):
    """The source's tensors of a case, and our values of the same."""
    publisher, family, fields, more = CASES[name]
    fields = fields | changes
    network = nnx.eval_shape(lambda: backbones.of(family, **fields)(SameKey()))
    rng = np.random.default_rng(seed)
    values = {
        k: rng.normal(size=v.shape).astype(np.float32)
        for k, v in tree.leaves(nnx.state(network)).items()
    }
    layout = published.layout_for(publisher, family, network.config)
    heads = fields["heads"] if isinstance(fields["heads"], int) else 0
    tensors = layout.to_source(values, prefix, heads)
    tensors |= {prefix + n: np.zeros((1, 1), np.float32) for n in more}
    return {k: v for k, v in tensors.items() if k not in drop}, values


def write(folder, tensors, card=None):
    """A file of tensors, npz where their names are Flax's."""
    if card is not None:
        (folder / "config.json").write_text(json.dumps(card))
    if any("/" in n for n in tensors):
        np.savez(folder / "x.npz", **tensors)
        return folder / "x.npz"
    files.write_tensors(folder / "x.safetensors", tensors)
    return folder / "x.safetensors"


@pytest.mark.parametrize("name", CASES)
def test_family_publisher_sizes_and_values_are_found(name, tmp_path):
    publisher, family, fields, more = CASES[name]
    tensors, values = made(name)
    found = weights.read(write(tmp_path, tensors))
    assert (found.family, found.publisher, found.prefix) == (family, publisher, "")
    told = {k: tuple(v) if isinstance(v, list) else v for k, v in found.config.items()}
    # The groups of a cloud are in no tensor.
    hidden = ("groups", "group_size")
    assert {k: told[k] for k in fields if k not in hidden} == {
        k: v for k, v in fields.items() if k not in hidden
    }
    assert found.strange == [] and found.rest.keys() == set(more)
    assert found.values.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(found.values[path], value, err_msg=path)
    weights.check(weights.build(found), found)


def test_every_layout_has_a_case():
    seen = set()
    for publisher, family, fields, _ in CASES.values():
        network = nnx.eval_shape(lambda f=family, c=fields: backbones.of(f, **c)(SameKey()))
        seen.add(id(published.layout_for(publisher, family, network.config)))
    assert seen | {id(layout) for layout in LIVE.values()} == {id(layout) for layout in LAYOUTS}


# Names in `state_dict()` of a model of Transformers 5, for some of the hub's names.
RENAMED = {
    "hf": {
        "encoder.layer.0.attention.attention.query.bias": "layers.0.attention.q_proj.bias",
        "encoder.layer.0.attention.output.dense.weight": "layers.0.attention.o_proj.weight",
        "encoder.layer.0.intermediate.dense.weight": "layers.0.mlp.fc1.weight",
        "encoder.layer.0.output.dense.bias": "layers.0.mlp.fc2.bias",
        "encoder.layer.0.layernorm_after.bias": "layers.0.layernorm_after.bias",
    },
    "hf distilled": {
        "embeddings.distillation_token": "embeddings.distillation_token",
        "encoder.layer.0.attention.attention.key.weight": "layers.0.attention.k_proj.weight",
    },
    "hf DINOv2": {
        "encoder.layer.0.attention.attention.value.weight": (
            "encoder.layer.0.attention.v_proj.weight"
        ),
        "encoder.layer.0.attention.output.dense.bias": "encoder.layer.0.attention.o_proj.bias",
        "encoder.layer.0.mlp.fc1.weight": "encoder.layer.0.mlp.fc1.weight",
    },
    "hf gated": {"encoder.layer.0.mlp.weights_out.bias": "encoder.layer.0.mlp.down_proj.bias"},
    "hf Swin": {
        "encoder.layers.1.blocks.0.attention.self.query.weight": (
            "encoder.layers.1.blocks.0.attention.q_proj.weight"
        ),
        "encoder.layers.1.blocks.0.attention.self.relative_position_bias_table": (
            "encoder.layers.1.blocks.0.attention.relative_position_bias."
            "relative_position_bias_table"
        ),
        "encoder.layers.0.blocks.1.output.dense.weight": "encoder.layers.0.blocks.1.mlp.fc2.weight",
    },
}
LIVE = dict(
    zip(
        ("hf Swin", "hf gated", "hf DINOv2", "hf distilled", "hf"),
        (x for x in LAYOUTS if x.name == "hf" and x.before == ("", "") and x.family != "sam"),
        strict=True,
    )
)


@pytest.mark.parametrize("prefix", ["", "vit."])
@pytest.mark.parametrize("name", RENAMED)
def test_names_of_a_live_model_are_read(name, prefix, tmp_path):
    """The same values and sizes as from the hub's names."""
    tensors, values = made(name, prefix)
    live = LIVE[name].to_source(values, prefix, 3)
    for hub, renamed in RENAMED[name].items():
        np.testing.assert_array_equal(live[prefix + renamed], tensors[prefix + hub])
    hub = weights.read(write(tmp_path, tensors))
    found = weights.read(write(tmp_path, live))
    assert (found.family, found.publisher, found.config) == (hub.family, "hf", hub.config)
    assert found.strange == [] and found.values.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(found.values[path], value, err_msg=path)
    weights.check(weights.build(found), found)


def test_the_gate_of_a_live_model_comes_first(tmp_path):
    tensors, values = made("hf gated")
    live = LIVE["hf gated"].to_source(values, "", 3)
    both = [live[f"encoder.layer.0.mlp.{n}_proj.weight"] for n in ("gate", "up")]
    np.testing.assert_array_equal(
        np.concatenate(both), tensors["encoder.layer.0.mlp.weights_in.weight"]
    )


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder.net."])
@pytest.mark.parametrize("name", ["timm", "MAE", "SAM", "timm Swin", "OpenMMLab Swin", "hf"])
def test_whatever_stands_before_all_names(name, prefix, tmp_path):
    tensors, values = made(name, prefix)
    tensors["unrelated.weight"] = np.zeros(3, np.float32)
    found = weights.read(write(tmp_path, tensors))
    assert found.publisher == CASES[name][0] and found.prefix == prefix
    assert found.values.keys() == values.keys() and found.strange == []
    assert "unrelated.weight" in found.rest


def test_nested_dicts_of_training_programs(tmp_path):
    tensors, _ = made("timm", "module.")
    other = {"model": {"x": np.zeros(1)}}
    nested = {"epoch": 3, "optimizer": other, "model": {"state_dict": tensors}}
    assert source.unwrapped(nested, tmp_path)[0].keys() == tensors.keys()
    both = {"student": {"x": np.zeros(1)}, "teacher": tensors, "model": other}
    assert source.unwrapped(both, tmp_path)[0].keys() == tensors.keys()


@pytest.mark.parametrize(
    "name, raw",
    [("ema.", ""), ("teacher.backbone.", "student.backbone."), ("model_ema.", "model.")],
)
def test_averaged_weights_among_the_names_are_taken_and_said_once(name, raw, tmp_path, caplog):
    """Also where their prefix is the longer one, or stands later in the file."""
    other, _ = made("timm", raw, seed=1)
    beside = repr(raw) if raw else "those without prefix"
    tensors, values = made("timm", name)
    file = write(tmp_path, other | tensors)
    for _ in range(2):
        found = weights.read(file)
        assert found.prefix == name and found.strange == []
        np.testing.assert_array_equal(found.values["position"], values["position"])
        assert found.notes == [
            f"weights {str(file)!r}: took the averaged ones, {name!r}, rather than {beside}"
        ]
    assert [r.getMessage() for r in caplog.records] == found.notes
    assert weights.read(write(tmp_path, tensors)).notes == []


def test_deit_distilled(tmp_path):
    """The second token is a register with a position, and its classifier is not needed."""
    tensors, values = made("timm distilled")
    assert tensors["dist_token"].shape == (1, 1, 192)
    tensors["head_dist.weight"] = np.zeros((10, 192), np.float32)
    found = weights.read(write(tmp_path, tensors))
    assert found.config["registers"] == 1 and found.config["positioned"] == 2
    np.testing.assert_array_equal(found.values["registers"], tensors["dist_token"])
    assert weights.options(found, "deit_ti16_distilled")["positioned"] == 2
    variant = backbones.config("deit_b16_distilled")
    assert (variant.registers, variant.positioned) == (1, 2)
    assert list(found.rest) == ["head_dist.weight"]


@pytest.mark.parametrize("head", ["cls_classifier", "classifier"])
def test_distilled_deit_of_hugging_face(head, tmp_path):
    """As a model with both classifiers, or one; below the prefix that these have."""
    tensors, values = made("hf distilled", "deit.")
    assert tensors["deit.embeddings.distillation_token"].shape == (1, 1, 192)
    for name in (head, "distillation_classifier"):
        tensors |= {f"{name}.weight": np.ones((5, 192)), f"{name}.bias": np.ones(5)}
    card = dict(model_type="deit", num_attention_heads=3, image_size=8, layer_norm_eps=1e-12)
    found = weights.read(write(tmp_path, tensors, card))
    assert found.strange == [] and (found.publisher, found.prefix) == ("hf", "deit.")
    told = {k: found.config[k] for k in ("registers", "positioned", "resample", "epsilon")}
    assert told == dict(registers=1, positioned=2, resample="cubic", epsilon=1e-12)
    np.testing.assert_array_equal(found.values["registers"], values["registers"])
    assert bool(found.head) == (head == "cls_classifier")
    weights.check(weights.build(found), found)


# name: what a card beside says of 2 x 8 patches; 16 positions could be of 4 x 4 as well.
WIDE = {
    "timm": dict(pretrained_cfg=dict(input_size=[3, 8, 32])),
    "timm distilled": dict(model_args=dict(img_size=[8, 32]), architecture="deit"),
    "MAE": dict(image_size=[8, 32]),
    "DINOv2": dict(grid=[2, 8]),
    "hf": dict(image_size=[8, 32], patch_size=4),
    "hf distilled": dict(image_size=[8, 32]),
    "hf DINOv2": dict(image_size=[8, 32]),
    "google": dict(image_size=[8, 32]),
    "SAM": {},
    "timm SAM": {},
    "hf SAM": {},
}


@pytest.mark.parametrize("name", WIDE)
def test_positions_of_a_grid_that_is_not_square(name, tmp_path):
    """The sides are the card's, or those of `grid`; resampling goes by them too."""
    tensors, values = made(name, grid=(2, 8))
    file = write(tmp_path, tensors, WIDE[name])
    network = weights.from_checkpoint(file)
    assert network.grid == network.config.grid == (2, 8)
    found = tree.leaves(nnx.state(network))
    np.testing.assert_array_equal(found["position"], values["position"])
    square = weights.from_checkpoint(file, image_size=16)
    assert square.grid == (4, 4) and square.config.grid == ()
    patches = values["position"].reshape(1, -1, network.dim)[:, -16:]
    rule = getattr(network.config, "resample", "antialias")
    wanted = resample(jnp.asarray(patches), (2, 8), (4, 4), rule)
    again = square.position[...].reshape(1, -1, network.dim)[:, -16:]
    np.testing.assert_allclose(again, wanted, rtol=1e-6, atol=1e-6)
    if WIDE[name]:
        (tmp_path / "config.json").unlink()
        assert weights.from_checkpoint(file).grid == (4, 4)
        same = weights.from_checkpoint(file, grid=(2, 8))
        np.testing.assert_array_equal(same.position[...], values["position"])
        with pytest.raises(CheckpointError, match="not those of a grid of 3 x 4 patches"):
            weights.from_checkpoint(file, grid=(3, 4))


def test_a_wide_grid_that_nothing_tells_is_refused(tmp_path):
    tensors, values = made("timm", grid=(2, 6))
    file = write(tmp_path, tensors)
    wanted = r"hold 13 position embeddings, which belong to no square grid.*say grid=\(rows"
    for known in ({}, dict(image_size=8)):
        with pytest.raises(CheckpointError, match=wanted):
            weights.from_checkpoint(file, **known)
    found = weights.read(file)
    square, wide = (
        nnx.eval_shape(lambda g=g: backbones.of("vit", **VIT, grid=g)(SameKey()))
        for g in ((), (2, 6))
    )
    with pytest.raises(CheckpointError, match=wanted):
        weights.check(square, found)
    # A backbone that is told its grid takes as many positions as they are.
    np.testing.assert_array_equal(weights.check(wide, found)["position"], values["position"])
    # Our own file says it of itself.
    own = tmp_path / "own.safetensors"
    card = dict(family="vit", config=dataclasses.asdict(wide.config))
    files.write_tensors(own, values, {published.METADATA: json.dumps(card)})
    assert weights.build(weights.read(own)).grid == (2, 6)


def test_a_card_of_another_size_is_passed_over(tmp_path):
    file = write(tmp_path, made("timm")[0], dict(image_size=[8, 32]))
    assert weights.from_checkpoint(file).grid == (2, 2)


def test_an_assumed_image_size_of_a_swin_is_noted(tmp_path, caplog):
    tensors, _ = made("timm Swin")
    file = write(tmp_path, tensors)
    note = f"weights {str(file)!r} don't tell image_size; taken for 8, say image_size=… where it"
    found = weights.read(file)
    weights.build(found, image_size=12)
    assert found.notes == caplog.messages == []
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(file), str(out)]) == 0
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(note)
    weights.build(found)
    assert found.notes == caplog.messages
    for card in (
        dict(pretrained_cfg=dict(input_size=[3, 12, 12]), architecture="swin_tiny"),
        dict(model_args=dict(img_size=12), pretrained_cfg=dict(input_size=[3, 8, 8])),
        dict(image_size=12),
    ):
        found = weights.read(write(tmp_path, tensors, card))
        assert weights.build(found).config.image_size == 12 and found.notes == []


def test_a_swin_that_is_not_square_is_refused(tmp_path):
    tensors, _ = made("timm Swin")
    with pytest.raises(CheckpointError, match="images of 8 x 16 is not served") as caught:
        weights.read(write(tmp_path, tensors, dict(model_args=dict(img_size=[8, 16]))))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").unlink()
    for stage, heads in ((0, 2), (1, 4)):
        name = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
        tensors[name] = np.zeros((21, heads), np.float32)
    with pytest.raises(CheckpointError, match="a bias table of 21 rows is not of a square window"):
        weights.read(write(tmp_path, tensors))


def test_swin_merging_of_openmmlab_is_reordered(tmp_path):
    """The merged map is that of OpenMMLab's unfold, norm and reduction, done here in numpy."""
    tensors, _ = made("OpenMMLab Swin")
    network = weights.from_checkpoint(write(tmp_path, tensors))
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(1, 4, 4, 16)).astype(np.float32)
    rows = []
    for y in range(2):
        for x in range(2):
            near = maps[0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            rows.append(near.transpose(2, 0, 1).reshape(-1))  # channel, row, column
    v = np.stack(rows).astype(np.float64)
    v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
    at = "stages.0.downsample."
    v = v * tensors[at + "norm.weight"] + tensors[at + "norm.bias"]
    wanted = v @ tensors[at + "reduction.weight"].T
    merge = network.stages[0].merge
    answer = merge(jnp.asarray(maps.reshape(1, 16, 16)), Context(grid=(4, 4)))
    answer = answer[0] if isinstance(answer, tuple) else answer
    np.testing.assert_allclose(np.asarray(answer).reshape(4, -1), wanted, rtol=2e-4, atol=2e-4)


def test_detection_swin_keeps_its_level_norms(tmp_path):
    tensors, _ = made("Swin detection")
    del tensors["norm0.weight"], tensors["norm0.bias"]  # some keep only the later ones
    found = weights.read(write(tmp_path, tensors))
    assert found.config["level_norms"] and found.config["small"] == "never"
    with pytest.raises(CheckpointError, match=r"- norm0\.bias \(16,\)"):
        weights.check(weights.build(found), found)


CARDS = {
    "hf": dict(num_attention_heads=6, layer_norm_eps=1e-5, hidden_act="gelu_pytorch_tanh"),
    "timm": dict(model_args=dict(num_heads=6, act_layer="quick_gelu"), architecture="vit"),
    "hf SAM": dict(vision_config=dict(layer_norm_eps=1e-3)),
    "hf Swin": dict(layer_norm_eps=1e-3, image_size=32, hidden_act="gelu_new"),
}
TOLD = {
    "hf": dict(heads=6, epsilon=1e-5, act="gelu_tanh"),
    "timm": dict(heads=6, act="quick_gelu"),
    "hf SAM": dict(epsilon=1e-3),
    "hf Swin": dict(epsilon=1e-3, image_size=32, act="gelu_tanh"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_beside_the_file_tells_more(name, tmp_path):
    file = write(tmp_path, made(name)[0], CARDS[name])
    config = weights.read(file).config
    assert {k: config[k] for k in TOLD[name]} == TOLD[name]
    (tmp_path / "config.json").unlink()
    plain = weights.read(file).config
    assert all(plain[k] != v for k, v in TOLD[name].items())


def test_known_goes_before_card_and_file(tmp_path):
    tensors, _ = made("hf")
    file = write(tmp_path, tensors, CARDS["hf"])
    config = weights.from_checkpoint(file, heads=2, epsilon=1e-4, image_size=12).config
    assert (config.heads, config.epsilon, config.image_size) == (2, 1e-4, 12)
    assert config.act == "gelu_tanh"
    with pytest.raises(UnknownName, match="'head'; did you mean 'heads'"):
        weights.from_checkpoint(file, head=2)


def test_heads_that_nothing_tells(tmp_path):
    given = dict(CASES["timm"][2], dim=48, heads=4)
    network = nnx.eval_shape(lambda: backbones.of("vit", **given)(SameKey()))
    values = {k: np.zeros(v.shape, np.float32) for k, v in tree.leaves(nnx.state(network)).items()}
    layout = published.layout_for("timm", "vit", network.config)
    file = write(tmp_path, layout.to_source(values, "", 4))
    with pytest.raises(CheckpointError, match="say heads="):
        weights.from_checkpoint(file)
    assert weights.from_checkpoint(file, heads=4).config.heads == 4


# name: case, what is taken away, what is put in its place, parts of the sentence
DAMAGES = {
    "anchor's neighbour": ("timm", "patch_embed.proj.weight", None, ["look like vit of timm"]),
    "positions": ("timm", "pos_embed", None, ["- pos_embed"]),
    "no grid": ("timm", "pos_embed", (1, 7, 192), ["7 position embeddings", "no square grid"]),
    "flat positions": ("timm", "pos_embed", (7,), ["look like vit of timm", "wrong shapes"]),
    "flat embedding": ("hf", "embeddings.patch_embeddings.projection.weight", (3,), ["of hf"]),
    "a block's key": ("SAM", "blocks.1.attn.rel_pos_h", None, ["- blocks.1.attn.rel_pos_h"]),
    "a stage's table": (
        "timm Swin",
        "layers.1.blocks.0.attn.relative_position_bias_table",
        None,
        ["- layers.1.blocks.0.attn.relative_position_bias_table"],
    ),
    "Flax kernel": ("google", "embedding/kernel", (4, 4), ["look like vit of google"]),
    "first point layer": ("Point-MAE", "encoder.second_conv.3.weight", None, ["of point_mae"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_known_layout_with_a_fault_is_one_sentence(name, tmp_path):
    case, key, shape, parts = DAMAGES[name]
    tensors, _ = made(case, drop=(key,))
    if shape:
        tensors[key] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError) as caught:
        weights.from_checkpoint(write(tmp_path, tensors))
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_what_does_not_fit_is_listed_by_the_files_names(tmp_path):
    tensors, _ = made("timm", "model.", drop=("model.norm.bias",))
    tensors["model.blocks.0.mlp.fc3.weight"] = np.zeros((2, 2), np.float32)
    tensors["model.blocks.0.attn.proj.weight"] = np.zeros((2, 192), np.float32)
    with pytest.raises(CheckpointError) as caught:
        weights.from_checkpoint(write(tmp_path, tensors))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("do not fit the backbone:")
    assert sorted(lines[1:]) == [
        "+ model.blocks.0.attn.proj.weight (192, 2)",
        "+ model.blocks.0.mlp.fc3.weight",
        "- model.blocks.0.attn.proj.weight (192, 192)",
        "- model.norm.bias (192,)",
    ]


def test_values_that_are_not_finite(tmp_path):
    tensors, _ = made("hf DINOv2")
    name = "encoder.layer.0.attention.attention.key.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    with pytest.raises(CheckpointError, match=f"damaged: .*{name}.* is not finite"):
        weights.from_checkpoint(write(tmp_path, tensors))


def test_names_of_no_known_source(tmp_path):
    given = {f"tower.{n}.w": np.zeros(1, np.float32) for n in "abcd"}
    file = write(tmp_path, given)
    with pytest.raises(CheckpointError, match="no known source; .* tower.a.w, tower.b.w, tower.c"):
        weights.read(file)
    with pytest.raises(CheckpointError, match="such as none"):
        weights.read(write(tmp_path, {}))


BROKEN = (
    *("{", "[1]", '"vit"', "7", '{"config": 3}', '{"config": [1]}', '{"family": 3}'),
    *('{"family": "vit", "config": 3}', '{"family": "vit", "config": {"dim": "x"}}'),
    *('{"family": "vit", "config": {"patch": 0}}', '{"family": "swin", "config": {"depths": 3}}'),
)


@pytest.mark.parametrize("text", BROKEN)
def test_our_own_metadata_that_are_broken(text, tmp_path):
    file = tmp_path / "own.safetensors"
    tensors = {"norm/scale": np.ones(2, np.float32)}
    files.write_tensors(file, tensors, {published.METADATA: text})
    with pytest.raises(CheckpointError, match="own.safetensors") as caught:
        weights.from_checkpoint(file)
    assert "\n" not in str(caught.value)


def test_our_own_file_names_its_backbone(tmp_path):
    file = tmp_path / "own.safetensors"
    files.write_tensors(file, {"norm/kernel": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError, match="does not say which backbone"):
        weights.from_checkpoint(file)


def test_weights_of_another_family(tmp_path):
    found = weights.read(write(tmp_path, made("hf Swin")[0]))
    assert weights.options(found, "swin_t")["small"] == "run"
    with pytest.raises(CheckpointError, match="are of a swin, but the backbone 'vit_b16' is a vit"):
        weights.options(found, "vit_b16")
    own = published.Checkpoint(tmp_path, config=dict(epsilon=1e-3, dim=8))
    assert weights.options(own, "vit_b16") == dict(epsilon=1e-3)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("vit_s16", "vit_b16"),
        ("dinov2_s14_reg", "dinov2_s14"),
        ("swin_s", "swin_t"),
        *(
            pytest.param(*pair, marks=pytest.mark.exhaustive)
            for pair in (
                ("vit_b32", "vit_b16"),
                ("vit_l16", "vit_b16"),
                ("dinov2_s14", "vit_s14"),
                ("deit_ti16_distilled", "vit_ti16"),
                ("sam_l16", "sam_b16"),
            )
        ),
    ],
)
def test_weights_of_another_variant_say_which(given, wanted, tmp_path):
    network, config = backbones.abstract(given), backbones.config(given)
    values = {
        k: np.broadcast_to(np.float32(0), v.shape)
        for k, v in tree.leaves(nnx.state(network)).items()
    }
    # No file tells what all of its kind have.
    told = {k: v for k, v in dataclasses.asdict(config).items() if k != "class_token"}
    found = published.Checkpoint(
        tmp_path, family=backbones.family(given), config=told, values=values
    )
    with pytest.raises(CheckpointError) as caught:
        weights.check(backbones.abstract(wanted), found)
    sentence = f"weights {str(tmp_path)!r} are of a {given!r}, but the backbone is a {wanted!r}"
    assert str(caught.value) == sentence
    # The same variant with a name too many is a list, as ever.
    found.strange.append("odd")
    with pytest.raises(CheckpointError, match=r"do not fit the backbone:\n\+ odd"):
        weights.check(network, found)


def test_layout_for():
    config = backbones.config("swin_t")
    assert published.layout_for("timm", "swin", config).name == "timm"
    with pytest.raises(UnknownName, match="layout of a swin 'openmmlab'"):
        published.layout_for("openmmlab", "swin", config)
    with pytest.raises(UnknownName, match="'googel'; did you mean 'google'"):
        published.layout_for("googel", "vit", backbones.config("vit_b16"))


def test_digest_of_a_file_and_of_a_folder(tmp_path):
    tensors, _ = made("hf")
    file = write(tmp_path, tensors)
    one = hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights.digest(file) == weights.digest(tmp_path) == one
    parts = tmp_path / "parts"
    parts.mkdir()
    names = sorted(tensors)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for part, held in halves.items():
        files.write_tensors(parts / part, {n: tensors[n] for n in held})
    index = {n: part for part, held in halves.items() for n in held}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    hashes = [hashlib.sha256((parts / p).read_bytes()).hexdigest() for p in halves]
    joined = weights.digest(parts)
    assert joined == hashlib.sha256("".join(hashes).encode()).hexdigest()
    (parts / "b.safetensors").write_bytes((parts / "a.safetensors").read_bytes())
    assert weights.digest(parts) != joined


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    """And again where its time, its size or the file itself is another."""
    asked, plain = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: asked.append(path) or plain(path))
    file = write(tmp_path, made("hf")[0])
    first = weights.digest(file)
    assert weights.digest(file) == weights.digest(tmp_path) == first and len(asked) == 1
    os.utime(file, ns=(1, 1))
    assert weights.digest(file) == first and len(asked) == 2
    other = tmp_path / "other"
    other.write_bytes(flipped(file.read_bytes()))
    os.utime(other, ns=(1, 1))
    other.replace(file)
    assert weights.digest(file) != first and len(asked) == 3


def flipped(data):
    """The bytes with one bit of a large tensor's changed."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage, part",
    [
        (flipped, "CRC"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: b"", "empty"),
        (lambda data: b"<html>not found</html>", "web page"),
        (lambda data: pickle.dumps({"x": 1}), "pickle"),
    ],
)
def test_damaged_files_on_the_command_line(damage, part, tmp_path, capsys):
    tensors, _ = made("google")
    packed = io.BytesIO()
    np.savez(packed, **tensors)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    file = tmp_path / "in" / "vit.npz"
    file.write_bytes(damage(packed.getvalue()))
    out = tmp_path / "out" / "vit.safetensors"
    assert main(["convert", str(file), str(out), "--to=timm"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and part in shown.err
    assert shown.err.startswith("dynadapt: ") and str(file) in shown.err
    assert not list((tmp_path / "out").iterdir())
    file.write_bytes(packed.getvalue())
    assert main(["convert", str(file), str(out), "--to=timm"]) == 0
    assert weights.read(out).publisher == "timm"


@pytest.mark.slow
def test_a_converted_file_gives_the_same_features(tmp_path):
    tensors, _ = made("google")
    first = weights.from_checkpoint(write(tmp_path, tensors))
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "x.npz"), str(out)]) == 0
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    again = weights.from_checkpoint(out)
    assert again.config == first.config
    np.testing.assert_array_equal(again(images, Context()).tokens, first(images, Context()).tokens)
