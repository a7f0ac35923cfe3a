"""Adapters through the hub, against a stand-in with the real client's signatures."""

import dataclasses
import inspect
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynadapt import files
from dynadapt.commands.config_file import read_config
from dynadapt.errors import CheckpointError, ConfigError, MachineError
from dynadapt.main import main
from dynadapt.release import hub, model_card
from dynadapt.runs import product
from tests import products
from tests.test_docs import ROOT

pytestmark = pytest.mark.usefixtures("fast_compiling")


@dataclasses.dataclass
class Hub:
    """A hub in a folder: `<root>/<owner>/<name>/<commit>/<file>`, the newest commit is `main`."""

    root: Path
    private: dict = dataclasses.field(default_factory=dict)
    asked: list = dataclasses.field(default_factory=list)

    def commits(self, repo_id):
        if not (self.root / repo_id).is_dir():
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {repo_id}.")
        return sorted((self.root / repo_id).iterdir())

    # Signatures as of huggingface_hub 2.4, as far as they are used.

    def create_repo(self, repo_id: str, *, private=None, exist_ok: bool = False):
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.private.setdefault(repo_id, private)

    def upload_folder(self, *, repo_id: str, folder_path, commit_message=None, allow_patterns=None):
        commit = f"{len(list((self.root / repo_id).iterdir())):040x}"
        for file in Path(folder_path).rglob("*"):
            name = file.relative_to(folder_path).as_posix()
            if file.is_file() and any(fnmatch(name, p) for p in allow_patterns):
                (self.root / repo_id / commit).mkdir(exist_ok=True)
                shutil.copy(file, self.root / repo_id / commit / name)
        return SimpleNamespace(oid=commit, commit_url=f"https://hub/{repo_id}/commit/{commit}")

    def model_info(self, repo_id: str, *, revision=None):
        commits = self.commits(repo_id)
        found = [c for c in commits if c.name == revision] or ([] if revision else commits[-1:])
        if not found and not commits and not revision:
            return SimpleNamespace(sha=None, siblings=[], private=self.private.get(repo_id))
        if not found:
            raise OSError(f"404 Client Error. Revision Not Found: {revision}")
        names = sorted(p.relative_to(found[0]).as_posix() for p in found[0].rglob("*"))
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        shown = dict(siblings=siblings, private=self.private.get(repo_id))
        return SimpleNamespace(sha=found[0].name, **shown)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision=None, local_dir=None):
        self.asked.append((filename, revision))
        notes = Path(local_dir) / ".cache" / "huggingface"
        notes.mkdir(parents=True, exist_ok=True)
        return shutil.copy(self.root / repo_id / revision / filename, Path(local_dir) / filename)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "run"
    config = read_config(str(ROOT / "tests" / "configs_tiny.py"), "method=lora")
    products.leave(folder / "adapter", config)
    (folder / "adapter" / "secret.txt").write_text("not for others")
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub(tmp_path / "server")
    server.root.mkdir()
    module = SimpleNamespace(HfApi=lambda: server)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return server


def test_there_and_back(run, server, tmp_path, capsys):
    (run / "adapter" / model_card.FILE).unlink(missing_ok=True)
    assert main(["hub", "push", f"--workdir={run}", "--repo=me/digits", "--private"]) == 0
    assert "https://hub/me/digits/commit/" in capsys.readouterr().out
    (commit,) = server.commits("me/digits")
    assert {p.name for p in commit.iterdir()} == set(hub.NAMES) and server.private["me/digits"]
    assert "--repo=me/digits" in (commit / model_card.FILE).read_text()
    assert main(["hub", "pull", "--repo=me/digits", f"--out={tmp_path / 'got'}"]) == 0
    assert "dynadapt predict --workdir=" in capsys.readouterr().out
    for name in hub.NAMES:
        there = (tmp_path / "got" / "adapter" / name).read_bytes()
        assert there == (run / "adapter" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "got" / "adapter").iterdir()) == sorted(hub.NAMES)
    assert [p.name for p in (tmp_path / "got").iterdir()] == ["adapter"]
    assert main(["verify", f"--workdir={tmp_path / 'got'}"]) == 0


def test_a_card_that_is_there_goes_as_it_is(run, server):
    (run / "adapter" / model_card.FILE).write_text("edited")
    result = hub.push(run / "adapter", "me/digits")
    assert (server.commits("me/digits")[0] / model_card.FILE).read_text() == "edited"
    assert server.private["me/digits"] is None and result["commit"] == f"{0:040x}"


def test_what_others_see_is_not_taken_for_private(run, server):
    hub.push(run / "adapter", "me/digits")
    with pytest.raises(ConfigError, match="others see it"):
        hub.push(run / "adapter", "me/digits", private=True)
    assert len(server.commits("me/digits")) == 1


def test_a_revision(run, server, tmp_path):
    first = hub.push(run / "adapter", "me/digits")["commit"]
    hub.push(run / "adapter", "me/digits")
    assert hub.pull(f"me/digits@{first}", tmp_path / "old")["commit"] == first
    newest = hub.pull("me/digits", tmp_path / "new")["commit"]
    assert newest != first and {revision for _, revision in server.asked} == {first, newest}
    with pytest.raises(MachineError, match="did not serve me/digits@none: 404 .* Not Found"):
        hub.pull("me/digits@none", tmp_path / "none")


def spoil(commit, name):
    """Flips a bit in the middle of a file."""
    content = bytearray((commit / name).read_bytes())
    content[len(content) // 2] ^= 1
    (commit / name).write_bytes(content)


@pytest.mark.parametrize("name", hub.NEEDED)
def test_what_was_changed_on_the_way_is_not_kept(name, run, server, tmp_path):
    hub.push(run / "adapter", "me/digits")
    spoil(server.commits("me/digits")[0], name)
    with pytest.raises(CheckpointError, match="^nothing of me/digits is kept: ") as caught:
        hub.pull("me/digits", tmp_path / "got")
    assert "dynadapt-part" not in str(caught.value)
    assert list((tmp_path / "got").iterdir()) == []


def test_what_is_no_adapter(server, tmp_path):
    commit = server.root / "me" / "other" / ("0" * 40)
    commit.mkdir(parents=True)
    (commit / "pytorch_model.bin").touch()
    (commit / "adapter.json").write_text("{}")
    with pytest.raises(CheckpointError, match="me/other holds no adapter .* adapter.safetensors"):
        hub.pull("me/other", tmp_path / "got")
    assert server.asked == [] and not (tmp_path / "got").exists()


def test_only_named_files_are_asked_for(run, server, tmp_path):
    hub.push(run / "adapter", "me/digits")
    (server.commits("me/digits")[0] / "setup.py").write_text("raise SystemExit")
    hub.pull("me/digits", tmp_path / "got")
    assert {name for name, _ in server.asked} == set(hub.NAMES)


def test_a_damaged_adapter_is_not_pushed(run, server, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    spoil(tmp_path / "adapter", product.TENSORS)
    with pytest.raises(CheckpointError, match="is damaged"):
        hub.push(tmp_path / "adapter", "me/digits")
    assert list(server.root.iterdir()) == []


def test_weights_that_are_not_here_are_told(run, server, tmp_path, capsys):
    leaves = files.read_tensors(run / "adapter" / product.TENSORS)
    card = files.read_json(run / "adapter" / product.CARD)
    away = dict(weights="/home/someone/vit.npz", weights_sha256="ab" * 32)
    product.save(tmp_path / "adapter", leaves, card | away)
    hub.push(tmp_path / "adapter", "me/digits")
    result = hub.pull("me/digits", tmp_path / "got")
    hub.show_pulled(result, tmp_path / "got")
    out = capsys.readouterr().out
    assert not result["here"] and "'vit.npz', SHA-256 abababababab…" in out
    assert "--weights=FILE" in out


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["push"], "--repo=owner/name"),
        (["pul", "--repo=a/b"], "did you mean 'pull'"),
        (["push", "--repo=a/b"], "give --workdir="),
        (["push", "--repo=a/b@main", "--workdir=W"], "without @"),
        (["pull", "--repo=a/b"], "give --out="),
        (["pull", "--repo=justname", "--out=O"], "owner/name@revision, not 'justname'"),
        (["pull", "--repo=a/../b", "--out=O"], "owner/name@revision"),
        (["pull", "--repo=a/b", "--out=O", "--private"], "hub pull takes no --private"),
        (["push", "--repo=a/b", "--workdir=W"], "give the folder of a finished run"),
    ],
)
def test_mistakes_get_one_sentence(argv, part, server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["hub", *argv]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and "Traceback" not in err


def test_an_adapter_is_not_written_over(server, tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ConfigError, match="is there already; give another --out"):
        hub.pull("me/digits", tmp_path)


def test_without_the_client(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for job in (lambda: hub.push(run / "adapter", "a/b"), lambda: hub.pull("a/b", tmp_path)):
        with pytest.raises(MachineError, match=r"pip install 'dynadapt\[hub\]'"):
            job()


def test_the_stand_in_has_the_clients_signatures():
    real = pytest.importorskip("huggingface_hub", reason="it is in the extra [hub]").HfApi
    for name in ("create_repo", "upload_folder", "model_info", "hf_hub_download"):
        theirs = inspect.signature(getattr(real, name)).parameters
        for parameter in inspect.signature(getattr(Hub, name)).parameters.values():
            assert theirs[parameter.name].kind == parameter.kind, (name, parameter.name)
