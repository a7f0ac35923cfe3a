"""Weights of families that are not read here, told by their names or by the card beside them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dynadapt import backbones
from dynadapt.weights import cards

# Patterns of which each is in some name of the family's files, whoever published them.
_NAMES = (
    ("DINOv3", (r"storage_tokens|rope_embed\.periods",)),
    ("DINOv3", (r"embeddings\.patch_embeddings\.weight", r"layer\.0\.attention\.o_proj\.weight")),
    ("DINOv3", (r"(^|\.)reg_token", r"blocks\.0\.gamma_1")),
    ("SigLIP", (r"(^|\.)(head\.probe|attn_pool\.latent)",)),
    ("CLIP", (r"(^|\.)visual\.(conv1|transformer\.resblocks\.0\.\w+)\.\w+",)),
    ("CLIP", (r"vision_model\.(embeddings\.class_embedding|encoder\.layers\.0\.self_attn)",)),
    ("CLIP", (r"(^|\.)norm_pre\.weight", r"blocks\.0\.attn\.qkv\.weight")),
    ("EVA-02", (r"blocks\.0\.mlp\.(fc1_g|w1)\.weight", r"blocks\.0\.attn\.q_(proj\.weight|bias)")),
    ("BEiT", (r"blocks\.0\.gamma_1", r"blocks\.0\.attn\.q_bias")),
    ("BEiT", (r"layers?\.0\.lambda_1",)),
    ("Swin-V2", (r"blocks\.0\.att\w+(\.self)?\.logit_scale",)),
    ("ConvNeXt", (r"stages\.0\.(blocks\.|layers\.)?0\.(dwconv|conv_dw|depthwise_conv)\.weight",)),
)


def family(names: Iterable[str], card: Mapping[str, Any]) -> str:
    """What the family is called that weights are of, if it is not read here; "" for all others."""
    if title := backbones.unread(cards.model(card)):
        return title
    names = list(names)
    for title, patterns in _NAMES:
        if all(any(re.search(p, n) for n in names) for p in patterns):
            return title
    return ""
