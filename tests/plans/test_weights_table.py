import contextlib
import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynadapt import backbones, tree
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.main import main
from dynadapt.plans import weights_table
from dynadapt.runs.speed import matmul_flops
from dynadapt.weights import catalogue

BODY = bytes(range(256)) * 5000  # more than a chunk
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()
ROOT = Path(__file__).resolve().parents[2]


class Handler(BaseHTTPRequestHandler):
    """`/whole`, `/unmeasured` and `/short` bodies; 404 for all else."""

    def do_GET(self):
        self.server.asked.append(self.path)
        kind = self.path.split("/")[1]
        if kind not in ("whole", "short", "unmeasured"):
            return self.send_error(404)
        self.send_response(200)
        if kind != "unmeasured":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(BODY[: len(BODY) // 2] if kind == "short" else BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def published(server):
    """Makes an entry of a kind of answer with a known hash."""

    def make(kind, digest=""):
        url = f"http://127.0.0.1:{server.server_port}/{kind}/vit.pth"
        return replace(catalogue.find("vit_b16_mae"), url=url, digest=digest)

    return make


@pytest.mark.parametrize("kind", ["whole", "unmeasured"])
@pytest.mark.parametrize("digest", ["", f"sha256:{SHA256[:8]}", f"md5:{MD5[:6]}"])
def test_a_download(published, tmp_path, kind, digest):
    result = weights_table.download(published(kind, digest), tmp_path)
    assert (tmp_path / "vit.pth").read_bytes() == BODY
    assert result["sha256"] == SHA256 and result["file"] == str(tmp_path / "vit.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["vit.pth"]


@pytest.mark.parametrize(
    "kind, digest, text",
    [
        ("short", "", f"ended early, after {len(BODY) // 2:,} of {len(BODY):,} bytes"),
        ("whole", "sha256:deadbeef", f"its SHA-256 starts with {SHA256[:8]}, not with deadbeef"),
        ("whole", "md5:c0ffee", f"its MD5 starts with {MD5[:6]}, not with c0ffee"),
        ("gone", "", "the server says 404"),
    ],
)
def test_what_goes_wrong_leaves_nothing(published, tmp_path, kind, digest, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        weights_table.download(published(kind, digest), tmp_path)
    assert "http://127.0.0.1" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failed_download_keeps_the_file_that_was_there(published, tmp_path):
    (tmp_path / "vit.pth").write_bytes(b"old")
    with pytest.raises(CheckpointError):
        weights_table.download(published("short"), tmp_path)
    assert (tmp_path / "vit.pth").read_bytes() == b"old"


def test_an_interruption_leaves_nothing(published, tmp_path, monkeypatch):
    def interrupted(path, digest):
        assert [p.name for p in tmp_path.iterdir()] == [path.name] != ["vit.pth"]
        raise KeyboardInterrupt

    monkeypatch.setattr(weights_table, "_fault", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights_table.download(published("whole", "md5:c0ffee"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_server(published, server, tmp_path):
    port = server.server_port
    entry = published("whole")
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match=f"127.0.0.1:{port}/whole/vit.pth: .*[Rr]efused"):
        weights_table.download(entry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_verified_file_is_not_asked_for_again(published, server, tmp_path):
    (tmp_path / "vit.pth").write_bytes(BODY)
    weights_table.download(published("gone", f"sha256:{SHA256}"), tmp_path)
    assert not server.asked
    weights_table.download(published("whole"), tmp_path)  # no hash is known: asked again
    assert len(server.asked) == 1


def test_the_folder_is_made(published, tmp_path):
    found = weights_table.download(published("whole"), tmp_path / "new" / "weights")
    assert (tmp_path / "new" / "weights" / Path(found["file"]).name).is_file()
    with pytest.raises(ConfigError, match="must be a folder, not a file"):
        weights_table.download(published("whole"), Path(found["file"]))


def test_download_by_command(published, tmp_path, monkeypatch, capsys):
    entry = published("whole", f"md5:{MD5[:6]}")
    monkeypatch.setattr(catalogue, "PUBLISHED", (entry,))
    assert main(["weights", entry.name, f"--download={tmp_path}"]) == 0
    assert SHA256 in capsys.readouterr().out
    monkeypatch.setattr(catalogue, "PUBLISHED", (published("short"),))
    (tmp_path / "vit.pth").unlink()
    assert main(["weights", entry.name, f"--download={tmp_path}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dynadapt: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sizes_are_those_of_the_backbone():
    small = dict(dim=32, depth=3, heads=2, image_size=16)
    parameters, flops = weights_table.sizes("vit_mini", tuple(small.items()), 0)
    network = backbones.create("vit_mini", rngs=nnx.Rngs(0), **small)
    assert parameters == tree.size(nnx.state(network))
    n, d = 17, 32
    block = 2 * n * d * (3 * d + d + 4 * d + 4 * d) + 2 * 2 * n * n * d
    assert flops == 3 * block + 2 * 16 * (4 * 4 * 3) * d
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    assert flops == matmul_flops(lambda x: network(x, Context()).maps, images)


@pytest.mark.parametrize(
    "name, parameters, multiply_adds",
    # Counts as papers print them, G; classifiers are not in ours.
    [("deit_ti16_in1k", 5.5e6, 1.25), ("swin_t_in1k", 27.5e6, 4.5), ("vit_b16_mae", 85.8e6, 17.5)],
)
def test_figures_as_published(name, parameters, multiply_adds):
    row = weights_table.row(catalogue.find(name))
    assert row["parameters"] == pytest.approx(parameters, rel=0.005)
    assert row["gflops"] == pytest.approx(2 * multiply_adds, rel=0.02)


@pytest.mark.slow
def test_statistics_are_no_parameters():
    fields = (("depth", 1), ("dim", 192), ("heads", 3))
    parameters, _ = weights_table.sizes("point_mae_s", fields, 128)
    network = backbones.create("point_mae_s", rngs=nnx.Rngs(0), **dict(fields))
    statistics = nnx.split(network, nnx.BatchStat, ...)[1]
    assert parameters == tree.size(nnx.state(network)) - tree.size(statistics)
    assert tree.size(statistics) == 2 * (128 + 512)


def test_differences_tell_what_is_known():
    found = {d["source"]: d for d in weights_table.differences()}
    assert found["timm: SAM"]["epsilon"] == 1e-5 and found["Meta: SAM"]["epsilon"] == 1e-6
    assert found["Hugging Face: ViT, ViTMAE"]["epsilon"] == 1e-12
    assert found["Meta: DINOv2"]["resample"] == "offset"
    assert found["Meta: DINOv2 with registers"]["resample"] == "antialias"
    assert found["timm: Swin"]["pad"] == "shift_then_pad"
    small = {s: d["small"] for s, d in found.items() if "Swin" in s}
    assert small["Microsoft: Swin for detection"] == small["OpenMMLab: Swin"] == "never"
    assert small["Hugging Face: Swin"] == "run" and small["Microsoft: Swin"] == "built"


@pytest.mark.slow
def test_the_page_is_the_commands():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    own = weights_table.page(weights_table.rows())
    assert page.partition("\n## Speed\n")[0] == own.rstrip("\n") + "\n"


def test_the_page_has_all_rows_and_speeds():
    rows = weights_table.rows((catalogue.find("deit_ti16_in1k"),))
    measured = dict(machine="M", batch=2, rounds=3, limit=40, images_per_second={"vit_ti16": 5.5})
    page = weights_table.page(rows, measured)
    assert "| `deit_ti16_in1k` | `vit_ti16` | 5,524,416 | 224 x 224 | imagenet |" in page
    assert "| `vit_ti16` | 5.5 |" in page and "on M." in page
    assert "TABLE" not in page and "RULES" not in page


@pytest.mark.slow
def test_measured_in_turn():
    from dynadapt.bench import published as speeds

    fields = dict(dim=16, depth=1, heads=2, image_size=8)
    one = dict(backbone="vit_mini", fields=fields, gflops=0.1, input="8 x 8", parameters=1)
    cloud = dict(dim=16, depth=1, heads=2, groups=4, group_size=4)
    two = dict(one, backbone="point_mae_s", fields=cloud, input="32 points")
    large = dict(one, backbone="vit_g14", fields={}, gflops=41.0)
    same = dict(one, fields=fields | dict(resample="cubic"))
    found = speeds.run([one, two, large, same], batch=2, rounds=2, limit=40)
    names = [speeds.label(row) for row in (one, two, same)]
    assert list(found["images_per_second"]) == names
    assert found["images_per_second"][names[0]] == found["images_per_second"][names[2]]
    assert all(v > 0 for v in found["images_per_second"].values()) and found["machine"]
