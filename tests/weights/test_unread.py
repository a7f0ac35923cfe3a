import pytest

from dynadapt.errors import CheckpointError
from dynadapt.weights import published, source, unread
from dynadapt.weights.layouts import LAYOUTS

# Some names of published files, by family.
NAMES = {
    "DINOv3 of Meta": ["blocks.0.attn.qkv.weight", "rope_embed.periods", "storage_tokens"],
    "DINOv3 of Hugging Face": [
        *("embeddings.patch_embeddings.weight", "layer.0.attention.o_proj.weight"),
        *("embeddings.register_tokens", "layer.0.layer_scale1.lambda1"),
    ],
    "DINOv3 of timm": ["blocks.0.attn.qkv.weight", "blocks.0.gamma_1", "reg_token"],
    "CLIP of OpenAI": ["visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight"],
    "CLIP of Hugging Face": [
        *("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"),
        "vision_model.encoder.layers.0.self_attn.k_proj.weight",
    ],
    "CLIP of timm": ["blocks.0.attn.qkv.weight", "norm_pre.weight", "pos_embed"],
    "SigLIP of Hugging Face": [
        *("vision_model.encoder.layers.0.self_attn.k_proj.weight", "vision_model.head.probe"),
    ],
    "SigLIP of timm": ["blocks.0.attn.qkv.weight", "attn_pool.latent"],
    "EVA-02 of timm": ["blocks.0.attn.q_proj.weight", "blocks.0.mlp.fc1_g.weight"],
    "EVA-02 of BAAI": ["blocks.0.attn.q_bias", "blocks.0.mlp.w1.weight"],
    "BEiT of Microsoft": [
        *("blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias", "blocks.0.gamma_1"),
    ],
    "BEiT of Hugging Face": ["beit.encoder.layer.0.lambda_1"],
    "Swin-V2 of timm": ["layers.0.blocks.0.attn.logit_scale"],
    "Swin-V2 of Hugging Face": ["encoder.layers.0.blocks.0.attention.self.logit_scale"],
    "ConvNeXt of Meta": ["stages.0.0.dwconv.weight"],
    "ConvNeXt of timm": ["stages.0.blocks.0.conv_dw.weight"],
    "ConvNeXt of Hugging Face": ["convnext.encoder.stages.0.layers.0.dwconv.weight"],
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_families_that_are_not_read(case, prefix, tmp_path):
    title = case.partition(" of ")[0]
    found = source.SourceFile(tmp_path, {prefix + n: None for n in NAMES[case]})
    with pytest.raises(CheckpointError) as caught:
        published._layout(found)
    wanted = f"{str(tmp_path)!r} look like weights of {title}, which is not read here; ViT, DeiT,"
    assert str(caught.value).startswith(wanted) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "card, title",
    [
        (dict(model_type="dinov3_vit"), "DINOv3"),
        (dict(model_type="siglip_vision_model"), "SigLIP"),
        (dict(architecture="swinv2_tiny_window8_256"), "Swin-V2"),
        (dict(architecture="vit_base_patch16_clip_224"), "CLIP"),
        (dict(model_type="vit"), ""),
        (dict(architecture="swin_tiny_patch4_window7_224"), ""),
        (dict(model_type=3), ""),
    ],
)
def test_a_card_of_a_family_that_is_not_read(card, title):
    assert unread.family([], card) == title


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.family}-{x.name}")
def test_no_name_that_is_read_is_of_another_family(layout):
    names = [s.replace("{i}", "0").replace("{j}", "0") for r in layout.rows for s in r.sources]
    assert unread.family(names, {}) == ""
