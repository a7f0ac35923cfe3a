"""Exact counts of the published implementations, and of the dynamic task filter."""

import json

import pytest
from flax import nnx

from dynadapt import adapters, tree
from dynadapt.adapters.iconformer import ICoN
from tests import networks

QKV = ("qkv",)
ALL = ("qkv", "proj", "fc1", "fc2")

# Entries of `trainable_counts.json`: our method and settings.
VIT = {
    "bitfit (every bias but the head's)": ("bitfit", {}),
    "layernorm_tuning": ("norm_tune", {}),
    **{
        f"lora_hf_fused r={r} on {'+'.join(t)}": ("lora", dict(rank=r, targets=t))
        for r in (4, 8, 16)
        for t in (QKV, ("qkv", "proj"), ALL)
    },
    "lora_q_v_separate r=32 (as published)": ("lora", dict(rank=32)),
    "ssf": ("ssf", {}),
    **{
        f"adaptformer bottleneck={r} layernorm={where}": (
            "adaptformer",
            dict(rank=r, norm=where == "in"),
        )
        for r in (8, 64)
        for where in ("none", "in")
    },
    "convpass bottleneck=8": ("convpass", {}),
    "convpass_attn bottleneck=8": ("convpass", dict(placement="attn")),
    **{
        f"fact_{form} rank={r}": ("fact", dict(form=form, rank=r))
        for form in ("tt", "tk")
        for r in (4, 8, 16, 32)
    },
    "arc rank=50": ("arc", {}),
    **{f"vpt_deep tokens={p}": ("vpt", dict(prompts=p)) for p in (10, 50, 100)},
    **{f"vpt_shallow tokens={p}": ("vpt", dict(form="shallow", prompts=p)) for p in (50, 100)},
}
SIZES = {"tiny": "swin_t", "base": "swin_b", "large": "swin_l"}
SWIN = {
    **{
        f"lorand swin_{size} factor={f} (2 a block, 4 branches, kernel 8)": (
            name,
            "lorand",
            dict(factor=f),
        )
        for size, name in SIZES.items()
        for f in (2, 4)
    },
    **{f"mona swin_{size} (2 a block)": (name, "mona", {}) for size, name in SIZES.items()},
}
# Entries of what is not built: several tasks at once, whose decoders and prompts are counted too.
NOT_BUILT = {
    "tadformer_swin_tiny_448": {
        f"{kind} r={r}"
        for kind in (
            "static_task_filter (published code as it runs)",
            "dynamic_task_filter (fork restoring the paper's filter)",
        )
        for r in (16, 32, 64)
    }
}


@pytest.fixture(scope="module")
def published(oracles):
    return json.loads((oracles / "peft" / "trainable_counts.json").read_text())


def test_every_entry_is_ours_or_named(published):
    heads = {"total_with_100_class_head", "head_100"}
    assert set(published["vit_base_patch16_224"]) == {*VIT, *heads}
    assert set(published["swin"]) == set(SWIN)
    left = {"format_version", "about", "not_run", "vit_base_patch16_224", "swin"}
    found = {key: set(value) for key, value in published.items() if key not in left}
    assert found == NOT_BUILT and not published["not_run"]


@pytest.mark.parametrize("entry", VIT)
def test_published_counts_on_vit(entry, published):
    assert networks.trained("vit_b16", *VIT[entry]) == published["vit_base_patch16_224"][entry]


@pytest.mark.parametrize(
    "entry", [pytest.param(e, marks=() if "tiny" in e else pytest.mark.slow) for e in SWIN]
)
def test_published_counts_on_swin(entry, published):
    assert networks.trained(*SWIN[entry]) == published["swin"][entry]


# Variants, the largest share in percent of a method's defaults, and who serves them not.
SHARES = {
    "vit_mini": (10, {"dapt"}),
    "vit_ti16": (6, {"dapt"}),
    "vit_s16": (6, {"dapt"}),
    "vit_b16": (4, {"dapt"}),
    "vit_l16": (4, {"dapt"}),
    "swin_t": (6, {"adapter_x", "dapt", "fact", "vpt"}),
    "sam_b16": (4, {"adapter_x", "dapt", "vpt"}),
    "point_mae_s": (6, {"convpass", "iconformer", "mona", "ssf", "vfm_adapter"}),
}


ALWAYS = ("vit_mini", "vit_s16", "swin_t", "point_mae_s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=() if v in ALWAYS else pytest.mark.exhaustive) for v in SHARES],
)
def test_defaults_train_a_small_share_of_any_backbone(variant):
    most, refusing = SHARES[variant]
    backbone = tree.size(networks.bare(variant)[1])
    methods = [n for n in adapters.names() if n not in {"full", *refusing}]
    shares = {name: 100 * networks.trained(variant, name, {}) / backbone for name in methods}
    assert max(shares.values()) <= most, shares
    assert all(shares[name] > 0 for name in methods if name != "linear")


@pytest.mark.parametrize(
    ("variant", "name", "wanted"),
    [
        ("vit_mini", "adapter", dict(rank=10)),
        ("vit_mini", "adapter_x", dict(rank=10, heads=2)),
        ("vit_mini", "lorand", dict(rank=4)),
        ("vit_s16", "iconformer", dict(rank=32)),
        ("vit_b16", "adapter_x", dict(rank=64, heads=3)),
        ("vit_b16", "lorand", dict(rank=8)),
        ("vit_h14", "mona", dict(rank=64)),
        ("swin_t", "mona", dict(rank=64)),  # as wide as its last stage
        ("point_mae_s", "dapt", dict(rank=64)),
        ("vit_mini", "lora", dict(rank=8)),
    ],
)
def test_the_default_of_a_width(variant, name, wanted):
    network = nnx.merge(*networks.bare(variant))
    found = adapters.resolved(network, name)
    assert {k: found[k] for k in wanted} == wanted
    assert found.keys() == adapters.settings(name).keys()
    assert adapters.resolved(network, name, rank=7)["rank"] == 7


def test_the_published_total(published):
    wanted = published["vit_base_patch16_224"]
    assert wanted["head_100"] == 769 * 100
    assert (
        networks.trained("vit_b16", "full", {}) + 769 * 100 == wanted["total_with_100_class_head"]
    )


@pytest.mark.parametrize(("rank", "wanted"), [(16, 32_832), (32, 120_960), (64, 463_104)])
def test_the_dynamic_task_filter(rank, wanted, published):
    """4 blocks x 3 layers x (9 r^2 + 27 r): iConFormer's network with FilterNorm is the same."""
    given = dict(scaled=True, filter_norm=True, identity_bias=False, rngs=nnx.Rngs(0))
    one = tree.size(nnx.state(ICoN(rank, 3, **given)))
    assert one == 9 * rank**2 + 27 * rank and 4 * 3 * one == wanted
    entry = f"dynamic_task_filter (fork restoring the paper's filter) r={rank}"
    assert published["tadformer_swin_tiny_448"][entry]["lora_filter"] == wanted
