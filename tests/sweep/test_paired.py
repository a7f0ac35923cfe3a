"""Paired differences, by hand."""

import pytest

from dynadapt.errors import ConfigError, UnknownName
from dynadapt.sweep import paired

# Of a and b the gains of b are 1 and 3 on x, 2 on y, -3 on z: means 2, 2, -3.
SCORES = {
    "a": {"x": {0: 10.0, 1: 20.0}, "y": {0: 30.0}, "z": {0: 40.0}},
    "b": {"x": {0: 11.0, 1: 23.0}, "y": {0: 32.0, 7: 90.0}, "z": {0: 37.0}},
    "c": {"x": {0: 10.5}, "y": {0: 30.5}},
}


def test_differences_by_hand():
    b, c = sorted(paired.against(SCORES, "a"), key=lambda row: row["method"])
    assert (b["method"], b["against"], b["tasks"], b["wins"]) == ("b", "a", 3, 2)
    assert b["mean"] == pytest.approx(1 / 3)
    # Deviation of 2, 2, -3 is 2.8868, over sqrt(3) 1.6667; Student's t of 2 degrees is 4.3027.
    assert (b["low"], b["high"]) == pytest.approx((1 / 3 - 7.1711, 1 / 3 + 7.1711), abs=1e-3)
    assert (c["mean"], c["low"], c["high"], c["tasks"]) == (0.5, 0.5, 0.5, 2)


def test_the_best_comes_first_and_lower_may_be_better():
    assert [row["method"] for row in paired.against(SCORES, "a")] == ["c", "b"]
    turned = {row["method"]: row["mean"] for row in paired.against(SCORES, "a", "lower")}
    assert turned["c"] == -0.5 and turned["b"] == pytest.approx(-1 / 3)


def test_one_task_has_no_interval():
    one = {name: {"x": own["x"]} for name, own in SCORES.items()}
    assert {(row["low"], row["high"]) for row in paired.against(one, "a")} == {(None, None)}


@pytest.mark.parametrize(
    ("scores", "reference", "part", "kind"),
    [
        (SCORES, "bb", "did you mean 'b'", UnknownName),
        ({"a": SCORES["a"]}, "a", "no other method", ConfigError),
        ({"a": {"x": {0: 1.0}}, "b": {"x": {1: 1.0}}}, "a", "share no task", ConfigError),
    ],
)
def test_what_cannot_be_compared(scores, reference, part, kind):
    with pytest.raises(kind, match=part):
        paired.against(scores, reference)
