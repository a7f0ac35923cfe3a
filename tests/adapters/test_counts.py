"""Exact counts of the published implementations, on one task and on several."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynadapt import adapters, heads, model, tree
from dynadapt.heads import several
from dynadapt.layers import SameKey
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
# Several tasks at once, with their decoders: entries, our filter and rank.
SEVERAL = {
    f"{kind} r={r}": dict(filter=name, rank=r)
    for name, kind in (
        ("static", "static_task_filter (published code as it runs)"),
        ("dynamic", "dynamic_task_filter (fork restoring the paper's filter)"),
    )
    for r in (16, 32, 64)
}
# Parts of such an entry, as patterns of our leaves.
PARTS = {
    "trainable_backbone": "backbone/.*",
    "decoders_and_downsamplers": "head/.*",
    "lora_*": ".*/adapter/(low|filter)/.*",
    "lora_shared_A_B": ".*/adapter/low/.*",
    "lora_filter": ".*/adapter/filter/.*",
    "prompt_*": "backbone/adapter/.*|.*/proj/adapter/norm/.*",
    "norms_in_backbone": r"backbone/stages/\d+/(blocks/\d+/(attn|mlp)|merge)/norm/.*",
    "patch_embed": "backbone/embed/.*",
    "relative_position_bias": ".*/bias_table",
}
# Tasks and the channels of their outputs.
PASCAL = dict(semseg=21, human_parts=7, saliency=1, normals=3)
NYUD = dict(semseg=40, normals=3, depth=1)


@pytest.fixture(scope="module")
def published(oracles):
    return json.loads((oracles / "peft" / "trainable_counts.json").read_text())


def test_every_entry_is_ours_or_named(published):
    heads = {"total_with_100_class_head", "head_100"}
    assert set(published["vit_base_patch16_224"]) == {*VIT, *heads}
    assert set(published["swin"]) == set(SWIN)
    assert set(published["tadformer_swin_tiny_448"]) == set(SEVERAL)
    groups = {"vit_base_patch16_224", "swin", "tadformer_swin_tiny_448"}
    assert set(published) == {"format_version", "about", "not_run", *groups}
    assert not published["not_run"]


@pytest.mark.parametrize("entry", VIT)
def test_published_counts_on_vit(entry, published):
    assert networks.trained("vit_b16", *VIT[entry]) == published["vit_base_patch16_224"][entry]


@pytest.mark.parametrize(
    "entry", [pytest.param(e, marks=() if "tiny" in e else pytest.mark.slow) for e in SWIN]
)
def test_published_counts_on_swin(entry, published):
    assert networks.trained(*SWIN[entry]) == published["swin"][entry]


# Variants, the largest share in percent of a method's defaults, and who serves them not. Beside its
# adapters MTLoRA trains the reductions of Swin's mergings.
SHARES = {
    "vit_mini": (10, {"dapt"}),
    "vit_ti16": (6, {"dapt"}),
    "vit_s16": (6, {"dapt"}),
    "vit_b16": (4, {"dapt"}),
    "vit_l16": (4, {"dapt"}),
    "swin_t": (6, {"adapter_x", "dapt", "fact", "mtlora", "vpt"}),
    "sam_b16": (4, {"adapter_x", "dapt", "mtlora", "tadformer", "vpt"}),
    "point_mae_s": (
        6,
        {"convpass", "iconformer", "mona", "mtlora", "ssf", "tadformer", "vfm_adapter"},
    ),
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
        ("vit_mini", "mtlora", dict(rank=4)),
        ("swin_t", "tadformer", dict(rank=16)),
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


def several_trained(variant, method, outputs, **given):
    """Leaves that train of a method of several tasks and their decoders: paths and sizes."""
    given["tasks"] = tuple(outputs)
    backbone = networks.adapted(variant, method, given)
    image = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)
    like = model.features(backbone, {"image": image})
    makers = {
        task: lambda own, n=n: heads.dense_head("hrnet", own, n, rngs=SameKey())
        for task, n in outputs.items()
    }
    head = nnx.eval_shape(lambda: several.made_for(like, makers))
    leaves = tree.leaves(nnx.state(model.Model(backbone, head)))
    pick = adapters.trainable(adapters.trains(method, **given))
    statistics = {f"head/{p}" for p in tree.leaves(nnx.state(head, nnx.BatchStat))}
    return {
        path: math.prod(x.shape)
        for path, x in leaves.items()
        if pick(path.split("/"), x) and path not in statistics
    }


@pytest.mark.parametrize("entry", SEVERAL)
def test_published_counts_of_several_tasks(entry, published):
    found = several_trained("swin_t", "tadformer", PASCAL, **SEVERAL[entry])
    wanted = published["tadformer_swin_tiny_448"][entry]
    assert sum(found.values()) == wanted["trainable"]
    parts = dict(PARTS)
    if "static" in entry:
        del parts["norms_in_backbone"]  # there it counts the filters of the task `normals` too
    for part, pattern in parts.items():
        count = sum(n for path, n in found.items() if tree.matches(pattern, path))
        assert count == wanted[part], part


@pytest.mark.parametrize(
    ("variant", "method", "outputs", "counts"),
    [
        ("swin_t", "tadformer", PASCAL, (3_557_502, 4_776_126, 7_379_262)),
        ("swin_t", "mtlora", PASCAL, (4_953_146, 6_083_642, 8_344_634)),
        ("swin_t", "tadformer", NYUD, (3_092_370, 4_310_994, 6_914_130)),
        pytest.param(
            "swin_s", "tadformer", PASCAL, (4_789_134, 7_187_406, 12_149_838),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "swin_b", "tadformer", PASCAL, (6_141_948, 9_310_268, 15_812_796),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "swin_l", "tadformer", PASCAL, (9_105_624, 13_814_040, 23_396_760),
            marks=pytest.mark.exhaustive,
        ),
    ],
)  # fmt: skip
def test_counts_of_several_tasks(variant, method, outputs, counts):
    for rank, count in zip((16, 32, 64), counts, strict=True):
        assert sum(several_trained(variant, method, outputs, rank=rank).values()) == count


def test_counts_of_the_parts_of_mtlora():
    found = several_trained("swin_t", "mtlora", PASCAL, rank=16)
    parts = {
        ".*/adapter/low/.*": 1_130_496,
        ".*/adapter/[ab]": 276_480,
        ".*/merge/reduction/kernel": 1_548_288,
        "head/.*": 1_946_624,
    }
    for pattern, count in parts.items():
        assert sum(n for p, n in found.items() if tree.matches(pattern, p)) == count, pattern


@pytest.mark.parametrize(
    ("rank", "count"), [(8, 1_198_372), (16, 2_401_348), (32, 4_848_772), (64, 9_909_508)]
)
def test_counts_of_several_tasks_on_a_vit(rank, count):
    """Without norms and patch embedding; norms of the blocks are 38,400 less the final one."""
    given = dict(tasks=tuple(PASCAL), rank=rank, train=())
    assert networks.trained("vit_b16", "tadformer", given) == count
    more = {**given, "train": ("norms",)}
    assert networks.trained("vit_b16", "tadformer", more) == count + 38_400 - 2 * 768
