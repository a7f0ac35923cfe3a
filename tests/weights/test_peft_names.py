import pytest

from dynadapt.weights import peft_names
from dynadapt.weights.peft_names import Site


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("blocks.3.attn.qkv", Site("blocks/3/attn/qkv", "qkv", "")),
        ("net.blocks.0.mlp.fc2", Site("blocks/0/mlp/fc2", "fc2", "net.")),
        (
            "vit.encoder.layer.1.attention.attention.key",
            Site("blocks/1/attn/qkv", "k", "vit."),
        ),
        ("encoder.layer.1.output.dense", Site("blocks/1/mlp/fc2", "fc2", "")),
        ("dinov2.encoder.layer.1.mlp.fc1", Site("blocks/1/mlp/fc1", "fc1", "dinov2.")),
        ("vit.layers.11.attention.v_proj", Site("blocks/11/attn/qkv", "v", "vit.")),
        ("patch_embed.proj", Site("embed", "", "")),
        ("vit.embeddings.patch_embeddings.projection", Site("embed", "", "vit.")),
        ("head", Site("head/linear", "", "")),
        ("layers.0.blocks.0.attn.qkv", None),
        ("blocks.0.attention.q_proj", None),
        ("encoder.layer.0.attn.qkv", None),
        ("overhead", None),
    ],
)
def test_sites(name, wanted):
    assert peft_names.site(name) == wanted


def test_what_is_wrapped_around_a_name():
    for name in (
        "base_model.model.blocks.0.attn.qkv.bias",
        "base_model.model._orig_mod.blocks.0.attn.qkv.base_layer.bias",
        "_orig_mod.base_model.model.blocks.0.attn.qkv.bias",
    ):
        assert peft_names.plain(name) == "blocks.0.attn.qkv.bias"
    assert peft_names.plain("base_model.model.head.modules_to_save.default.bias") == "head.bias"


def test_biases():
    assert peft_names.bias("blocks.2.norm1.bias", "") == ("blocks/2/attn/norm/bias", 0, 1)
    name = "vit.encoder.layer.2.attention.attention.value.bias"
    assert peft_names.bias(name, "vit.") == ("blocks/2/attn/qkv/bias", 2, 3)
    assert peft_names.bias("classifier.bias", "vit.") == ("head/linear/bias", 0, 1)
    assert peft_names.bias("vit.pooler.dense.bias", "vit.") is None
