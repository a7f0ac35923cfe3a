"""Scenes are functions of their position, and their fields agree to the pixel."""

import hashlib
import inspect

import numpy as np
import pytest

from dynadapt.data import loader, scenes, transforms
from dynadapt.errors import DataError, UnknownName

ALL = tuple(name for name in scenes.fields_of(64) if name != "image")


@pytest.fixture(scope="module")
def some():
    """The first 40 test scenes with all fields."""
    source = scenes.source("test[:40]", fields=ALL)
    return [source[i] for i in range(len(source))]


def test_scenes_are_a_function_of_seed_split_and_position():
    def first(split="train", style="plain", seed=0):
        return scenes.draw(split, 3, 32, style, seed)

    again = first()
    for name, value in first().items():
        assert np.array_equal(value, again[name]), name
    for other in (first("val"), first("test"), first(seed=1)):
        assert not np.array_equal(other["labels"], again["labels"])
    with pytest.raises(ValueError, match="read-only"):
        again["labels"][0] = 0


def test_a_style_changes_the_picture_and_no_label():
    drawn = {style: scenes.draw("train", 5, 48, style, 0) for style in scenes.STYLES}
    assert len(drawn) == 3
    plain = drawn.pop("plain")
    for style, other in drawn.items():
        assert np.abs(plain["image"].astype(int) - other["image"]).mean() > 10, style
        for name in ALL:
            assert np.array_equal(plain[name], other[name]), (style, name)
    means = {
        style: np.mean([scenes.draw("train", i, 16, style, 0)["image"].mean() for i in range(20)])
        for style in scenes.STYLES
    }
    assert means["night"] < 0.7 * min(means["plain"], means["textured"])


def test_golden():
    scene = scenes.draw("test", 7, 64, "textured", 0)
    digest = hashlib.sha256()
    for name in ("labels", "instances", "saliency", "edges"):
        digest.update(scene[name].astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "46737a036b35fb89"
    assert scene["image"].mean() == pytest.approx(144.420, abs=0.01)
    assert scene["depth"].mean() == pytest.approx(3.1915, abs=1e-3)


def test_boxes_are_those_of_instances_and_their_classes(some):
    for scene in some:
        numbers = np.unique(scene["instances"][scene["instances"] > 0])
        assert numbers.tolist() == list(range(1, len(scene["boxes"]) + 1))
        assert len(scene["box_classes"]) == len(numbers) <= scenes.MOST
        for n, box, kind in zip(numbers, scene["boxes"], scene["box_classes"], strict=True):
            inside = scene["instances"] == n
            assert inside.sum() >= scenes.LEAST
            ys, xs = np.nonzero(inside)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert (scene["labels"][inside] == 2 + kind).all()
    counts = np.bincount(np.concatenate([scene["box_classes"] for scene in some]), minlength=4)
    assert (counts > 10).all()


def test_objects_are_those_of_the_map(some):
    for position, scene in enumerate(some):
        assert scene["image_id"] == position and len(scene["objects"]) == len(scene["boxes"])
        assert scene["box_ids"].tolist() == [thing.number for thing in scene["objects"]]
        for thing, box, kind in zip(
            scene["objects"], scene["boxes"], scene["box_classes"], strict=True
        ):
            assert list(thing.box) == box.tolist() and thing.category == kind
            assert thing.area == (scene["instances"] == thing.number).sum()
            assert thing.segmentation is None and not thing.crowd
    both = scenes.source("val[:1]+test[:2]", fields=("boxes",), size=16)
    assert [both[i]["image_id"] for i in (0, 1, 2, -1)] == [0, 1, 2, 2]


def test_depth_and_normals_are_those_of_one_surface(some):
    focal, centre = scenes.intrinsics(64)[0, 0], scenes.intrinsics(64)[0, 2]
    y, x = np.mgrid[:64, :64] + 0.5
    rays = np.stack([(x - centre) / focal, (y - centre) / focal, np.ones_like(x)], -1)
    angles = []
    for scene in some:
        depth, normals = scene["depth"], scene["normals"]
        assert depth.dtype == normals.dtype == np.float32
        assert (depth > 0.3).all() and (depth < 10).all()
        assert np.abs(np.linalg.norm(normals, axis=-1) - 1).max() < 1e-5
        assert ((normals * rays).sum(-1) < 1e-3).all()  # they face the camera
        points = rays * depth[..., None]
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        found = np.cross(down, across)
        found /= np.linalg.norm(found, axis=-1, keepdims=True)
        owner = scene["labels"] * 100 + scene["instances"]
        flat = np.ones((62, 62), bool)
        for part in (owner[:-2, 1:-1], owner[2:, 1:-1], owner[1:-1, :-2], owner[1:-1, 2:]):
            flat &= part == owner[1:-1, 1:-1]
        cosine = (found * normals[1:-1, 1:-1]).sum(-1)[flat]
        angles.append(np.degrees(np.arccos(cosine.clip(-1, 1))))
        # floor and wall are planes, exactly
        plane = scene["labels"][1:-1, 1:-1][flat] < 2
        assert angles[-1][plane].max() < 0.5
    assert np.percentile(np.concatenate(angles), 95) < 6  # creases of solids are no surface


def test_floor_wall_and_solids_are_where_they_should_be(some):
    for scene in some:
        labels, depth = scene["labels"], scene["depth"]
        assert labels.min() >= 0 and labels.max() < len(scenes.CLASSES)
        assert (scene["instances"][labels < 2] == 0).all()
        assert labels[0].min() == 1 or (labels[0] != 0).any()
        assert (labels[-1] != 1).all() and depth[-1].max() < depth[labels == 1].max()


def test_saliency_is_the_nearest_instance_and_edges_part_what_is_seen(some):
    for scene in some:
        if len(scene["boxes"]):
            [number] = np.unique(scene["instances"][scene["saliency"] == 1])
            solid = scene["instances"] > 0
            assert scene["depth"][scene["instances"] == number].min() == scene["depth"][solid].min()
        labels, edges = scene["labels"], scene["edges"]
        assert edges[1:][labels[1:] != labels[:-1]].all()
        assert edges[:, 1:][labels[:, 1:] != labels[:, :-1]].all()
        assert 0.005 < edges.mean() < 0.2
    assert np.mean([len(scene["boxes"]) > 1 for scene in some]) > 0.9


def test_only_chosen_fields_are_there():
    parameter = inspect.signature(scenes.source).parameters["fields"]
    assert parameter.default == ("labels", "depth")
    assert set(scenes.source("val").info.fields) == {"image", "labels", "depth"}
    example = scenes.source("val", fields=("box_classes",), size=16)[0]
    assert set(example) == {"image", "boxes", "box_classes", "name", "objects", "image_id"}
    numbered = scenes.source("val", fields=("boxes", "instances"), size=16).info.fields
    assert set(numbered) == {"image", "instances", "boxes", "box_classes", "box_ids", "extent"}
    assert set(scenes.source("val", fields=("instances",)).info.fields) == {"image", "instances"}
    assert scenes.source("val", fields=()).info.classes == ()
    with pytest.raises(UnknownName, match="did you mean 'depth'"):
        scenes.source("val", fields=("depths",))


def test_batches_hold_every_field():
    source = scenes.source("train[:6]", fields=ALL, size=32)
    change = transforms.pipeline("flip|rotate(10)")
    spec = loader.spec(source.info, change, 4)
    batch = next(loader.train_batches(source, change, batch_size=4, seed=0))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    assert batch["boxes"].shape == (4, 6, 4) and batch["box_classes_mask"].sum() >= 4
    assert (batch["labels"] == -1).any() and (batch["depth"] == 0).any()  # turned-in corners


def test_wrong_settings_are_answered():
    with pytest.raises(UnknownName, match="did you mean 'night'"):
        scenes.source("train", style="nigth")
    with pytest.raises(DataError, match="16 to 1024 pixels a side, not 8"):
        scenes.source("train", size=8)
    with pytest.raises(DataError, match="seed of scenes is -1"):
        scenes.source("train", seed=-1)
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        scenes.source("tset")


def test_the_fingerprint_follows_the_settings():
    prints = [scenes.source("test", **settings).info.fingerprint for settings in (
        {}, {"style": "night"}, {"seed": 1}, {"size": 32},
    )]  # fmt: skip
    assert len(set(prints)) == 4 and prints[0] == scenes.source("train").info.fingerprint
