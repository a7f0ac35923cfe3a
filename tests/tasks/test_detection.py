import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt import config, files, inputs, model, optim, step, tasks, tree
from dynadapt.data import Info, frames, objects
from dynadapt.data.objects import Object
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads.atss import Outputs
from dynadapt.main import main
from dynadapt.targets import atss, coco
from dynadapt.targets.boxes import anchors
from dynadapt.tasks.detection import Task
from tests import tiny_detector
from tests.anchored import truthful

pytestmark = pytest.mark.usefixtures("fast_compiling")

H, W, MOST = 32, 40, 5
SIZES, STRIDES = [(8, 10), (4, 5), (2, 3)], (4.0, 8.0, 16.0)
LEVELS = anchors(SIZES, STRIDES, 4)
EVERY = np.concatenate(LEVELS)
CLASSES = ("cat", "dog", "cow")
INFO = Info("test", objects.fields(CLASSES, MOST, ids=(3, 7, 11), size=(H, W)), {}, "")
# Images with as many objects as there can be, with some, with none, and with one without area.
BOXES = [
    [[2, 2, 12, 14], [15, 3, 33, 21], [22, 20, 38, 30], [1, 18, 9, 29], [10, 17, 21, 30]],
    [[3, 4, 20, 27], [24, 6, 37, 19]],
    [],
    [[8, 8, 8, 8], [16, 5, 36, 28]],
]


def task(**settings):
    return Task(INFO, **{"scale": 4.0, "best": 12, **settings})


def batch_of(boxes=BOXES, mask=None):
    given = np.zeros((len(boxes), MOST, 4), np.float32)
    classes, there = np.full((len(boxes), MOST), -1, np.int32), np.zeros((len(boxes), MOST))
    for n, rows in enumerate(boxes):
        given[n, : len(rows)] = np.reshape(rows, (-1, 4))
        classes[n, : len(rows)] = np.arange(len(rows)) % 3
        there[n, : len(rows)] = 1
    return {
        "image": np.zeros((len(boxes), H, W, 3), np.float32),
        "boxes": given,
        "box_classes": classes,
        "boxes_mask": there.astype(np.float32),
        "extent": np.tile(np.int32([H, W]), (len(boxes), 1)),
        "mask": np.ones(len(boxes), np.float32) if mask is None else np.float32(mask),
    }


def outputs_of(joined):
    """What the head answers, from logits `b a c`, deltas `b a 4` and centerness `b a`."""
    logits, deltas, centred = joined
    ends = np.cumsum([len(level) for level in LEVELS])[:-1]
    found = []
    for x in (logits, deltas, centred[..., None]):
        parts = jnp.split(jnp.asarray(x), ends, axis=1)
        found.append(tuple(p.reshape(len(p), *s, -1) for p, s in zip(parts, SIZES, strict=True)))
    return Outputs(*found, STRIDES)


def drawn(seed):
    rng = np.random.default_rng(seed)
    shapes = ((len(EVERY), 3), (len(EVERY), 4), (len(EVERY),))
    return [rng.normal(size=(len(BOXES), *s)).astype(np.float32) for s in shapes]


@functools.cache
def lossy():
    made = task()

    def mean(joined, batch):
        total, weight, logs = made.loss(outputs_of(joined), batch)
        return total / jnp.maximum(weight, 1), logs

    return jax.jit(jax.value_and_grad(mean, has_aux=True))


def test_the_loss_is_divided_by_counts_of_the_whole_batch():
    joined, batch = drawn(0), batch_of()
    (found, logs), _ = lossy()(joined, batch)
    valid, parts = np.ones(len(EVERY), bool), []
    for n in range(len(BOXES)):
        boxes, classes, there = (batch[k][n] for k in ("boxes", "box_classes", "boxes_mask"))
        owner = atss.assign(LEVELS, valid, boxes, there > 0)
        given = [jnp.asarray(x[n]) for x in joined], EVERY, valid, owner, boxes
        parts.append(atss.losses(*given, jnp.asarray(classes)))
    sums = {k: sum(float(p[k].sum()) for p in parts) for k in parts[0]}
    assert min(float(p["positive"]) for p in parts) == 1.0  # the image without objects
    wanted = {
        "class": sums["class"] / sums["positive"],
        "box": sums["box"] / sums["central"],
        "centre": sums["centre"] / sums["positive"],
        "positives": sums["positive"],
        "objects": 9.0,
        "unlearned": 1.0,  # what has no area
    }
    assert {k: float(v) for k, v in logs.items()} == pytest.approx(wanted, rel=1e-5)
    assert float(found) == pytest.approx(
        sum(wanted[k] for k in ("class", "box", "centre")), rel=1e-5
    )


@pytest.mark.parametrize("boxes", [BOXES, [[]] * 4, BOXES[:1] * 4, [[[3, 3, 3, 9]]] * 4])
def test_losses_and_slopes_are_finite(boxes):
    (loss, _), slopes = lossy()(drawn(1), batch_of(boxes))
    assert float(loss) > 0
    assert all(np.isfinite(x).all() and np.any(x) for x in slopes[:1])
    learned = any(len(b) for b in boxes) and boxes[0] != [[3, 3, 3, 9]]
    for x in slopes[1:]:
        assert np.isfinite(x).all() and bool(np.any(x)) == learned


def test_padding_has_no_part_in_the_loss():
    joined = drawn(2)
    mask = [1, 1, 0, 1]
    (loss, logs), slopes = lossy()(joined, batch_of(mask=mask))
    less = [x[[0, 1, 3, 3]] for x in joined]  # padding with objects of its own
    (same, others), _ = lossy()(less, batch_of([BOXES[n] for n in (0, 1, 3, 3)], [1, 1, 1, 0]))
    assert float(same) == pytest.approx(float(loss), rel=1e-6)
    assert {k: float(v) for k, v in others.items()} == pytest.approx(
        {k: float(v) for k, v in logs.items()}, rel=1e-6
    )
    assert not any(np.any(x[2]) for x in slopes) and all(np.any(x[3]) for x in slopes)
    (nothing, _), slopes = lossy()(joined, batch_of(mask=[0] * 4))
    assert float(nothing) == 0 and not any(np.any(x) for x in slopes)


def test_the_order_of_a_batch_does_not_matter():
    joined, order = drawn(3), [2, 0, 3, 1]
    turned = [x[order] for x in joined]
    (one, _), slopes = lossy()(joined, batch_of())
    (other, _), turned_slopes = lossy()(turned, batch_of([BOXES[n] for n in order]))
    assert float(other) == pytest.approx(float(one), rel=1e-6)
    for x, y in zip(slopes, turned_slopes, strict=True):
        np.testing.assert_allclose(y, x[np.array(order)], atol=1e-7)


def test_anchors_beside_the_picture_learn_no_background():
    joined, batch = drawn(4), batch_of()
    batch["extent"][:] = [H, 32]  # of a canvas that is wider
    _, slopes = lossy()(joined, batch)
    beside = EVERY[:, 0] / 2 + EVERY[:, 2] / 2 >= 32
    assert not np.any(slopes[0][:, beside]) and np.all(np.any(slopes[0][:, ~beside], axis=(0, 2)))


def perfect(boxes=BOXES):
    """Outputs that know the objects of a batch, and the objects in stored pixels, twice as many."""
    batch, found = batch_of(boxes), []
    for box, kind, there in zip(*(batch[k] for k in ("boxes", "box_classes", "boxes_mask")),
                                strict=True):  # fmt: skip
        owner = np.asarray(atss.assign(LEVELS, np.ones(len(EVERY), bool), box, there > 0))
        found.append(truthful(EVERY, owner, box, kind, 3))
    things = [
        [Object(i % 3, tuple(2.0 * x for x in box), 4.0 * np.prod(np.subtract(box[2:], box[:2])))
         for i, box in enumerate(rows) if box[2] > box[0]]
        for rows in boxes
    ]  # fmt: skip
    joined = [np.stack(x) for x in zip(*found, strict=True)]
    return outputs_of(joined), batch, things


def example_of(n, things):
    size = (2 * H, 2 * W)
    return {
        "name": f"{n}.png",
        "size": size,
        "frame": frames.window(0, 0, *size, (H, W)),
        "stored": {"objects": things[n], "image_id": 10 + n},
    }


@pytest.fixture(scope="module")
def answered():
    """Objects, and rows and answers to outputs that know them, with the task."""
    made = task()
    outputs, batch, things = perfect()
    run = jax.jit(lambda o, b: (made.rows(o, b), made.answer(o, b)))
    return made, things, *jax.device_get(run(outputs, batch))


def judged(made, things, rows, answers):
    rows = {k: v.copy() for k, v in rows.items()}
    for n in range(len(things)):
        one = {k: v[n] for k, v in answers.items()}
        for name, value in made.judge(one, example_of(n, things)).items():
            rows[name][n] = value
    return rows


@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_perfect_answers_have_the_full_precision(answered, metric):
    _, things, rows, answers = answered
    made = task(metric=metric)
    rows = jax.device_get(made.rows(None, batch_of()))
    values = made.value(judged(made, things, rows, answers))
    assert values[made.headline] == pytest.approx(100.0)
    assert values["examples"] == 4 and set(values["classes"]) == set(CLASSES)
    # Half of the objects are not found where half of the images have no answer.
    none = {k: np.where(np.arange(4).reshape(-1, *[1] * (v.ndim - 1)) == 0, v * 0, v)
            for k, v in answers.items()}  # fmt: skip
    none["classes"][0] = -1
    worse = made.value(judged(made, things, rows, none))
    assert worse[made.headline] < 60


def test_answers_come_back_in_the_stored_pixels(answered):
    made, things, _, answers = answered
    one = {k: v[1] for k, v in answers.items()}
    found = made.restored(one, example_of(1, things))
    some = found["classes"] >= 0
    assert some.sum() == 2
    for box, kind in zip(found["boxes"][some], found["classes"][some], strict=True):
        thing = next(t for t in things[1] if t.category == kind)
        np.testing.assert_allclose(box, thing.box, atol=1e-2)
    record, written = made.record(one, example_of(1, things))
    results = record.pop("results")
    assert record["file"] == "1.png" and record["objects"] == 2 and not written
    assert sorted(record["best"].split("; ")) == ["cat 1.0000", "dog 1.0000"]
    assert {(r["image_id"], r["category_id"]) for r in results} == {(11, 3), (11, 7)}
    assert json.loads(json.dumps(results)) == results
    np.testing.assert_allclose(sorted(r["bbox"] for r in results), [[6, 8, 34, 46],
                               [48, 12, 26, 26]], atol=0.02)  # fmt: skip
    new = {k: v for k, v in example_of(1, things).items() if k != "stored"}
    assert {r["image_id"] for r in made.record(one, new)[0]["results"]} == {"1.png"}


def test_answers_beyond_the_picture_are_clipped_to_it(answered):
    """The last of a canvas's pixels are padding."""
    made = answered[0]
    answer = {"boxes": np.float32([[30, 10, 40, 32]]), "scores": np.float32([0.9]),
              "classes": np.int32([0])}  # fmt: skip
    example = {"size": (24, 34), "frame": frames.window(0, 0, H, W, (H, W))}
    assert made.restored(answer, example)["boxes"].tolist() == [[30, 10, 34, 24]]


def test_pictures(answered):
    made, things, _, answers = answered
    batch = batch_of()
    image = np.full((2 * H, 2 * W, 3), 90, np.uint8)
    for n in (0, 2):
        example = example_of(n, things) | {k: batch[k][n] for k in ("boxes", "box_classes",
                                                                    "boxes_mask")}  # fmt: skip
        one = {k: v[n] for k, v in answers.items()}
        both = made.draw(image, one, example)
        alone = made.draw(image, one, example_of(n, things))
        assert both.dtype == np.uint8 and both.shape[2] == 3
        assert both.shape[1] > 1.9 * alone.shape[1]
        coloured = (alone.std(-1) > 20).any()
        assert coloured == bool(things[n])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(depth=0), r"depth must be in \[1, 64\], not 0"),
        (dict(channels=0), r"channels must be in \[1, 16384\]"),
        (dict(scale=0.0), "scale must be above 0, not 0.0"),
        (dict(least=1.0), r"least must be in \[0, 1\), not 1.0"),
        (dict(overlap=1.5), r"overlap must be in \[0, 1\]"),
        (dict(best=0), r"best must be in \[1, 10000\]"),
        (dict(strides=(8, -1)), "each of strides must be above 0, not -1"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ConfigError, match=said):
        task(**settings)


def test_a_metric_that_is_not_there_names_the_nearest():
    with pytest.raises(UnknownName, match="unknown metric 'coc'; did you mean 'coco'"):
        task(metric="coc")


def test_without_classes_there_is_no_detection():
    with pytest.raises(ConfigError, match="detection needs classes; data set 'bare' has none"):
        Task(Info("bare", objects.fields((), MOST), {}, ""))


def test_what_coco_needs_is_said_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "dynadapt\[coco\]"'):
        task()
    task(metric="voc")


@pytest.mark.slow
def test_a_step_in_parts_is_that_of_the_whole_batch():
    """Counts of the whole batch divide the loss, however the backbone sees it."""
    found = []
    for parts in (1, 4):
        c = tiny_detector.get_config()
        c.optim.update(dict(name="sgd", lr=1.0, warmup=0.0, clip_norm=0.0, accumulate=parts))
        c = config.resolve(c)
        split = inputs.open_split(c, "train")
        made = tasks.from_config(c.task, split.source.info)
        graph, *leaves = model.split(model.build(c, made, split.spec), c)
        train, stats, frozen = leaves
        optimizer = optim.make(c.optim, 10, train, model.layers(c))
        state = step.initial_state(train, stats, optimizer, c)
        batch = next(inputs.train_batches(c, split))
        run = step.make_step(graph, made, optimizer, c)
        state, _ = run(state, frozen, batch, jax.random.key(0))
        found.append(tree.leaves(state["train"]))
    for path, value in found[0].items():
        np.testing.assert_allclose(found[1][path], value, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_a_few_scenes_are_learned_by_heart(tmp_path):
    given = f"--config={tiny_detector.__file__}:80"
    assert main(["train", given, f"--workdir={tmp_path}"]) == 0
    result = files.read_json(tmp_path / "result.json")
    assert result["headline"] == "ap" and result["ap50"] >= 90
    written = json.loads((tmp_path / "predictions" / "detections.json").read_text())
    assert {r["image_id"] for r in written} == set(range(8))
    assert (tmp_path / "predictions" / "pictures.png").is_file()
