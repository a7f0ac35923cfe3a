from pathlib import Path

import pytest

from dynadapt.errors import CheckpointError
from dynadapt.weights import peft_config

CONFIG = dict(peft_type="LORA", r=4, lora_alpha=8)


def test_rank_and_scale_of_a_layer():
    config = CONFIG | dict(rank_pattern={"qkv": 2, r"blocks\.0\..*": 16}, alpha_pattern={"fc1": 1})
    told = {
        name: (peft_config.rank(config, name), peft_config.scale(config, name))
        for name in ("blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "blocks.1.xqkv")
    }
    # The first pattern that is found holds, and it ends at a dot.
    assert told == {
        "blocks.0.attn.qkv": (2, 4.0),
        "blocks.0.mlp.fc1": (16, 1 / 16),
        "blocks.1.mlp.fc1": (4, 0.25),
        "blocks.1.xqkv": (4, 2.0),
    }
    assert peft_config.scale(config | dict(use_rslora=True), "blocks.1.xqkv") == 4.0


def test_targeted():
    module = "blocks.3.attn.proj"
    for wanted in (None, "all-linear", ["proj"], ["attn.proj"], [module], r".*\.proj"):
        assert peft_config.targeted(dict(target_modules=wanted), module), wanted
    for wanted in ([], ["roj"], "proj", ["qkv", "fc1"]):
        assert not peft_config.targeted(dict(target_modules=wanted), module), wanted


@pytest.mark.parametrize("config", [[], None, {}, CONFIG | dict(r=True), CONFIG | dict(r=0)])
def test_no_config_of_a_lora(config):
    with pytest.raises(CheckpointError):
        peft_config.check(Path("adapter_config.json"), config)


def test_a_plain_config_is_served():
    peft_config.check(Path("adapter_config.json"), CONFIG | dict(rank_pattern=None, bias="all"))
