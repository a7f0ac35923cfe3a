import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, backbones, files, tree, weights
from dynadapt.errors import CheckpointError
from dynadapt.layers.resample import resample

SMALL = dict(dim=16, heads=2, depth=2, image_size=16)


def make(**changes):
    """A small ViT of zeros."""
    given = SMALL | changes
    network = backbones.abstract("vit_mini", **given)
    graph, shapes = nnx.split(network)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def values(network, seed=0):
    rng = np.random.default_rng(seed)
    return {
        k: rng.normal(size=v.shape).astype(np.float32)
        for k, v in tree.leaves(nnx.state(network)).items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_load_copies_every_value_and_keeps_the_dtype(path, stored):
    network = make(registers=1, layer_scale=1.0)
    given = {k: v.astype(stored) for k, v in values(network).items()}
    files.write_tensors(path, given)
    weights.load(network, path)
    found = tree.leaves(nnx.state(network))
    assert found.keys() == given.keys()
    for name, value in given.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_array_equal(found[name], value.astype(np.float32))


def test_load_keeps_half_precision_parameters(path):
    network = make()
    graph, state = nnx.split(network)
    network = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    files.write_tensors(path, values(network))
    weights.load(network, path)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(network))} == {jnp.dtype(jnp.bfloat16)}


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(path):
    network = make()
    given = values(network)
    del given["norm/bias"]
    given["foot/kernel"] = np.zeros((16, 10), np.float32)
    given["blocks/1/mlp/fc1/kernel"] = given["blocks/1/mlp/fc1/kernel"].T
    files.write_tensors(path, given)
    with pytest.raises(CheckpointError, match="do not fit the backbone") as caught:
        weights.load(network, path)
    assert str(caught.value).splitlines()[1:] == [
        "- norm/bias (16,)",
        "+ foot/kernel (16, 10)",
        "- blocks/1/mlp/fc1/kernel (16, 64)",
        "+ blocks/1/mlp/fc1/kernel (64, 16)",
    ]
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(nnx.state(network)))


def test_a_long_list_is_cut(path):
    files.write_tensors(path, {"x/kernel": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        weights.load(make(), path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22 and lines[-1] == "…"


def test_an_adapted_backbone_is_not_what_a_file_holds(path):
    network = make()
    files.write_tensors(path, values(network))
    adapters.adapt(network, "adaptformer", rngs=nnx.Rngs(0), rank=2)
    with pytest.raises(CheckpointError, match=r"- blocks/0/mlp/adapter/down/bias \(2,\)"):
        weights.load(network, path)


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_truncated_file(path, cut):
    network = make()
    files.write_tensors(path, values(network))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match=r"cannot read weights '.*weights\.safetensors'"):
        weights.load(network, path)


@pytest.mark.parametrize("token", [True, False])
def test_position_embeddings_are_resampled_to_the_size(path, token):
    given = values(make(image_size=32, class_token=token))
    files.write_tensors(path, given)
    network = make(image_size=16, class_token=token)
    weights.load(network, path)
    found, first = np.asarray(network.position[...]), int(token)
    old = given["position"]
    wanted = resample(jnp.asarray(old[:, first:]), (8, 8), (4, 4), "antialias")
    np.testing.assert_array_equal(found[:, :first], old[:, :first])
    np.testing.assert_allclose(found[:, first:], wanted, rtol=1e-6)
    assert not np.allclose(found[:, first:], old[:, first : first + 16])


@pytest.mark.parametrize(
    "shape", [(1, 18, 16), (17, 16), (16,), (1, 1, 16), (1, 0, 16), (1, 65, 8)]
)
def test_positions_that_are_no_grid_do_not_fit(path, shape):
    network = make()
    given = values(network) | {"position": np.zeros(shape, np.float32)}
    files.write_tensors(path, given)
    with pytest.raises(CheckpointError, match=r"- position \(1, 17, 16\)\n\+ position"):
        weights.load(network, path)


def test_locate_takes_a_path_or_a_shipped_name(path, monkeypatch):
    files.write_tensors(path, {"x": np.zeros(1, np.float32)})
    assert weights.locate(str(path)) == path
    monkeypatch.setattr(weights, "ASSETS", path.parent)
    assert weights.shipped() == ["weights"]
    assert weights.locate("weights") == path
    with pytest.raises(CheckpointError, match="no weights at 'wieghts'; did you mean 'weights'"):
        weights.locate("wieghts")


def test_locate_names_the_nearest_file(path):
    files.write_tensors(path, {"x": np.zeros(1, np.float32)})
    wrong = str(path).replace("weights", "weihgts")
    with pytest.raises(CheckpointError, match=r"did you mean 'weights\.safetensors'"):
        weights.locate(wrong)
    with pytest.raises(CheckpointError, match="no weights at"):
        weights.locate(str(path.parent / "none" / "x.safetensors"))


def test_locate_names_no_unrelated_file(path):
    for name in ("notes.txt", "run.log", "photos.safetensors"):
        (path.parent / name).touch()
    with pytest.raises(CheckpointError) as caught:
        weights.locate(str(path.parent / "vit_large.npz"))
    text = str(caught.value)
    assert text.endswith("vit_large.npz'; with the package come 'point_mini', 'vit_mini'"), text


def test_locate_says_how_published_weights_are_had(path):
    folder = path.parent
    (folder / "dinov2_vitb14_pretrain.pth").touch()  # near, but another
    with pytest.raises(CheckpointError) as caught:
        weights.locate(str(folder / "dinov2_vits14_pretrain.pth"))
    assert str(caught.value).endswith(f"; run `dynadapt weights dinov2_s14 --download={folder}`")


def test_absolute_is_found_from_any_folder(path, monkeypatch):
    files.write_tensors(path, {"x": np.zeros(1, np.float32)})
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for name in ("weights.safetensors", "./sub/../weights.safetensors", "~/weights.safetensors"):
        assert weights.absolute(name) == str(path)
    assert weights.locate("~/weights.safetensors") == path
    assert weights.absolute("vit_mini") == "vit_mini" and weights.absolute("") == ""


@pytest.mark.parametrize("name", ["vit_mini", "point_mini"])
def test_shipped_weights_are_small_whole_and_told_of(name):
    file = weights.locate(name)
    assert file.stat().st_size < 3 << 20
    assert files.sha256(file) in file.with_suffix(".md").read_text(encoding="utf-8")
    network = weights.from_checkpoint(file)
    count = tree.size(nnx.state(network, nnx.Param))
    assert f"{count:,} parameters" in file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(np.isfinite(v).all() for v in tree.leaves(nnx.state(network)).values())
