"""The LoRA or DoRA of a run alone, as a folder of Hugging Face's peft."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dynadapt import backbones, files, model, tree, weights
from dynadapt.convert import merged, timm
from dynadapt.errors import ConfigError
from dynadapt.layers import SameKey
from dynadapt.runs import product
from dynadapt.weights import peft


def write(source: Path, out: Path) -> dict[str, Any]:
    """Writes the LoRA or DoRA of a run, and its head, as a folder of peft for timm's ViT.

    Raises:
        ConfigError: for what is no run, or one of a method or backbone that peft has no place for.
    """
    if not (source / "adapter" / "adapter.json").is_file():
        raise ConfigError(f"--to=peft needs the folder of a run; {source} is none")
    adapter = product.read(source / "adapter")
    config, leaves = adapter.config, adapter.leaves
    settings = dict(config.adapter)
    method = settings.pop("name")
    product.check_backbone(adapter)
    name = config.backbone.weights
    base = weights.read(weights.locate(name)) if name else None
    backbone = nnx.eval_shape(lambda: model.bare_backbone(config, base, SameKey()))
    family = backbones.family(config.backbone.name)
    merged.check_peft(backbone, family)
    own = {k.removeprefix("backbone/"): v for k, v in leaves.items()}
    kernels = {}
    if method == "dora":
        adapted = model.adapted_backbone(config)
        kernels = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(adapted)).items()}
    peft.write(out, method, settings, own, kernels=kernels, base=name or None)
    file = out / peft.TENSORS
    head = {k: v for k, v in own.items() if k in merged.CLASSIFIER}
    found = weights.Checkpoint(source, family=family, head=head)
    given = merged.Merged(found, backbone, config.task.get("pool", "") if head else "")
    return {
        "file": str(out),
        "sha256": files.sha256(file),
        "family": family,
        "tensors": len(files.read_tensors(file)),
        "left": [],
        "load": _call(given, str(out)),
        "notes": _notes(adapter, backbone),
    }


BASE = "base.safetensors"


def _call(given: merged.Merged, folder: str) -> str:
    """The Python that builds timm's model, loads the base into it and adapts it."""
    values = f"safetensors.torch.load_file({BASE!r}).items()"
    return (
        f"base = {timm.create(given)}.eval(); "
        f"base.load_state_dict({{k: v for k, v in {values} if not k.startswith('head.')}}, "
        f"strict=False); model = peft.PeftModel.from_pretrained(base, {folder!r}).eval()"
    )


def _notes(adapter: product.SavedAdapter, backbone: Any) -> list[str]:
    """What the base is, and whether it sees images of another size."""
    name = adapter.config.backbone.weights
    notes = [
        f"{BASE} is the backbone alone: dynadapt convert {name} {BASE} --to=timm"
        if name
        else "the backbone of this run has random weights, which no file holds"
    ]
    return notes + merged.size_notes(backbone, adapter.spec["image"].shape[1:3])
