"""Every reference case under $DYNADAPT_ORACLES: weights load, and features match.

A case is a folder with `meta.json`, a checkpoint in its published format, inputs and expected
outputs; `meta.atol` states the allowance of each output. Run with `-s` to see the deviations.
"""

import functools
import importlib.util
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, attach, files, tree, weights
from dynadapt.backbones.point_mae import group
from dynadapt.context import Context
from dynadapt.weights import published
from tests.oracles import FOLDER, Check, cases, named
from tests.task_cases import (
    average_precision,
    dense_heads,
    detection,
    detection_losses,
    instances,
    metrics,
    several,
)

# Root of the mean squared deviation in bfloat16, over the output's standard deviation.
BFLOAT16 = 3e-2


def of_kind(kind: str) -> list[Path]:
    metas = {c: json.loads((c / "meta.json").read_text()) for c in cases()}
    return [c for c, m in metas.items() if m["kind"] == kind]


pytestmark = pytest.mark.usefixtures("fast_compiling")

BACKBONES = of_kind("backbone")
# Those of several tasks hold backbone, adapter and decoders in one file.
WHOLE = [c for c in of_kind("peft") if c.name.startswith("tadformer")]
METHODS = [c for c in of_kind("peft") if c not in WHOLE]
MODULES = of_kind("peft_module")
RUNNERS = average_precision, dense_heads, detection, detection_losses, instances, metrics, several
TASKS = {
    folder: runner
    for folder in of_kind("task")
    for runner in RUNNERS
    if runner.knows(json.loads((folder / "meta.json").read_text()))
}


class Recorder(nnx.Module):
    """Records what its host gets and gives."""

    def __init__(self, number):
        self.number = number

    def __call__(self, host, x, ctx):
        y = host.bare(x, ctx)
        if self.number == 0:
            ctx.record("embeddings", x)
        ctx.record("block", y)
        return y


class Case:
    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.meta = json.loads((folder / "meta.json").read_text())
        self.inputs = dict(np.load(folder / "inputs.npz"))
        self.expected = dict(np.load(folder / "expected.npz"))
        self.checkpoint = published.read(folder / self.meta["checkpoint"])

    def known(self) -> dict:
        """What the file can't tell: it is in no checkpoint, or a convention of who runs it."""
        config, family = self.meta["config"], self.checkpoint.family
        known = {}
        if family != "swin":
            known["heads"] = config.get("num_heads", config.get("num_attention_heads"))
        else:
            known["image_size"] = config["image_size"]
            if config.get("small_stage_rule", "").startswith("none"):
                known["small"] = "never"
        if family == "point_mae":
            known |= dict(zip(("groups", "group_size"), self.group(), strict=True))
        return known

    def group(self) -> tuple[int, int]:
        """Number and size of the groups of points."""
        return self.meta["config"]["num_group"], self.meta["config"]["group_size"]

    def backbone(self, **options) -> nnx.Module:
        path = self.folder / self.meta["checkpoint"]
        backbone = weights.from_checkpoint(path, **self.known(), **options)
        wanted = self.meta["config"]
        epsilon = wanted.get("norm_eps", wanted.get("layer_norm_eps"))
        assert backbone.config.epsilon == epsilon
        return backbone

    def outputs(self, backbone: nnx.Module, dtype=jnp.float32) -> dict[str, np.ndarray]:
        """All that the case may ask for, by its names."""
        last = r".*blocks/\d+" if self.checkpoint.family != "swin" else None
        stages = getattr(backbone, "stages", ())
        where = last or "|".join(
            rf"stages/{i}/blocks/{len(s.blocks) - 1}" for i, s in enumerate(stages)
        )
        numbers = iter(range(99))
        attach.attach(backbone, where, lambda host: Recorder(next(numbers)))

        @jax.jit
        def run(backbone, x):
            tape = {}
            found = backbone(x, Context(tape=tape))
            return found.maps, found.tokens, tape

        x = jnp.asarray(next(iter(self.inputs.values())))
        # Points stay as they are: rounded coordinates are other groups.
        x = x if self.checkpoint.family == "point_mae" else x.astype(dtype)
        maps, tokens, tape = run(backbone, x)
        found = FAMILIES[self.checkpoint.family](self, backbone, x, maps, tokens, tape)
        return {k: np.asarray(v, np.float64) for k, v in found.items()}

    def logits(self, pooled):
        """The classifier that came along, on the pooled features."""
        head = {k: jnp.asarray(v) for k, v in self.checkpoint.head.items()}
        if "head/linear/kernel" not in head:
            return pooled
        return pooled @ head["head/linear/kernel"] + head["head/linear/bias"][None]


def vit(case, backbone, x, maps, tokens, tape):
    b, h, w, d = maps[-1].shape
    patches = maps[-1].reshape(b, h * w, d)
    everything = jnp.concatenate([tokens, patches], axis=1)
    mean = patches.mean(1)
    head = case.checkpoint.head
    if "head/norm/scale" in head:
        y = mean - mean.mean(-1, keepdims=True)
        y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + backbone.config.epsilon)
        pooled = y * head["head/norm/scale"][None] + head["head/norm/bias"][None]
    else:
        pooled = tokens[:, 0]
    positions = backbone.positions((h, w))
    return dict(
        blocks=tape["block"],
        embeddings=tape["embeddings"][0],
        tokens=everything,
        patch_tokens=patches,
        cls_token=tokens[:, 0] if tokens.shape[1] else 0,
        mean_patch=mean,
        pooled=pooled,
        logits=case.logits(pooled),
        pos_embed=positions,
    )


def swin(case, backbone, x, maps, tokens, tape):
    stages = [tape[n] for n in ("block", *(f"block.{i}" for i in range(2, 9))) if n in tape]
    pooled = maps[-1].mean((1, 2))
    found = {
        f"stage{i}": s.reshape(m.shape) for i, (s, m) in enumerate(zip(stages, maps, strict=True))
    }
    shape = case.expected["tokens"].shape if "tokens" in case.expected else maps[-1].shape
    return found | dict(tokens=maps[-1].reshape(shape), pooled=pooled, logits=case.logits(pooled))


def sam(case, backbone, x, maps, tokens, tape):
    b, h, w, _ = maps[-1].shape
    blocks = tape["block"].reshape(-1, b, h, w, backbone.dim)
    embeddings = tape["embeddings"].reshape(b, h, w, backbone.dim)
    return dict(blocks=blocks, embeddings=embeddings, features=maps[-1])


def point_mae(case, backbone, x, maps, tokens, tape):
    centers, groups = jax.vmap(lambda cloud: group(cloud, *case.group()))(x)
    everything = jnp.concatenate([tokens, maps[-1]], axis=1)
    found = dict(
        centers=centers,
        neighborhoods_sorted=jnp.sort(jnp.square(groups).sum(-1), axis=-1),
        group_tokens=backbone.embed(groups, Context()),
        blocks=tape["block"],
        tokens=everything,
    )
    if not backbone.prefix:
        return found
    y = features = jnp.concatenate([tokens[:, 0], maps[-1].max(1)], axis=-1)
    head = {k.removeprefix("cls_head_finetune."): v for k, v in case.checkpoint.rest.items()}
    for linear, norm in ((0, 1), (4, 5)):
        y = y @ head[f"{linear}.weight"].T + head[f"{linear}.bias"][None]
        scale = head[f"{norm}.weight"] / np.sqrt(head[f"{norm}.running_var"] + 1e-5)
        y = (y - head[f"{norm}.running_mean"][None]) * scale[None] + head[f"{norm}.bias"][None]
        y = jax.nn.relu(y)
    logits = y @ head["8.weight"].T + head["8.bias"][None]
    return found | dict(features=features, logits=logits)


FAMILIES = {"point_mae": point_mae, "vit": vit, "swin": swin, "sam": sam}


def test_there_are_cases():
    assert cases(), f"no cases under {FOLDER}"


def test_every_case_is_compared():
    known = {*BACKBONES, *WHOLE, *METHODS, *MODULES, *TASKS}
    assert [named(c) for c in cases() if c not in known] == []


@pytest.mark.parametrize("folder", BACKBONES, ids=named)
def test_backbone(folder):
    case = Case(folder)
    found = case.outputs(case.backbone())
    check = Check(case)
    for name, wanted in case.expected.items():
        check(name, found[name], wanted)
    check.done()


# One case a family is always computed in half precision.
HALF = {
    "vit_timm_avgpool_noclass",
    "dinov2_s14_pretrained",
    "sam_hf_full",
    "swin_hf_padded",
    "point_mae_finetune",
}
BACKBONES_IN_HALF = [
    pytest.param(f, marks=() if f.name in HALF else pytest.mark.exhaustive) for f in BACKBONES
]


@pytest.mark.parametrize("folder", BACKBONES_IN_HALF, ids=named)
@pytest.mark.slow
def test_backbone_in_bfloat16(folder):
    case = Case(folder)
    options = dict(dtype="bfloat16") if case.checkpoint.family == "point_mae" else {}
    found = case.outputs(case.backbone(**options), jnp.bfloat16)
    last = [n for n in ("tokens", "features") if n in case.expected]
    for name in last or sorted(case.expected)[-1:]:
        wanted = case.expected[name]
        gap = np.sqrt(np.square(found[name] - wanted).mean()) / wanted.std()
        print(f"{named(folder)} {name}: {gap:.1e} of {BFLOAT16}")
        assert gap < BFLOAT16


def published_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The adapter's tensors by their published names."""
    if (folder / "adapter").is_dir():
        return files.read_tensors(folder / "adapter" / "adapter_model.safetensors")
    return dict(np.load(folder / "adapter.npz"))


def translator(method: str):
    """The module of `peft_cases` that knows a method's published names.

    It has `settings(meta)`, the keywords of our `adapt`, and `ours(published)`, which takes tensors
    (or gradients) by published name to our adapter leaves by path. Where it differs, also:
    `method(meta)`, our name of the method; `loss(case, features)`; `INSIDE`, whether a block's
    adapter sees more of the sequence than leaves it; `adapter(meta, rngs)`, for one module;
    `run(folder, meta, check)`, in the place of all these, for whole models of several tasks.
    """
    folder = Path(__file__).parent / "peft_cases"
    path = folder / f"{method}.py"
    if not path.exists():
        path = folder / f"{method.split('_')[0]}.py"
    spec = importlib.util.spec_from_file_location(f"peft_cases_{method}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours_of(names, published: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in names.ours(published).items()}


def cross_entropy(case, features):
    """The loss of the ViT cases: labels 0, 1, ... on the class token's logits."""
    logits = case.logits(features.tokens[:, 0])
    labels = np.arange(len(logits))
    return -jax.nn.log_softmax(logits)[labels, labels].mean(), {"logits": logits}


@pytest.mark.parametrize("folder", METHODS, ids=named)
@pytest.mark.slow
def test_method(folder, monkeypatch):
    """Features, logits, loss, every gradient of the adapter, and what merging makes of it."""
    case = Case(folder)
    names = translator(case.meta["method"])
    method = getattr(names, "method", lambda meta: meta["method"])(case.meta)
    backbone = case.backbone()
    # Some cases have published ranks on backbones that are narrower, which we would refuse.
    module = adapters.module(method)
    monkeypatch.setattr(module, "check_rank", lambda *args, **kwargs: None, raising=False)
    adapters.adapt(backbone, method, rngs=nnx.Rngs(0), **names.settings(case.meta))
    given = ours_of(names, published_tensors(folder))
    state = nnx.state(backbone)
    leaves = tree.leaves(state)
    assert given.keys() >= {k for k in leaves if "adapter" in k.split("/")}
    for path, value in given.items():
        assert leaves[path].shape == value.shape, path
    nnx.update(backbone, tree.replace(state, leaves | jax.tree.map(jnp.asarray, given)))
    graph, train, frozen = nnx.split(backbone, lambda p, _: tree.path_string(p) in given, ...)
    image = jnp.asarray(case.inputs["image"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(train, frozen, image):
        features = nnx.merge(graph, train, frozen)(image, Context())
        return getattr(names, "loss", cross_entropy)(case, features)

    (score, found), gradient = loss(train, frozen, image)
    found |= {"loss": score}
    check = Check(case)
    wanted = {k: v for k, v in case.expected.items() if k.startswith("grad/")}
    allowed = {
        k.removeprefix("grad/"): np.full(v.shape, case.meta["atol"][k]) for k, v in wanted.items()
    }
    allowed = ours_of(names, allowed)
    wanted = ours_of(names, {k.removeprefix("grad/"): v for k, v in wanted.items()})
    for path, value in tree.leaves(gradient).items():
        check(f"grad/{path}", value, wanted[path], allowed[path])
    if "blocks" in case.expected:
        inside = getattr(names, "INSIDE", False)
        found["blocks"] = blocks(nnx.clone(backbone), image, inside)
    if any(k.startswith("merged") for k in case.expected):
        adapters.merge(backbone, method)
        found["merged_logits"] = cross_entropy(case, backbone(image, Context()))[1]["logits"]
        plain = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(backbone)).items()}
        layout, prefix = case.checkpoint.layout, case.checkpoint.prefix
        sources = layout.to_source(plain, prefix, backbone.config.heads)
        found |= {f"merged/{k}": v for k, v in sources.items()}
    for name, value in case.expected.items():
        if not name.startswith("grad/"):
            check(name, found[name], value)
    check.done()


def blocks(backbone, image, inside):
    """What every block gives, `depth b n d`, behind its adapter or, `inside`, before it."""
    for _, host in attach.sites(backbone, r"blocks/\d+"):
        if isinstance(host, attach.Adapted):
            chain = (Recorder(1), host.adapter)
            host.adapter = attach.Chain(*(chain[::-1] if inside else chain))
        else:
            attach.attach(host, "", lambda host: Recorder(1))
    tape = {}
    backbone(image, Context(tape=tape))
    return tape["block"]


@pytest.mark.parametrize("folder", WHOLE, ids=named)
@pytest.mark.slow
def test_whole_method(folder):
    """Streams of all stages, outputs, loss, and every gradient of all that trains."""
    meta = json.loads((folder / "meta.json").read_text())
    check = Check(types.SimpleNamespace(folder=folder, meta=meta))
    translator(meta["method"]).run(folder, meta, check)
    check.done()


@pytest.mark.parametrize("folder", MODULES, ids=named)
@pytest.mark.slow
def test_module(folder):
    """An adapter alone: what it makes of tokens when its branch adds to them."""
    meta = json.loads((folder / "meta.json").read_text())
    names = translator(meta["method"])
    adapter = names.adapter(meta, nnx.Rngs(0))
    given, state = ours_of(names, published_tensors(folder)), nnx.state(adapter)
    shapes = {path: x.shape for path, x in tree.leaves(state).items()}
    assert {path: x.shape for path, x in given.items()} == shapes
    nnx.update(adapter, tree.replace(state, jax.tree.map(jnp.asarray, given)))
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    x = jnp.asarray(inputs["x"])
    ctx = Context(grid=tuple(map(int, inputs.get("hw", (0, 0)))))
    check = Check(types.SimpleNamespace(folder=folder, meta=meta))
    check("y", x + adapter.branch(x, ctx), expected["y"])
    check.done()


@pytest.mark.parametrize("folder", TASKS, ids=named)
def test_task(folder):
    """Heads, losses, metrics: all that a case expects of them."""
    meta = json.loads((folder / "meta.json").read_text())
    check = Check(types.SimpleNamespace(folder=folder, meta=meta))
    TASKS[folder].run(folder, meta, check)
    check.done()
