"""What the frozen prefix answers, kept: the same run, bit for bit, for less."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dynadapt import config, inputs, model, sharding, step, tasks, train
from dynadapt.commands import config_file
from dynadapt.data import loader, numbered, transforms
from dynadapt.errors import ConfigError
from dynadapt.main import main
from dynadapt.runs import prefix
from tests import configs_tiny, stepping

pytestmark = pytest.mark.usefixtures("fast_compiling")

TINY = str(Path(__file__).parents[1] / "configs_tiny.py")
KEPT = ("--config.adapter.layers=1", "--config.input.keep_prefix=True", "--config.save_every=5")


def tiny(**changes):
    c = configs_tiny.get_config()
    c.adapter.layers, c.input.keep_prefix = 1, True
    c.update(changes)
    return config.resolve(c)


def start(work, *more):
    return main(["train", f"--config={TINY}", f"--workdir={work}", *more])


def file_of(work):
    return work / "adapter" / "adapter.safetensors"


def parts(c):
    """The opened split, the task and the model of a config."""
    split = inputs.open_split(c, "train")
    task = tasks.from_config(c.task, split.source.info)
    return split, task, model.build(c, task, split.spec)


def test_the_photos_recipe_can_be_served(tmp_path):
    for name in ("train/hat/1.png", "train/shoe/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    c = config_file.load(f"photos:path={tmp_path},method=lora", [])
    with pytest.raises(ConfigError, match="run `dynadapt weights dinov2_s14 --download=weights`"):
        config.check(c)
    with c.unlocked():
        c.backbone.update(dict(weights="", dim=16, depth=4, heads=2))
    config.check(c)
    split, task, network = parts(config.resolve(c))
    prefix.check(c, split, task, network)
    assert split.spec["image"].shape == (20, 98, 98, 3) and network.backbone.grid == (7, 7)
    assert model.untouched(network, c) == 1
    assert not config_file.load("photos:method=linear", []).input.keep_prefix


def kept(c, folder, data="a"):
    split, _, network = parts(c)
    graph, *leaves = model.split(network, c)
    state = dict(zip(("train", "stats"), leaves[:2], strict=True))
    mesh = sharding.make_mesh(c.mesh)
    with jax.set_mesh(mesh):
        origin = {"weights": "", "data": data}
        return prefix.kept(c, split, graph, state, leaves[2], mesh, folder, origin)


@pytest.mark.slow
def test_a_run_ends_as_without_and_with_the_same_bytes_after_a_stop(tmp_path, monkeypatch):
    assert start(tmp_path / "plain", KEPT[0], KEPT[2]) == 0
    assert start(tmp_path / "kept", *KEPT) == 0
    # Two programs, which a compiler may fuse otherwise: last bits differ.
    plain, own = (load_file(file_of(tmp_path / name)) for name in ("plain", "kept"))
    assert plain.keys() == own.keys()
    for path, value in plain.items():
        np.testing.assert_allclose(own[path], value, rtol=0, atol=1e-6, err_msg=path)
    plain, own = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("plain", "kept"))
    assert own["top1"] == plain["top1"]
    whole = file_of(tmp_path / "kept").read_bytes()
    # In a file, and broken off in the seventh step.
    monkeypatch.setattr(prefix, "IN_MEMORY", 0)

    def stop(state, count):
        if count == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "make_step", stepping.watched(train.make_step, stop))
        assert start(tmp_path / "file", *KEPT) != 0
    assert (tmp_path / "file" / prefix.TOKENS).is_file()
    with monkeypatch.context() as patch:  # the file that is there serves
        patch.setattr(prefix, "make_look", only_shapes(prefix.make_look))
        assert start(tmp_path / "file", *KEPT) == 0
    assert file_of(tmp_path / "file").read_bytes() == whole
    assert not (tmp_path / "file" / prefix.TOKENS).exists()


def only_shapes(make):
    """`make_look` whose function may be asked for shapes once, and then for nothing."""

    def made(*args):
        look, asked = make(*args), []

        def once(*given):
            assert not asked, "the prefix is computed again"
            asked.append(True)
            return look(*given)

        return once

    return made


def test_a_file_is_trusted_only_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix, "IN_MEMORY", 0)
    c = tiny()
    first = np.array(kept(c, tmp_path).source._tokens)
    monkeypatch.setattr(prefix, "make_look", only_shapes(prefix.make_look))
    assert np.array_equal(kept(c, tmp_path).source._tokens, first)
    for changed in (dict(c=tiny(seed=1)), dict(data="b")):
        with pytest.raises(AssertionError, match="computed again"):
            kept(**{"c": c, "folder": tmp_path, **changed})
    content = bytearray((tmp_path / prefix.TOKENS).read_bytes())
    content[100] ^= 1
    (tmp_path / prefix.TOKENS).write_bytes(content)
    with pytest.raises(AssertionError, match="computed again"):
        kept(c, tmp_path)


def test_a_batch_has_tokens_in_the_place_of_images(tmp_path):
    c = tiny()
    split = kept(c, tmp_path)
    batch = next(inputs.train_batches(c, split))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in split.spec.items()
    }
    assert batch["leading"].shape == (16, 1, 16)
    assert batch["patches"].shape == (16, 2, 2, 16)
    plain, task, network = parts(c)
    same = next(inputs.train_batches(c, plain))
    assert np.array_equal(batch["index"], same["index"])
    assert np.array_equal(batch["label"], same["label"])

    @jax.jit
    def answers(batch):
        prepared = inputs.prepared(task, batch, c, None, True)
        return model.outputs(network, prepared, step.Context(), task, c, {})

    np.testing.assert_allclose(answers(batch), answers(same), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input.train": "resize(8)|flip"}, "draws at random"),
        ({"optim.drop_path": 0.1}, "drops branches below"),
        ({"task.mixup": 0.2}, "the task mixes or changes images"),
        ({"adapter.layers": 0}, "no block is frozen; say adapter.layers=k"),
        ({"backbone.levels": (0, 1)}, "answers a map of block 0, which is frozen"),
        ({"input.on_error": "skip"}, "on_error=skip may leave images out"),
    ],
)
def test_what_changes_from_step_to_step_is_not_kept(changes, message):
    c = tiny()
    for name, value in changes.items():
        section, field = name.split(".")
        c[section][field] = value
    split, task, network = parts(c)
    with pytest.raises(ConfigError, match=f"input.keep_prefix can't be served: .*{message}"):
        prefix.check(c, split, task, network)


def test_what_can_be_kept_passes():
    c = tiny()
    prefix.check(c, *parts(c))


def cost(c, layers):
    """FLOPs of a training step's matrix products on shapes, of kept tokens where layers are."""
    c.adapter.layers = layers
    info = numbered(10, 32)
    task = tasks.from_config(c.task, info)
    spec = loader.spec(info, transforms.pipeline(c.input.train), c.input.batch_size)
    graph, trained, stats, frozen = model.split(model.abstract(c, task, spec), c)
    if layers:
        shapes = jax.eval_shape(prefix.make_look(graph, c), trained, stats, frozen, spec)
        info = prefix.info_of(info, shapes)
        spec = loader.spec(info, transforms.pipeline(""), c.input.batch_size)
    return stepping.flops(c, task, (graph, trained, stats, frozen), spec)


def test_a_step_of_the_last_quarter_costs_a_quarter():
    c = config.default(backbone="vit_b16", data_set="digits")
    c.input.batch_size = 4
    c = config.resolve(c)
    assert cost(c, 3) <= 0.30 * cost(c, 0)


def test_tokens_enter_where_they_left():
    c = tiny()
    c.backbone.registers = 2
    _, _, network = parts(c)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    ctx = step.Context(frozen=1)
    tokens, told = network.backbone.below(images, ctx)
    found = network.backbone(tokens, ctx.replace(grid=told.grid))
    wanted = network.backbone(images, ctx)
    np.testing.assert_array_equal(found.maps[-1], wanted.maps[-1])
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
