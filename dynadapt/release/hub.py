"""Adapters to and from the Hugging Face hub; the one module that speaks with it.

Nothing but the files named here goes either way, and what comes is read as any adapter is: its
hashes are compared, and no code is run.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynadapt import files, weights
from dynadapt.errors import CheckpointError, ConfigError, MachineError
from dynadapt.release import model_card
from dynadapt.runs import product

NEEDED = (product.TENSORS, product.CARD)
NAMES = (*NEEDED, model_card.FILE)
REPO = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def push(adapter: Path, repo: str, *, private: bool = False) -> dict[str, Any]:
    """Uploads a run's adapter and its model card, which is written where there is none.

    Args:
        adapter: `adapter/` of the run.
        repo: `owner/name`; made where it is not there.
        private: make it one that others can't see.

    Returns:
        `repo`, the `commit`, its `url`, the names of the `files`.

    Raises:
        CheckpointError: for a damaged adapter; nothing is uploaded then.
        ConfigError: for a name that no repository has, or to be private one that others see.
        MachineError: without huggingface_hub, or for what the hub or the network refuses.
    """
    name, revision = parsed(repo)
    if revision:
        raise ConfigError(f"push makes a revision of its own; give --repo={name} without @")
    client = _client()
    product.read(adapter)
    if not (adapter / model_card.FILE).exists():
        model_card.write(adapter, name)
    with _asking(name):
        client.create_repo(name, private=private or None, exist_ok=True)
        seen = private and not client.model_info(name).private  # one that was there stays as it was
    if seen:
        raise ConfigError(f"{name} is there already, and others see it; give another --repo")
    with _asking(name):
        made = client.upload_folder(
            repo_id=name,
            folder_path=adapter,
            allow_patterns=list(NAMES),
            commit_message="Adapter of dynadapt",
        )
    return {"repo": name, "commit": made.oid, "url": made.commit_url, "files": list(NAMES)}


def pull(repo: str, out: Path) -> dict[str, Any]:
    """Downloads an adapter into `out/adapter`, so that `out` serves as a run's folder.

    Args:
        repo: `owner/name`, or `owner/name@revision`: a branch, a tag or a commit.
        out: folder.

    Returns:
        `repo`, the `commit`, the `adapter`, its `method`, `backbone` and `weights`, and whether
        those are `here`.

    Raises:
        CheckpointError: for what is no adapter, or one whose hashes differ; nothing is kept then.
        ConfigError: for a name that no repository has, or a folder that has an adapter already.
        MachineError: as of `push`, or if the disk is full.
    """
    name, revision = parsed(repo)
    folder = out / "adapter"
    if folder.exists():
        raise ConfigError(f"{folder} is there already; give another --out")
    client = _client()
    with _asking(repo):
        info = client.model_info(name, revision=revision)
    listed = {file.rfilename for file in info.siblings or ()}
    if missing := [file for file in NEEDED if file not in listed]:
        raise CheckpointError(f"{repo} holds no adapter of dynadapt: it has no {missing[0]}")
    with files.writing(out, then="make room and start again"):
        out.mkdir(parents=True, exist_ok=True)
        partial = files.partial_name(folder)
        try:
            with _asking(repo):  # all of one commit, whatever is pushed meanwhile
                got = {
                    file: client.hf_hub_download(name, file, revision=info.sha, local_dir=partial)
                    for file in NAMES
                    if file in listed
                }
            adapter = _read(partial, repo)
            for stranger in [p for p in partial.iterdir() if p.name not in got]:
                shutil.rmtree(stranger)  # the client's own notes
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    card = adapter.card
    return {
        "repo": name,
        "commit": info.sha,
        "adapter": str(folder),
        **{k: card[k] for k in ("method", "backbone", "weights", "weights_sha256")},
        "here": _is_here(adapter),
    }


def parsed(repo: str) -> tuple[str, str | None]:
    """Name and revision of `owner/name@revision`; a ConfigError for what is none."""
    found = REPO.fullmatch(repo)
    if not found:
        raise ConfigError(f"--repo must be owner/name or owner/name@revision, not {repo!r:.100}")
    return found[1], found[2]


def _client() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MachineError(
            "the hub is reached through huggingface_hub: pip install 'dynadapt[hub]'"
        ) from error
    return HfApi()


@contextlib.contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Turns whatever the client raises, of which many libraries have a part, into one sentence."""
    try:
        yield
    except Exception as error:
        raise MachineError(f"the hub did not serve {repo}: {files.first_line(error)}") from error


def _read(folder: Path, repo: str) -> product.SavedAdapter:
    try:
        return product.read(folder)
    except CheckpointError as error:
        reason = str(error).replace(str(folder), repo)
        raise CheckpointError(f"nothing of {repo} is kept: {reason}") from error


def _is_here(adapter: product.SavedAdapter) -> bool:
    """Whether the backbone's weights lie where the adapter's config says."""
    with contextlib.suppress(CheckpointError):
        name = adapter.card["weights"]
        return not name or weights.locate(name).exists()
    return False


def show_pushed(result: dict[str, Any]) -> None:
    """Prints where the adapter is."""
    print(f"pushed {', '.join(result['files'])} to {result['url']}")


def show_pulled(result: dict[str, Any], out: Path) -> None:
    """Prints where the adapter is and what it needs."""
    print(f"wrote {result['adapter']}: {result['method']} on {result['backbone']}, hashes compared")
    given = "" if result["here"] else " --weights=FILE"
    if given:
        print(
            f"its backbone's weights were {Path(result['weights']).name!r}, "
            f"SHA-256 {result['weights_sha256'][:12]}…"
        )
    print(f"use it: dynadapt predict --workdir={out} --images=photos --out=answers{given}")
