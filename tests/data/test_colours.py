"""Colours change as elsewhere, and nothing but colours changes."""

import colorsys

import numpy as np
import pytest

from dynadapt.data import colours, transforms


def run(text, image, seed=0):
    return transforms.pipeline(text)({"image": image}, np.random.default_rng(seed))["image"]


class Drawn:
    """A generator that draws what it is told."""

    def __init__(self, factor, order=(0, 1, 2, 3)):
        self.factor, self.order = factor, order

    def permutation(self, n):
        assert n == 4
        return np.array(self.order)

    def uniform(self, low, high):
        self.bounds = low, high
        return self.factor


def test_jitter_means_what_it_means_elsewhere():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    grey = image @ [0.299, 0.587, 0.114]
    for factor in (0.0, 0.4, 1.0, 1.7):
        towards = {"brightness": 0, "contrast": round(grey.mean()), "saturation": grey[..., None]}
        for name, other in towards.items():
            drawn = Drawn(factor)
            out = colours.jitter(image, **{name: 0.8}, rng=drawn)
            wanted = np.clip(factor * image + (1 - factor) * other, 0, 255)
            assert np.abs(out - wanted).max() < 2, (name, factor)
            assert drawn.bounds == pytest.approx((0.2, 1.8))
    drawn = Drawn(1.0)
    colours.jitter(image, 2.0, rng=drawn)
    assert drawn.bounds == (0, 3)
    out = colours.jitter(image, hue=0.4, rng=(drawn := Drawn(0.25)))
    assert drawn.bounds == (-0.4, 0.4)
    for pixel, before in zip(out.reshape(-1, 3), image.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before / 255)
        wanted = np.array(colorsys.hsv_to_rgb(h + 0.25, s, v)) * 255
        assert np.abs(pixel - wanted).max() < 14  # Pillow's circle has 256 steps


def test_jitter_changes_in_a_drawn_order():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    first, last = (colours.jitter(image, 1, 1, rng=Drawn(1.9, o)) for o in (range(4), (3, 2, 1, 0)))
    assert not np.array_equal(first, last)
    assert np.array_equal(colours.jitter(image, rng=Drawn(0.5)), image)
    outs = {run("jitter(0.4, 0.4, 0.4, 0.1)", image, seed).tobytes() for seed in range(9)}
    assert len(outs) == 9


def test_grey(photo):
    out = run("grey(1)", photo)
    assert np.array_equal(out, np.repeat(out[..., :1], 3, -1))
    assert np.abs(out[..., 0] - photo @ [0.299, 0.587, 0.114]).max() <= 1
    assert np.mean([np.array_equal(run("grey(0.2)", photo, s), photo) for s in range(200)]) > 0.7


class Coins:
    """A generator whose coins all fall one way, and whose factors are told in order."""

    def __init__(self, coin, *factors):
        self.coin, self.factors, self.bounds = coin, list(factors), []

    def random(self):
        return self.coin

    def uniform(self, low, high):
        self.bounds.append((low, high))
        return self.factors.pop(0)


def test_distort_means_what_it_means_elsewhere():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    # levels are shifted and multiplied, contrast first; saturation and hue stay
    drawn = Coins(0.0, 20.0, 1.25, 1.0, 0.0)
    out = colours.distort(image, rng=drawn)
    assert np.abs(out - np.clip((image + 20.0) * 1.25, 0, 255)).max() <= 0.5
    assert drawn.bounds == [(-32, 32), (0.5, 1.5), (0.5, 1.5), (-0.1, 0.1)]
    assert np.array_equal(colours.distort(image, rng=Coins(0.9)), image)
    # no saturation is the greatest channel in grey; a third of the circle swaps channels
    out = colours.distort(image, rng=Coins(0.0, 0.0, 1.0, 0.0, 0.0)).astype(int)
    assert np.abs(out - image.max(-1, keepdims=True)).max() <= 1
    out = colours.distort(image, hue=0.5, rng=Coins(0.0, 0.0, 1.0, 1.0, 1 / 3)).astype(int)
    assert np.abs(out - image[..., [2, 0, 1]]).mean() < 6


def test_distort_does_each_part_by_chance(photo):
    outs = [run("distort", photo, seed) for seed in range(200)]
    same = np.mean([np.array_equal(out, photo) for out in outs])
    assert 0.01 < same < 0.15  # a sixteenth
    assert len({out.tobytes() for out in outs}) > 150
    assert np.array_equal(run("distort(p=0)", photo), photo)


def test_the_contrast_comes_first_or_last():
    image = np.full((2, 2, 3), (200, 100, 50), np.uint8)

    class Ordered(Coins):
        def random(self):
            self.calls = getattr(self, "calls", 0) + 1
            return self.coin if self.calls == 3 else 0.0  # the third coin is the order

    first, last = (
        colours.distort(image, rng=Ordered(coin, 0.0, 1.5, 0.5, 0.0)) for coin in (0.0, 0.9)
    )
    assert first[0, 0].tolist() == pytest.approx([255, 203, 165], abs=2)
    assert last[0, 0].tolist() == pytest.approx([255, 225, 188], abs=2)


def test_gamma(photo):
    out = colours.gamma(photo, (2.0, 2.0), 1.0, rng=np.random.default_rng(0))
    assert np.abs(out - 255 * (photo / 255) ** 2).max() <= 0.5
    assert np.array_equal(run("gamma(p=0)", photo), photo)
    changed = [not np.array_equal(run("gamma", photo, s), photo) for s in range(200)]
    assert 0.35 < np.mean(changed) < 0.65
