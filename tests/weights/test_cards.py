import pytest

from dynadapt.weights import cards


@pytest.mark.parametrize(
    "card, size",
    [
        ({}, None),
        (dict(image_size=224), (224, 224)),
        (dict(image_size=[160, 224]), (160, 224)),
        (dict(pretrained_cfg=dict(input_size=[3, 160, 224])), (160, 224)),
        (dict(input_size=[3, 384, 384]), (384, 384)),
        (dict(model_args=dict(img_size=96), pretrained_cfg=dict(input_size=[3, 8, 8])), (96, 96)),
        (dict(image_size="224", model_args=7, pretrained_cfg=dict(input_size=[8, 8])), None),
        (dict(image_size=[224, "x"], pretrained_cfg=None), None),
        (dict(image_size=0), None),
    ],
)
def test_image_size(card, size):
    assert cards.image_size(card) == size


def test_what_a_card_tells():
    hf = dict(num_attention_heads=6, hidden_act="gelu_new", model_type="vit")
    assert (cards.heads(hf), cards.act(hf)) == ({"heads": 6}, {"act": "gelu_tanh"})
    timm = dict(model_args=dict(num_heads=3, act_layer="gelu"), architecture="vit_tiny_patch16_224")
    assert (cards.heads(timm), cards.act(timm)) == ({"heads": 3}, {"act": "gelu"})
    assert cards.model(hf) == "vit" and cards.model(timm) == "vit_tiny_patch16_224"
    assert cards.heads({}) == cards.act({}) == {} and cards.model({"architecture": 3}) == ""
    assert cards.told(hf, epsilon="layer_norm_eps") == {}
