"""TADFormer whole: backbone, adapter and decoders by their published names; loss and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, backbones, files, model, tree
from dynadapt.attach import Chain, attach
from dynadapt.context import Context
from dynadapt.heads import hrnet, several
from dynadapt.layers.resample import resize

LINEAR = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
# Patterns of published names, behind `backbone.`, and where we have them: `path` or `path[part]`.
BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
LAYER = rf"{BLOCK}(attn|mlp)\.(qkv|proj|fc1|fc2)\."
ROWS = (
    (rf"{LAYER}linear\.(weight|bias)", r"stages/\1/blocks/\2/\3/\4/\5", LINEAR),
    (
        rf"{LAYER}lora_shared_([AB])",
        r"stages/\1/blocks/\2/\3/\4/adapter/low/\5",
        dict(A="a", B="b"),
    ),
    (
        rf"{LAYER}lora_filter\.conv\.(weight|bias)",
        r"stages/\1/blocks/\2/\3/\4/adapter/filter/dense/\5",
        LINEAR,
    ),
    (
        rf"{LAYER}lora_filter\.chan_FilterNorm\.(std|mean)",
        r"stages/\1/blocks/\2/\3/\4/adapter/filter/\5",
        dict(std="scale", mean="shift"),
    ),
    (
        rf"{LAYER}lora_filter\.(\w+)\.conv2d\.(weight|bias)",
        r"stages/\1/blocks/\2/\3/\4/adapter/filter/\6[\5]",
        dict(weight="taps", bias="bias"),
    ),
    (
        rf"{BLOCK}attn\.proj\.prompt_layernorm\.(weight|bias)",
        r"stages/\1/blocks/\2/attn/proj/adapter/norm/\3",
        NORM,
    ),
    (rf"{BLOCK}norm1\.(weight|bias)", r"stages/\1/blocks/\2/attn/norm/\3", NORM),
    (rf"{BLOCK}norm2\.(weight|bias)", r"stages/\1/blocks/\2/mlp/norm/\3", NORM),
    (rf"{BLOCK}attn\.relative_position_bias_table", r"stages/\1/blocks/\2/attn/bias_table", {}),
    (r"layers\.(\d+)\.downsample\.norm\.(weight|bias)", r"stages/\1/merge/norm/\2", NORM),
    (r"layers\.(\d+)\.downsample\.reduction\.weight", r"stages/\1/merge/reduction/kernel", {}),
    (r"layers\.(\d+)\.downsample\.task_prompts_up\.weight", r"adapter/wider/\1/kernel", {}),
    (r"layers\.(\d+)\.prompt_gate", r"adapter/gates[\1]", {}),
    (r"task_prompts", "adapter/prompts", {}),
    (r"patch_embed\.proj\.(weight|bias)", r"embed/\1", LINEAR),
    (r"patch_embed\.norm\.(weight|bias)", r"embed/norm/\1", NORM),
)
DECODERS = (
    (r"downsampler\.(\w+)\.downsample_(\d)\.weight", r"\1/project/\2/kernel", {}),
    (r"decoders\.decoders\.(\w+)\.last_layer\.0\.(weight|bias)", r"\1/mix/conv/\2", LINEAR),
    (r"decoders\.decoders\.(\w+)\.last_layer\.1\.(\w+)", r"\1/mix/norm/\2", NORM),
    (r"decoders\.decoders\.(\w+)\.last_layer\.3\.(weight|bias)", r"\1/out/linear/\2", LINEAR),
)


def place(name, tasks):
    """Path of our leaf, and which part of it a published tensor is: a number, or ... for all."""
    inside = name.startswith("backbone.")
    for pattern, path, kinds in ROWS if inside else DECODERS:
        found = re.fullmatch(pattern, name.removeprefix("backbone."))
        if found:
            *groups, last = (*found.groups(), "") if not kinds else found.groups()
            groups = (*groups, kinds.get(last, last))
            for number, group in enumerate(groups, 1):
                path = path.replace(f"\\{number}", group)
            path, _, part = path.removesuffix("]").partition("[")
            part = ... if not part else int(part) if part.isdigit() else tasks.index(part)
            return ("backbone/" if inside else "head/heads/") + path, part
    raise KeyError(name)


def value(name, x):
    """A published tensor as we lay it out."""
    if ".lora_filter.conv." in name or "FilterNorm" in name:
        # Published channel by channel, `r 9 …`; ours tap by tap, `… 9 r`.
        rows = x.reshape(len(x) // 9, 9, -1).transpose(2, 1, 0)
        return rows[0] if "FilterNorm" in name else rows.reshape(len(rows), -1).squeeze()
    if "prompt_gate" in name:
        return x[0]
    if "patch_embed.proj.weight" in name:
        return x.transpose(2, 3, 1, 0)
    if "conv2d.weight" in name:
        return x[:, 0].transpose(1, 2, 0)
    if "bias_table" in name or name.endswith("task_prompts"):
        return x
    return x.reshape(x.shape[:2]).T


def network(meta):
    """Our model of a case's sizes."""
    c, h = meta["config"], meta["hyperparameters"]
    sizes = dict(dim=c["embed_dim"], depths=c["depths"], heads=c["num_heads"])
    sizes |= dict(window=c["window_size"], image_size=c["image_size"], patch=c["patch_size"])
    backbone = backbones.of("swin", **sizes)(nnx.Rngs(0))
    skip = {"transposed": "tokens", "reinterpreted": "released"}[h["skip_layout"]]
    given = dict(tasks=tuple(c["tasks"]), rank=h["rank"], scale=h["scale"], skip=skip)
    given |= dict(filter=meta["variant"].split("_")[0], prompts=h["prompt_len_per_task"])
    adapters.adapt(backbone, "tadformer", rngs=nnx.Rngs(0), **given)
    like = model.features(backbone, {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)})

    def make(count):
        return lambda like: hrnet.HrnetHead(
            [m.shape[-1] for m in like.maps], c["decoder_channels"], count, rngs=nnx.Rngs(0)
        )

    makers = {task: make(count) for task, count in c["tasks"].items()}
    return model.Model(backbone, several.made_for(like, makers))


class Watched(nnx.Module):
    """Host: a patch merging, or the last block; records the tokens that leave a stage."""

    def __call__(self, host, x, ctx):
        y = host.bare(x, ctx)
        ctx.record("left", y if hasattr(y, "shape") else y[0][1])
        return y


def run(folder, meta, check):
    """Compares all that a case expects, and the layout of its names."""
    ours, tasks = network(meta), list(meta["config"]["tasks"])
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    state = nnx.state(ours)
    leaves = {k: np.full(v.shape, np.nan, np.float32) for k, v in tree.leaves(state).items()}
    for name, x in files.read_tensors(folder / meta["checkpoint"]).items():
        if name.endswith(("num_batches_tracked", "relative_position_index", "attn_mask")):
            continue
        (path, part), x = place(name, tasks), value(name, x)
        assert leaves[path][part].shape == x.shape, name
        leaves[path][part] = x
    # All of ours are there; the final norm is no part of the published encoder.
    missing = {k for k, v in leaves.items() if np.isnan(v).any()}
    assert missing == {"backbone/norm/scale", "backbone/norm/bias"}
    leaves |= {k: np.ones_like(leaves[k]) for k in missing}
    nnx.update(ours, tree.replace(state, jax.tree.map(jnp.asarray, leaves)))
    trains = adapters.trainable(adapters.trains("tadformer"))
    graph, train, rest = nnx.split(ours, trains, ...)
    assert {place(n, tasks)[0] for n in meta["trainable_names"]} == set(tree.leaves(train))
    assert tree.size(train) == meta["trainable_counts"]["trainable"]
    image = jnp.asarray(inputs["image"])

    @jax.jit
    def loss(train):
        network, ctx = nnx.merge(graph, train, rest), Context()
        *merging, last = network.backbone.stages
        for stage in merging:
            attach(stage.merge, "", lambda host: Watched())
        last.blocks[-1].adapter = Chain(Watched(), last.blocks[-1].adapter)
        found = network.backbone(image, ctx)
        outputs = network.head(found, ctx)
        whole = {t: resize(o[0], image.shape[1:3]) for t, o in outputs.items()}
        shown = {f"out/{t}": o for t, o in whole.items()}
        for t, features in found.items():
            for i, m in enumerate(features.maps):
                shown[f"stage{i}/{t}"] = m.reshape(len(m), -1, m.shape[-1])
        left = [v for k, v in ctx.tape.items() if k.split(".")[0] == "left"]
        # Streams go through a merging before the tokens; a fold stacks what its blocks record.
        shared = [*left[1:-1:2], left[-1][0]]
        shown |= {f"stage{i}/shared": x for i, x in enumerate(shared)}
        return sum(jnp.square(o).mean() for o in whole.values()), shown

    (score, found), gradient = jax.value_and_grad(loss, has_aux=True)(train)
    found["loss"] = score
    slopes = tree.leaves(gradient)
    for name in meta["trainable_names"]:
        path, part = place(name, tasks)
        found[f"gradnorm/{name}"] = np.linalg.norm(np.asarray(slopes[path])[part])
    for name, wanted in expected.items():
        check(name, found[name], wanted)
