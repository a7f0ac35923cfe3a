"""VPT's published names; both forms."""

# Prompts of the deep form are in the sequence inside a block alone.
INSIDE = True


def method(meta):
    return "vpt"


def settings(meta):
    h = meta["hyperparameters"]
    form = meta["method"].removeprefix("vpt_")
    return dict(prompts=h["num_tokens"], form=form, project=max(h["project"], 0))


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    first = published["prompt_embeddings"][0]
    if "deep_prompt_embeddings" not in published:
        found = {"enter/adapter/prompts": first}
    else:
        layers = [first, *published["deep_prompt_embeddings"]]
        found = {f"blocks/{i}/adapter/prompts": p for i, p in enumerate(layers)}
    if "prompt_proj.weight" in published:
        found["adapter/module/kernel"] = published["prompt_proj.weight"].T
        found["adapter/module/bias"] = published["prompt_proj.bias"]
    return found
