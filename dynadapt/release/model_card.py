"""The model card of an adapter: Markdown with the head that the Hugging Face hub reads.

Written when an adapter is handed on, not when it is trained: what it says of licences its owner
must look at, and what a training writes depends on nothing but the run.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynadapt import files, weights
from dynadapt.errors import ConfigError
from dynadapt.release import described
from dynadapt.runs import product
from dynadapt.runs.journal import size_text
from dynadapt.runs.report import number_text
from dynadapt.weights.catalogue import PUBLISHED, Published

FILE = "README.md"
UNNAMED = "OWNER/NAME"
# Names of the hub for what a task does.
PIPELINES = {
    "classification": "image-classification",
    "depth": "depth-estimation",
    "detection": "object-detection",
    "instances": "image-segmentation",
    "multilabel": "image-classification",
    "segmentation": "image-segmentation",
}
# The hub's names of weights that it has in the publisher's own values.
SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant", "h": "huge"}
MODELS = {
    **{f"dinov2_{k}14": f"facebook/dinov2-{SIZES[k]}" for k in "sblg"},
    **{f"dinov2_{k}14_reg": f"facebook/dinov2-with-registers-{SIZES[k]}" for k in "sblg"},
    **{f"sam_{k}16": f"facebook/sam-vit-{SIZES[k]}" for k in "blh"},
}
SHIPPED = "Apache-2.0"  # licence of the weights that come with the package
DRAWN = ("blank", "clouds", "generated", "scenes")  # data that the package makes by formula
NAMES = 50  # of classes that are listed

USE = """\
With dynadapt installed:

```bash
dynadapt hub pull --repo={repo} --out=model
dynadapt predict --workdir=model --images={inputs} --out=answers{weights}
```

or in Python:

```python
import dynadapt

model = dynadapt.load("model"{python})
print(model.predict(["{one}"])[0])
```
"""


def write(adapter: Path, repo: str = UNNAMED) -> Path:
    """Writes the card into an adapter's folder.

    Args:
        adapter: `adapter/` of a run.
        repo: `owner/name` on the hub, where it is known.

    Raises:
        CheckpointError: for a damaged adapter.
        ConfigError: for a card that is there already, which may have been edited.
        MachineError: if the disk is full.
    """
    file, content = adapter / FILE, text(product.read(adapter), repo)
    if file.exists():
        raise ConfigError(f"{file} is there already; edit it, or remove it to have it made anew")
    with files.writing(file):
        files.write_bytes(file, content.encode())
    return file


def text(adapter: product.SavedAdapter, repo: str = UNNAMED) -> str:
    """The card of an adapter."""
    parts = (_head, _figures, _parameters, _recipe, _preprocessing, _use, _licences)
    return "\n".join(part(adapter, repo) for part in parts)


def _head(adapter: product.SavedAdapter, repo: str) -> str:
    card, known = adapter.card, published(adapter)
    method, backbone, data, task = (card[k] for k in ("method", "backbone", "data", "task"))
    pipeline = PIPELINES.get(task, "other")
    tags = ["dynadapt", "jax", "flax", "adapter", "parameter-efficient-fine-tuning", method, task]
    figures = [dict(type=k, name=k, value=round(v, 4)) for k, v in _scalars(card).items()]
    found = dict(task={"type": pipeline}, dataset={"type": data, "name": data}, metrics=figures)
    values = {
        "library_name": "dynadapt",
        **({"license": known[1].lower()} if known[1] else {}),
        **({"base_model": MODELS[known[0]]} if known[0] in MODELS else {}),
        **({"base_model_relation": "adapter"} if known[0] in MODELS else {}),
        **({"pipeline_tag": pipeline} if task in PIPELINES else {}),
        "tags": tags,
        "metrics": list(_scalars(card)),
        "model-index": [{"name": repo.rpartition("/")[2], "results": [found]}],
    }
    # JSON is YAML, and needs no library to be written.
    head = "".join(f"{k}: {json.dumps(v, ensure_ascii=False)}\n" for k, v in values.items())
    return f"""\
---
{head}---

# {method} on {backbone} for {data}

The method `{method}` on the backbone `{backbone}`, trained for {task} with dynadapt
{card["versions"].get("dynadapt", "")}. All that was trained is here, {size_text(card["bytes"])};
the frozen rest is not.
"""


def _scalars(card: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one number, without the count of examples."""
    metrics = card["metrics"].items()
    return {k: v for k, v in metrics if isinstance(v, int | float) and k != "examples"}


def _figures(adapter: product.SavedAdapter, repo: str) -> str:
    card, config = adapter.card, adapter.config
    rows = [[f"`{k}`", number_text(v)] for k, v in _scalars(card).items()]
    count = card["metrics"].get("examples")
    examples = f", {count:,} examples" if isinstance(count, int) else ""
    return f"""\
## Figures

On `{config.input.eval_split}` of {card["data"]}{examples}. One run with the seed {config.seed},
which says nothing of how much another seed would differ.

{_table(["metric", "value"], rows)}"""


def _parameters(adapter: product.SavedAdapter, repo: str) -> str:
    counts = adapter.card["counts"]
    rows = [
        ["trained, without the head", f"{counts['trained']:,}"],
        ["trained, with the head", f"{counts['trained_with_head']:,}"],
        ["backbone", f"{counts['backbone']:,}"],
        ["share of the backbone", f"{100 * counts['trained'] / counts['backbone']:.2f} %"],
        ["file", size_text(adapter.card["bytes"])],
    ]
    return f"## Parameters\n\n{_table(['what', 'count'], rows)}"


def _recipe(adapter: product.SavedAdapter, repo: str) -> str:
    config, card = adapter.config, adapter.card
    o, given = config.optim, config.input
    settings = ", ".join(f"`{k}={v}`" for k, v in config.adapter.items() if k != "name")
    length = f"{o.steps:,} steps" if o.steps else f"{o.epochs:g} epochs"
    kept = "their moving averages at" if o.ema else "those of"
    classes = ", ".join(card["classes"][:NAMES]) + (", …" if len(card["classes"]) > NAMES else "")
    named = f"\n- {len(card['classes'])} classes: {classes}" if card["classes"] else ""
    return f"""\
## Data and recipe

- data: {card["data"]}, trained on `{given.train_split}`{named}
- method: `{card["method"]}`{f" with {settings}" if settings else ""}
- {o.name}, learning rate {o.lr:g}, {o.schedule} schedule, weight decay {o.weight_decay:g}
- {length} with batches of {given.batch_size}
- training transforms: `{given.train}`
- seed: {config.seed}

The parameters are {kept} the last step; no step was chosen by its figures. How the recipe itself
was chosen, the run does not tell. The whole config is in `adapter.json`.
"""


def _preprocessing(adapter: product.SavedAdapter, repo: str) -> str:
    found = described.preprocessing(adapter)
    scaled = ""
    if "mean" in found:
        mean, std = (", ".join(f"{x:g}" for x in found[k]) for k in ("mean", "std"))
        scaled = f" Then scaled to 0 … 1, minus the mean ({mean}), divided by ({std})."
    return f"""\
## Preprocessing

{found["words"]}.{scaled} dynadapt does this by itself.
"""


def _use(adapter: product.SavedAdapter, repo: str) -> str:
    image = "image" in adapter.spec
    inputs, one = ("photos", "a.jpg") if image else ("scans", "a.ply")
    name = adapter.card["weights"]
    alone = not name or name in weights.shipped()
    how = "" if alone else f"The backbone's weights are not here: {_named(adapter)}\n\n"
    given = dict(repo=repo, inputs=inputs, one=one, weights="", python="")
    if not alone:
        given |= dict(weights=" --weights=FILE", python=', weights="FILE"')
    return f"## Use\n\n{how}{USE.format(**given)}"


def _named(adapter: product.SavedAdapter) -> str:
    """A sentence on which weights the backbone has."""
    card, known = adapter.card, published(adapter)
    digest = f"SHA-256 `{card['weights_sha256']}`"
    if known[0]:
        return f"`dynadapt weights {known[0]}` says where they are; {digest}."
    return f"the file was called `{Path(card['weights']).name}`; {digest}."


def _licences(adapter: product.SavedAdapter, repo: str) -> str:
    return "## Licences\n\n" + "".join(f"- {line}\n" for line in _sentences(adapter))


def _sentences(adapter: product.SavedAdapter) -> Iterator[str]:
    card, (name, licence) = adapter.card, published(adapter)
    if licence:
        yield f"weights of the backbone ({name}): {licence}"
    elif card["weights"]:
        yield "weights of the backbone: not known to dynadapt"
    else:
        yield "weights of the backbone: random, made from the seed"
    if adapter.config.data.name in DRAWN:
        yield "data: drawn by dynadapt itself, Apache-2.0"
    else:
        yield f"data ({card['data']}): not known to dynadapt; ask where they come from"
    if licence:
        yield (
            "the licence in the head is that of the backbone's weights; the owner may have to "
            "change it for the data's sake"
        )


def published(adapter: product.SavedAdapter) -> tuple[str, str]:
    """Name and licence of the backbone's weights as the table of published weights knows them,
    by their hash or else the name of their file; "" for what is not known."""
    card = adapter.card
    if card["weights"] in weights.shipped():
        return card["weights"], SHIPPED
    for known in PUBLISHED:
        if card["weights"] and _same(known, card["weights"], card["weights_sha256"]):
            return known.name, known.licence
    return "", ""


def _same(known: Published, name: str, digest: str) -> bool:
    kind, _, start = known.digest.partition(":")
    if kind == "sha256":
        return digest.startswith(start)
    return Path(name).name == known.file


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
