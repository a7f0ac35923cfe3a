import itertools
import json
import logging

import numpy as np
import pytest

from dynadapt.data import Info, digits, labelled, loader, transforms
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, DataError

KEYS = {"image": np.uint8, "label": np.int32, "index": np.int32, "mask": np.float32}
CROPS = "random_crop(8, padding=2)|flip"


class Memory:
    """n images whose pixels hold their index; those in `broken` are no images."""

    def __init__(self, n, broken=(), size=8):
        self.n, self.broken, self.size = n, broken, size
        self.info = labelled("memory", tuple(map(str, range(n))), size=(size, size))

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        pixels = np.arange(self.size * self.size * 3).reshape(self.size, self.size, 3) % 200
        image = b"no image" if i in self.broken else (pixels + i % 50).astype(np.uint8)
        return {"image": image, "label": i, "name": f"file{i}"}


def take(batches, count):
    return list(itertools.islice(batches, count))


def train(source, transform="", seed=0, **settings):
    settings = {"batch_size": 4, "threads": 0, **settings}
    return loader.train_batches(source, transform, seed=seed, **settings)


def evaluate(source, transform="", **settings):
    return loader.eval_batches(source, transform, **{"batch_size": 4, "threads": 0, **settings})


def indices(batches):
    return [int(i) for batch in batches for i in batch["index"]]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key], key)


def test_a_batch_has_the_contracted_arrays():
    for batch in (next(train(Memory(9))), next(evaluate(Memory(9)))):
        assert {key: value.dtype for key, value in batch.items()} == KEYS
        assert batch["image"].shape == (4, 8, 8, 3)
        assert all(batch[key].shape == (4,) for key in ("label", "index", "mask"))
        assert type(batch["image"]) is np.ndarray
        np.testing.assert_array_equal(batch["label"], batch["index"])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"] % 50)


def test_an_epoch_is_every_example_once_in_an_order_of_its_own():
    epochs = np.array(indices(take(train(Memory(24)), 18))).reshape(3, 24)
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(range(24)) not in epochs.tolist()


def test_a_batch_may_cross_epochs_and_none_is_dropped():
    seen = indices(take(train(Memory(10)), 5))  # 20 examples: two epochs
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_the_seed_decides():
    a = take(train(Memory(24), CROPS, seed=3), 8)
    same(a, take(train(Memory(24), CROPS, seed=3), 8))
    assert indices(a) != indices(take(train(Memory(24), CROPS, seed=4), 8))
    # neighbouring seeds share no epoch
    b = take(train(Memory(24), seed=4), 12)
    assert indices(take(train(Memory(24), seed=3), 12))[24:48] != indices(b)[:24]


def test_random_transforms_differ_by_epoch_and_example():
    batches = take(train(Memory(8, size=32), "random_crop(8)"), 20)
    views = {}
    for batch in batches:
        for i, image in zip(batch["index"], batch["image"], strict=True):
            views.setdefault(int(i), set()).add(image.tobytes())
    assert min(len(v) for v in views.values()) >= 8  # of 10 epochs


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    reference = take(train(Memory(24), CROPS), 15)
    same(take(train(Memory(24), CROPS, threads=threads), 15), reference)
    same(list(evaluate(Memory(22), threads=threads)), list(evaluate(Memory(22))))


@pytest.mark.parametrize("threads", [0, 2])
def test_resume_is_bit_exact(threads):
    whole = take(train(Memory(21), CROPS, threads=threads), 17)
    first = train(Memory(21), CROPS, threads=threads)
    take(first, 7)
    state = json.loads(json.dumps(first.get_state()))
    assert state["batches"] == 7
    second = train(Memory(21), CROPS, threads=threads)
    next(second)
    second.set_state(state)
    same(take(second, 10), whole[7:])
    first.set_state(train(Memory(21)).get_state())
    same(take(first, 7), whole[:7])


def test_a_state_of_another_stream_is_refused():
    state = train(Memory(21)).get_state()
    for other, what in (
        (train(Memory(21), seed=1), "seed 0 and this run has 1"),
        (train(Memory(20)), "examples 21"),
        (train(Memory(21), batch_size=2), "global_batch 4"),
    ):
        with pytest.raises(DataError, match=what):
            other.set_state(state)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_one_stream(count):
    alone = take(train(Memory(26), CROPS, batch_size=6), 9)
    size = 6 // count
    shards = [
        take(train(Memory(26), CROPS, batch_size=size, process=(p, count)), 9) for p in range(count)
    ]
    for step, whole in enumerate(alone):
        for key in KEYS:
            joined = np.stack([shard[step][key] for shard in shards], axis=1)
            np.testing.assert_array_equal(joined.reshape(whole[key].shape), whole[key])


def test_a_run_goes_on_with_another_number_of_processes():
    alone = train(Memory(26), batch_size=4)
    take(alone, 3)
    state, rest = alone.get_state(), indices(take(alone, 2))
    pair = [train(Memory(26), batch_size=2, process=(p, 2)) for p in range(2)]
    for one in pair:
        one.set_state(state)
    assert sorted(i for one in pair for i in indices(take(one, 2))) == sorted(rest)


@pytest.mark.parametrize(("n", "count"), [(22, 1), (22, 3), (24, 2), (1, 2), (9, 2), (5, 4)])
def test_evaluation_covers_every_example_once(n, count):
    shards = [list(evaluate(Memory(n), process=(p, count))) for p in range(count)]
    steps = evaluate(Memory(n), process=(0, count)).steps
    assert [len(shard) for shard in shards] == [steps] * count
    batches = [batch for shard in shards for batch in shard]
    assert all(batch["image"].shape == (4, 8, 8, 3) for batch in batches)
    real = np.concatenate([b["mask"] for b in batches]) == 1
    index = np.concatenate([b["index"] for b in batches])
    assert sorted(index[real]) == list(range(n))
    assert (index[~real] == -1).all()
    pads = np.concatenate([b["image"] for b in batches])[~real]
    assert not pads.any()
    if count == 1:
        assert index[real].tolist() == list(range(n))


def test_a_broken_image_stops_by_default():
    for batches in (train(Memory(8, broken=(3,))), evaluate(Memory(8, broken=(3,)), threads=2)):
        with pytest.raises(DataError, match="cannot decode file3"):
            take(batches, 2)


def test_broken_images_may_be_skipped(caplog):
    source = Memory(8, broken=(3, 5))
    with caplog.at_level(logging.WARNING):
        batches = train(source, on_error="skip", threads=2)
        seen = take(batches, 6)  # three epochs
    assert sorted(batches.skipped) == ["file3", "file5"]
    assert "cannot decode file3" in batches.skipped["file3"]
    assert len([r for r in caplog.records if "file3" in r.message]) == 1
    for batch in seen:
        broken = np.isin(batch["index"], (3, 5))
        np.testing.assert_array_equal(batch["mask"], 1 - broken)
        assert not batch["image"][broken].any()
        assert batch["image"][~broken].any(axis=(1, 2, 3)).all()
    result = list(evaluate(Memory(9, broken=(8,)), on_error="skip"))  # its batch has no image
    assert [b["mask"].tolist() for b in result] == [[1] * 4, [1] * 4, [0] * 4]
    assert result[2]["index"].tolist() == [8, -1, -1, -1]
    nothing = list(evaluate(Memory(8, broken=range(8)), on_error="skip"))
    assert not any(b["mask"].any() or b["image"].any() for b in nothing)


def test_labels_out_of_range_are_found():
    source = Memory(8)
    source.info = labelled("memory", "0123456", size=(8, 8))
    with pytest.raises(DataError, match="file7 has label 7 of 7 classes"):
        list(evaluate(source))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: train(Memory(3)), ConfigError, "batch of 4 is larger than the 3 training"),
        (lambda: train(Memory(7), process=(0, 2)), ConfigError, "at most 3 for each process"),
        (lambda: train(Memory(7), batch_size=0), ConfigError, "must be at least 1"),
        (lambda: train(Memory(7), seed=-1), ConfigError, "cannot be negative"),
        (lambda: train(Memory(7), threads=-1), ConfigError, "cannot be negative"),
        (lambda: train(Memory(7), process=(1, 1)), ConfigError, "process 1 is not one of 1"),
        (lambda: train(Memory(7), on_error="ignore"), ConfigError, "'stop' or 'skip'"),
        (lambda: evaluate(Memory(7), "flip"), ConfigError, "draws at random"),
        (lambda: evaluate(Memory(0)), DataError, "is empty"),
    ],
)
def test_wrong_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Mixed(Memory):
    """Images of several heights, as they say or not."""

    def __init__(self, n, size):
        super().__init__(n)
        self.info = labelled("mixed", tuple(map(str, range(n))), size=size)

    def __getitem__(self, i):
        example = super().__getitem__(i)
        return {**example, "image": example["image"][: 4 + i]}


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"'mixed' are not of one size .* such as resize\(224\)"):
        evaluate(Mixed(4, size=()))
    assert next(evaluate(Mixed(4, size=()), "resize(6)"))["image"].shape == (4, 6, 6, 3)


def test_images_of_another_shape_than_promised_are_refused():
    said = r"file0 has image of shape \(4, 8, 3\), where 'mixed' promised \(5, 8, 3\)"
    with pytest.raises(DataError, match=said):
        next(evaluate(Mixed(4, size=(5, 8))))
    skipped = next(evaluate(Mixed(4, size=(5, 8)), on_error="skip"))
    assert skipped["mask"].tolist() == [0, 1, 0, 0]


def test_a_pipeline_may_be_read_already():
    same(take(train(Memory(8), transforms.pipeline(CROPS)), 2), take(train(Memory(8), CROPS), 2))


class Boxes:
    """Clouds with ragged boxes and a class for each box."""

    in_memory = True

    def __init__(self, counts):
        self.counts = counts
        fields = {
            "points": Field("cloud", size=(5, 3)),
            "boxes": Field("boxes", most=3, fill=-1),
            "kinds": Field("rows", most=3, fill=9),
            "pairs": Field("rows", dtype="float32", most=3, size=(2,)),
        }
        self.info = Info("boxes", fields, {}, "")

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, i):
        n = self.counts[i]
        return {
            # A value that no shorter type holds.
            "points": np.full((5, 3), 1 + 2**-20 + i, np.float32),
            "boxes": np.full((n, 4), i, np.float32),
            "kinds": np.full(n, i),
            "pairs": np.full((n, 2), 0.5),
            "name": f"cloud{i}",
        }


def none(example, rng, fields):
    """A transform that leaves clouds alone, as images alone are decoded today."""
    return example


none.random, none.text, none.size = False, "", lambda given=(): given


def test_ragged_rows_are_padded_beside_a_mask():
    source = Boxes([2, 0, 3])
    batch = next(evaluate(source, none))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "points": ((4, 5, 3), "float32"),
        "boxes": ((4, 3, 4), "float32"),
        "boxes_mask": ((4, 3), "float32"),
        "kinds": ((4, 3), "int32"),
        "kinds_mask": ((4, 3), "float32"),
        "pairs": ((4, 3, 2), "float32"),
        "pairs_mask": ((4, 3), "float32"),
        "index": ((4,), "int32"),
        "mask": ((4,), "float32"),
    }
    wanted = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    for name in ("boxes_mask", "kinds_mask", "pairs_mask"):
        np.testing.assert_array_equal(batch[name], wanted)
    assert batch["kinds"].tolist() == [[0, 0, 9], [9, 9, 9], [2, 2, 2], [9, 9, 9]]
    assert (batch["boxes"][0] == [[0] * 4, [0] * 4, [-1] * 4]).all()
    np.testing.assert_array_equal(batch["points"][2], source[2]["points"])
    with pytest.raises(DataError, match="cloud1 has 4 boxes, more than 3"):
        next(evaluate(Boxes([1, 4]), none))


def test_spec_is_what_comes():
    for source, transform in ((Memory(9), ""), (Memory(9), "resize(6)"), (Boxes([1, 2]), none)):
        pipeline = transforms.pipeline(transform) if isinstance(transform, str) else transform
        shapes = loader.spec(source.info, pipeline, 4)
        batch = next(evaluate(source, transform))
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in shapes.items()
        }


def test_an_evaluation_tells_of_its_examples():
    batches = evaluate(Memory(9, broken=(3,)), on_error="skip", threads=2)
    list(batches)
    assert sorted(batches.about) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert batches.about[8]["name"] == "file8"
    stream = train(Memory(9))
    take(stream, 3)
    assert stream.about == {}


def test_digits_from_end_to_end():
    source = digits.source("train[:800]")
    batch = next(loader.train_batches(source, "resize(16)|flip", batch_size=64, seed=0))
    assert batch["image"].shape == (64, 16, 16, 3)
    for i, label in zip(batch["index"], batch["label"], strict=True):
        assert source[int(i)]["label"] == label
    counted = sum(b["mask"].sum() for b in evaluate(digits.source("test"), batch_size=64))
    assert counted == 797


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_hands_out_the_state_of_each_batch(depth):
    whole = take(train(Memory(21), CROPS), 12)
    stream = loader.prefetch(train(Memory(21), CROPS, threads=2), lambda b: dict(b), depth)
    for step, (batch, state) in zip(range(6), stream, strict=False):
        same([batch], [whole[step]])
        assert state["batches"] == step + 1
    again = train(Memory(21), CROPS)
    again.set_state(state)
    same(take(again, 6), whole[6:])


def test_prefetch_reads_ahead_and_ends():
    put = []
    stream = loader.prefetch(iter([{"x": i} for i in range(5)]), lambda b: put.append(b["x"]), 3)
    assert next(stream) == (None, None)
    assert put == [0, 1, 2]
    assert len(list(stream)) == 4
    assert put == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="depth is 0"):
        next(loader.prefetch(iter([]), dict, 0))


def test_prefetch_gives_out_the_batches_before_an_error():
    stream = loader.prefetch(evaluate(Memory(12, broken=(9,))), dict, 3)
    assert [state["batches"] for _, state in take(stream, 2)] == [1, 2]
    with pytest.raises(DataError, match="file9"):
        next(stream)
