import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from dynadapt import backbones, config, files, inputs, model, sharding, tasks, tree
from dynadapt.commands.config_file import read_config
from dynadapt.context import Context
from dynadapt.data import Info, frames, loader, outlines
from dynadapt.data.fields import Field
from dynadapt.data.objects import Object, of_map
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads.solo import Cells
from dynadapt.layers import SameKey
from dynadapt.layers.resample import resize
from dynadapt.main import main
from dynadapt.targets import solo
from dynadapt.tasks.instances import MASKS, Task, _whole
from tests import dense_heads, devices, tiny_instances

STEPS = 200  # of the slow test
pytestmark = pytest.mark.usefixtures("fast_compiling")

CLASSES = ("cell", "cyst", "hole")
SIDE, MOST, B, GRIDS = 32, 4, 3, (6, 4)
HOW = dict(
    channels=8, depth=1, strides=(2.0, 4.0), grids=GRIDS, ranges=((0.0, 12.0), (8.0, 40.0)), best=9
)


def info(classes=CLASSES, ids=()):
    fields = {
        "image": Field("pixels", size=(SIDE, SIDE)),
        "boxes": Field("boxes", most=MOST),
        "box_classes": Field("rows", fill=-1, classes=classes, most=MOST, ids=ids),
        "instances": Field("masks", size=(SIDE, SIDE)),
        "box_ids": Field("rows", most=MOST),
    }
    return Info("test", fields, {}, "")


def task(**settings):
    return Task(info(), **HOW | settings)


def scene(seed, count):
    """A map of rectangles by number, of which each is seen, and their classes."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros((SIDE, SIDE), np.int32)
    while len(np.unique(numbers)) != count + 1:
        numbers[:] = 0
        for n in range(count):
            top, left, high, wide = (*rng.integers(0, SIDE - 12, 2), *rng.integers(6, 12, 2))
            numbers[top : top + high, left : left + wide] = n + 1
    return numbers, rng.integers(len(CLASSES), size=count)


def batch_of(*counts, mask=None):
    """A batch of images with so many objects."""
    found = {
        "instances": np.zeros((B, SIDE, SIDE), np.int32),
        "boxes": np.zeros((B, MOST, 4), np.float32),
        "box_classes": np.full((B, MOST), -1, np.int32),
        **{k: np.zeros((B, MOST), np.int32) for k in ("box_ids", "boxes_mask")},
        "mask": np.ones(B, np.float32) if mask is None else np.asarray(mask, np.float32),
    }
    for i, count in enumerate(counts):
        numbers, classes = scene(10 * i + count, count)
        found["instances"][i] = numbers
        for n, thing in enumerate(of_map(numbers, lambda number, c=classes: int(c[number - 1]))):
            found["boxes"][i, n], found["box_ids"][i, n] = thing.box, thing.number
            found["box_classes"][i, n], found["boxes_mask"][i, n] = thing.category, 1
    return found


def like(dim, size, stride):
    """Shapes of a plain backbone's features, whose maps know their stride."""
    given = dense_heads.vit(dim, size, 1)
    return backbones.Features(given.maps, given.tokens, strides=(stride,))


def outputs(seed=0, d=3, b=B):
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Cells(
        tuple(drawn(b, g, g, len(CLASSES)) for g in GRIDS),
        tuple(drawn(b, 8, 8, d) for _ in GRIDS),
        tuple(drawn(d, g * g) for g in GRIDS),
        tuple(drawn(g * g) for g in GRIDS),
    )


def focal_of(logits, classes):
    """The focal loss by its equation."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    wanted = classes[:, None] == np.arange(p.shape[1])[None]
    sure = np.where(wanted, p, 1 - p)
    return (-np.where(wanted, 0.25, 0.75) * (1 - sure) ** 2 * np.log(sure)).sum()


@pytest.fixture(scope="module")
def loss():
    """The mean loss and its logs, and its slopes; compiled once."""
    made = task()

    def mean(given, batch):
        total, weight, logs = made.loss(given, batch)
        return total / jnp.maximum(weight, 1), (total, weight, logs)

    return jax.jit(jax.value_and_grad(mean, has_aux=True))


def test_the_loss_is_that_of_all_masks_and_classes(loss):
    """By hand, of the masks of all cells and of targets that were made image by image."""
    batch, given = batch_of(3, 0, 2, mask=(1, 1, 1)), outputs()
    (found, (_, weight, logs)), _ = loss(given, batch)
    owners = jax.jit(
        lambda masks, *given: [
            solo.owners(solo.objects(masks, *given), g, scales, (SIDE, SIDE))
            for g, scales in zip(GRIDS, HOW["ranges"], strict=True)
        ]
    )
    logits, truths, focal, count = [], [], 0.0, 0
    for i in range(B):
        masks = batch["instances"][i][None] == batch["box_ids"][i][:, None, None]
        small = masks.reshape(MOST, 16, 2, 16, 2).sum((2, 4)) >= 2
        found_owners = owners(masks, batch["boxes"][i], batch["boxes_mask"][i])
        for n, (g, owner) in enumerate(zip(GRIDS, found_owners, strict=True)):
            owner = np.asarray(owner).ravel()
            classes = np.where(owner >= 0, batch["box_classes"][i][owner], -1)
            focal += focal_of(given.classes[n][i].reshape(g * g, -1), classes)
            count += (owner >= 0).sum()
            every = given.features[n][i] @ given.kernels[n] + given.biases[n][None, None]
            doubled = np.asarray(resize(every[None], (16, 16)))[0]
            logits += [doubled[..., cell] for cell in np.flatnonzero(owner >= 0)]
            truths += [small[n] for n in owner[owner >= 0]]
    dice = np.asarray(jax.jit(solo.dice)(np.stack(logits), np.stack(truths)))
    assert float(logs["positives"]) == count == len(dice) > 5 and float(logs["left_out"]) == 0
    assert float(logs["masks"]) == pytest.approx(np.mean(dice), rel=1e-4)
    assert float(logs["classes"]) == pytest.approx(focal / (count + 1), rel=1e-4)
    assert float(found) == pytest.approx(MASKS * np.mean(dice) + focal / (count + 1), rel=1e-4)
    assert float(weight) == B and task().whole_batch


@pytest.mark.parametrize(
    ("counts", "mask"),
    [
        pytest.param((0, 0, 0), (1, 1, 1), id="no objects"),
        pytest.param((2, 1, 3), (0, 0, 0), id="only padding"),
        pytest.param((MOST,) * B, (1, 1, 1), id="most objects"),
        pytest.param((1, 0, 2), (1, 1, 0), id="some padding"),
    ],
)
def test_the_loss_is_finite(loss, counts, mask):
    (found, (total, weight, logs)), slopes = loss(outputs(), batch_of(*counts, mask=mask))
    assert np.isfinite([float(x) for x in (found, *logs.values())]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert float(weight) == sum(mask) and (float(total) > 0) == any(mask)
    drawn = sum(c for c, m in zip(counts, mask, strict=True) if m)
    assert (float(logs["positives"]) > 0) == (drawn > 0)
    assert bool(np.any(slopes.kernels[0])) == (drawn > 0)


def test_coinciding_objects_count_once(loss):
    batch, twice = batch_of(1, 0, 1), batch_of(1, 0, 1)
    for name in ("boxes", "box_classes", "box_ids", "boxes_mask"):
        twice[name][:, 1] = batch[name][:, 0]
    (one, (_, _, logs)), _ = loss(outputs(), batch)
    (other, (_, _, same)), slopes = loss(outputs(), twice)
    assert float(other) == pytest.approx(float(one)) and logs == same
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_the_order_of_a_batch_does_not_matter(loss):
    order = np.array([2, 0, 1])
    batch, given = batch_of(3, 0, 2, mask=(1, 0, 1)), outputs()
    (one, _), slopes = loss(given, batch)
    turned = Cells(*(tuple(x[order] for x in part) for part in given[:2]), *given[2:])
    (other, _), moved = loss(turned, {k: v[order] for k, v in batch.items()})
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    np.testing.assert_allclose(moved.features[0], slopes.features[0][order], atol=1e-6)
    np.testing.assert_allclose(moved.kernels[0], slopes.kernels[0], atol=1e-6)


def test_cells_that_find_no_place_are_logged():
    batch = batch_of(3, 4, 2)
    *_, logs = jax.jit(task(positives=1).loss)(outputs(), batch)
    assert 0 < float(logs["left_out"]) < float(logs["positives"])


def perfect(numbers, classes, best=9):
    """The answer of whoever knows the map `h w`."""
    count = len(classes)
    masks = np.zeros((best, *numbers.shape), np.float16)
    masks[:count] = numbers[None] == np.arange(1, count + 1)[:, None, None]
    scores = np.zeros(best, np.float32)
    scores[:count] = np.linspace(0.9, 0.5, count)
    classes = np.pad(classes, (0, best - count), constant_values=-1)
    return {"masks": masks, "scores": scores, "classes": classes}


def example_of(numbers, classes, frame=None, size=None, image=7):
    objects = of_map(numbers, lambda number: int(classes[number - 1]))
    stored = {"objects": objects, "image_id": image, "instances": numbers}
    size = size or numbers.shape
    about = {"name": "a.png", "size": size, "frame": frame or frames.identity(size)}
    return {"stored": stored, **about}


def pixels(code):
    """The mask `h w` of COCO's run lengths."""
    h, w = code["size"]
    runs = outlines._runs(code["counts"])
    return np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(w, h).T


def rows_of(made, pairs):
    """Rows of images, of which each is an answer and an example."""
    room = jax.jit(made.rows)(outputs(), batch_of())
    each = [made.judge(*pair) for pair in pairs]
    assert {k: v.shape[1:] for k, v in room.items() if k != "missed"} == {
        k: v.shape for k, v in each[0].items()
    }
    rows = {k: np.stack([r[k] for r in each]) for k in each[0]}
    return rows | {"missed": np.array([0, *[2] * (len(pairs) - 1)], np.int32)}


def test_perfect_answers_have_a_precision_of_one():
    given = [scene(seed, 3) for seed in range(4)]
    made = task()
    found = made.value(rows_of(made, [(perfect(*x), example_of(*x)) for x in given]))
    assert found["ap"] == found["ap50"] == found["ar_100"] == 100.0
    assert found["examples"] == 4 and found["missed"] == 6
    wrong = [(perfect(n, (c + 1) % 3), example_of(n, c)) for n, c in given]
    assert made.value(rows_of(made, wrong))["ap"] < 40
    moved = [(perfect(np.roll(n, 9, 1), c), example_of(n, c)) for n, c in given]
    assert made.value(rows_of(made, moved))["ap50"] < 40


def test_a_crowd_and_its_run_lengths_are_judged():
    numbers, classes = scene(1, 3)
    example = example_of(numbers, classes)
    mask = np.asarray(numbers == 2)
    from pycocotools import mask as masks

    code = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    crowd = Object(int(classes[1]), (0.0, 0.0, 9.0, 9.0), float(mask.sum()), True, False, code)
    objects = [o for o in example["stored"]["objects"] if o.number != 2]
    example["stored"]["objects"] = [*objects, crowd]
    made = task()
    found = made.value(rows_of(made, [(perfect(numbers, classes), example)]))
    assert (
        found["ap"] == 100.0
        and made.judge(perfect(numbers, classes), example)["truths"][0].sum() == 2
    )


def test_masks_come_back_to_the_pixels_of_the_stored_image():
    """An image of 64 x 80, halved and padded below; masks have half of that again."""
    size, (numbers, classes) = (64, 80), scene(2, 3)
    frame = frames.Frame(np.array([[2.0, 0, 0], [0, 2.0, 0]]), (48, 40))
    big = np.pad(numbers.repeat(2, 0).repeat(2, 1), ((0, 0), (8, 8)))
    padded = np.pad(big, ((0, 32), (0, 0)))
    assert big.shape == size and padded.shape == (96, 80)
    made, answer = task(), perfect(np.zeros((24, 20)), classes)
    for n in range(3):
        answer["masks"][n] = (padded == n + 1).reshape(24, 4, 20, 4).mean((1, 3))
    found = made.restored(answer, example_of(big, classes, frame, size))
    for n, (code, box) in enumerate(zip(found["masks"], found["boxes"], strict=True)):
        mask, wanted = pixels(code), big == n + 1
        assert mask.shape == size
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.8
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("turned", [False, True])
def test_part_of_a_mask_is_restored_as_all_of_it(turned):
    rng = np.random.default_rng(3)
    angle = 0.3 if turned else 0.0
    turn = 2.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    frame = frames.Frame(np.concatenate([turn, [[3.0], [-2.0]]], 1), (16, 24))
    size, field, some = (37, 61), Field("values"), 0
    small = frames.compose(frame, frames.window(0, 0, 16, 24, (8, 12)))
    for _ in range(20):
        mask = np.zeros((8, 12), np.float32)
        top, left = rng.integers(0, 7), rng.integers(0, 11)
        mask[top : top + 3, left : left + 3] = rng.random(
            mask[top : top + 3, left : left + 3].shape
        )
        whole, _ = _whole(mask, frame, size)
        wanted = frames.unwarp(mask, field, small, size, smooth=True) > 0.5
        np.testing.assert_array_equal(whole, wanted)
        some += wanted.any()
    assert some > 5


def test_records_and_results():
    numbers, classes = scene(2, 2)
    made = Task(info(ids=(3, 9, 20)), **HOW)
    values, content = made.record(perfect(numbers, classes), example_of(numbers, classes))
    results = values.pop("results")
    assert content == {} and values["file"] == "a.png" and values["objects"] == 2
    assert values["best"] == "; ".join(
        f"{CLASSES[c]} {s:.4f}" for c, s in zip(classes, (0.9, 0.5), strict=True)
    )
    assert [r["category_id"] for r in results] == [(3, 9, 20)[c] for c in classes]
    assert {r["image_id"] for r in results} == {7}
    assert all(isinstance(r["segmentation"]["counts"], str) for r in results)
    new = {"name": "b.png", "size": (SIDE, SIDE), "frame": frames.identity((SIDE, SIDE))}
    values, _ = made.record(perfect(numbers, classes), new)
    assert values["results"][0]["image_id"] == "b.png"


def test_pictures_show_truth_and_answer():
    numbers, classes = scene(2, 2)
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    batch = {k: v[0] for k, v in batch_of(2).items()}
    example = example_of(numbers, classes)
    alone = task().draw(image, perfect(numbers, classes), example)
    both = task().draw(image, perfect(numbers, classes), {**example, **batch})
    assert alone.dtype == np.uint8 and both.shape[1] > 1.9 * alone.shape[1]
    none = {**perfect(numbers, classes), "scores": np.zeros(9, np.float32)}
    assert (task().draw(image, none, example) != alone).any()


def test_the_head_has_vitdets_levels():
    made = Task(info(tuple(map(str, range(80)))))
    head = nnx.eval_shape(lambda: made.head(like(768, (64, 64), 16), rngs=SameKey()))
    assert head.neck.strides == (4, 8, 16, 32, 64)
    assert sum(x.size for x in tree.leaves(nnx.state(head)).values()) == 15_008_816
    with pytest.raises(ConfigError, match="start with one of 3.5, 7, 14, 28"):
        made.head(like(768, (64, 64), 14), rngs=SameKey())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(grids=(6,)), "an entry a level each, and have 2, 1 and 2"),
        (dict(grids=(6, 0)), r"grids must be a whole number, in \[1, 1000\], not 0"),
        (dict(ranges=((0.0, 12.0), (8.0,))), r"such as \(1, 96\), not \(8.0,\)"),
        (dict(ranges=((0.0, 12.0), (9.0, 8.0))), r"such as \(1, 96\), not \(9.0, 8.0\)"),
        (dict(depth=0), r"depth must be a whole number, in \[1, 64\], not 0"),
        (dict(positives=2.5), "positives must be a whole number"),
        (dict(strides=(2.0, -4.0)), "each of strides must be above 0, not -4.0"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        task(**settings)


def test_bad_data():
    with pytest.raises(ConfigError, match="instances need classes"):
        Task(info(()), **HOW)
    with pytest.raises(UnknownName, match="vitdet"):
        task(neck="vitdt").head(like(8, (4, 4), 4), rngs=SameKey())


def apart():
    """Losses, logs and slopes of a batch on one device, and of the same one on eight."""
    given, made = outputs(b=8), task(positives=2)
    parts = [batch_of(*counts) for counts in ((3, 0, 2), (1, 4, 0), (2, 2, 0))]
    batch = {k: np.concatenate([p[k] for p in parts])[:8] for k in parts[0]}
    batch["mask"][5] = 0

    def mean(given, batch):
        total, weight, logs = made.loss(given, batch)
        return total / weight, logs

    run, found = jax.jit(jax.value_and_grad(mean, has_aux=True)), []
    for devices_used in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(devices=devices_used)
        whole = sharding.put_whole(given[2:], sharding.replicated(given[2:], mesh))
        with jax.set_mesh(mesh):
            cut, placed = inputs.place((given[:2], batch), mesh)
            (loss, logs), slopes = run(Cells(*cut, *whole), placed)
        kernels, features = (
            np.asarray(x[0]).ravel().tolist() for x in (slopes.kernels, slopes.features)
        )
        values = [float(loss), *(float(logs[k]) for k in sorted(logs))]
        found.append({"values": values, "kernels": kernels, "features": features})
    return [len(jax.devices()), *found]


@pytest.mark.slow
def test_counts_are_those_of_the_batch_on_eight_devices():
    code = "import json; from tests.tasks import test_instances as t; print(json.dumps(t.apart()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=devices.eight(), cwd=devices.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    count, one, eight = json.loads(done.stdout)
    assert count == 8 and one["values"][1] > 0
    for name, wanted in one.items():
        np.testing.assert_allclose(eight[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_leaves_results_and_answers_new_images(tmp_path):
    work = tmp_path / "run"
    assert main(["train", f"--config={tiny_instances.__file__}", f"--workdir={work}"]) == 0
    result = files.read_json(work / "result.json")
    assert result["headline"] == "ap" and result["examples"] == 10
    written = json.loads((work / "predictions" / "instances.json").read_text())
    assert written and {r["image_id"] for r in written} <= set(range(10))
    assert (work / "predictions" / "pictures.png").is_file()
    image = Image.fromarray(np.full((50, 90, 3), 120, np.uint8))
    (tmp_path / "new").mkdir()
    image.save(tmp_path / "new" / "a.png")
    out = tmp_path / "out"
    given = [f"--workdir={work}", f"--images={tmp_path / 'new'}", f"--out={out}", "--pictures"]
    assert main(["predict", *given]) == 0
    answers = json.loads((out / "instances.json").read_text())
    assert all(r["segmentation"]["size"] == [50, 90] for r in answers)
    assert (out / "pictures" / "a.png").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
def test_eight_scenes_are_learned_by_heart():
    """By the head alone, on what the shipped backbone makes of them."""
    c = read_config(f"{devices.ROOT}/configs/instances.py", None)
    c.task.update(dict(channels=32, depth=1, strides=(2.0, 4.0), grids=(12, 8), best=20))
    c.task.ranges = ((1.0, 20.0), (14.0, 64.0))
    c = config.resolve(c)
    split = inputs.open_split(c, "train")
    made = tasks.from_config(c.task, split.source.info)
    given = split.source, split.transform
    rows = [loader.example(*given, i, np.random.default_rng(0), made.stored) for i in range(8)]
    batch = {k: jnp.asarray(np.stack([r[0][k] for r in rows])) for k in rows[0][0]}
    ready = inputs.normalised(batch, c) | {"mask": jnp.ones(8)}
    backbone = model.loaded_backbone(c)
    features = jax.jit(lambda x: backbone(x, Context()))(ready["image"])
    graph, params = nnx.split(made.head(features, rngs=nnx.Rngs(0)))
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    @jax.jit
    def step(params, opt):
        def mean(params):
            outputs = nnx.merge(graph, params)(features, Context(train=True))
            total, weight, _ = made.loss(outputs, ready)
            return total / weight

        updates, opt = tx.update(jax.grad(mean)(params), opt)
        return optax.apply_updates(params, updates), opt

    opt = tx.init(params)
    for _ in range(STEPS):
        params, opt = step(params, opt)
    answers = jax.jit(lambda p: made.answer(nnx.merge(graph, p)(features, Context()), ready))(
        params
    )
    answers = jax.device_get(answers)
    judged = [
        made.judge({k: v[i] for k, v in answers.items()}, {**values, **about})
        for i, (values, about) in enumerate(rows)
    ]
    found = {k: np.stack([j[k] for j in judged]) for k in judged[0]} | {"missed": np.zeros(8)}
    assert made.value(found)["ap50"] >= 90
