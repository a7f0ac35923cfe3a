"""Which examples a sweep trains on and judges by: points are never judged on what tables show."""

import pytest

from dynadapt import config, data
from dynadapt.errors import ConfigError
from dynadapt.sweep.draws import draws, validation


def made(data_set="digits", **splits):
    c = config.default(data_set=data_set)
    c.input.update(splits)
    return c


def test_validation_is_the_datas_own_and_in_no_other_use():
    assert validation(made("clouds")) == "val"
    assert validation(made("clouds", eval_split="val[:50]")) == ""
    assert validation(made("clouds", train_split="train+val")) == ""
    assert validation(made("clouds", train_split="train|shots(4, 0)")) == "val"
    assert validation(made("digits")) == ""


def test_one_draw():
    (own,) = draws(made(), 0, ())
    assert own == ("", "train", "test", "train|rest(0, 5)", "train|fold(0, 5)")
    (own,) = draws(made("clouds"), 0, ())
    assert own == ("", "train", "test", "train", "val")


@pytest.mark.parametrize("data_set", ["digits", "clouds"])
def test_folds_leave_the_test_split_closed(data_set):
    found = draws(made(data_set), 5, ())
    assert [draw.name for draw in found] == [f"fold {i} of 5" for i in range(5)]
    assert not any("test" in split for draw in found for split in draw)
    assert found[2].train == "train|rest(2, 5)" and found[2].judge == "train|fold(2, 5)"
    inner = "train|rest(2, 5)|rest(0, 5)", "train|rest(2, 5)|fold(0, 5)"
    assert found[2][3:] == (inner if data_set == "digits" else (found[2].train, "val"))


def test_shots_are_drawn_from_what_does_not_judge():
    one, four = draws(made(), 0, (1, 4))
    assert (one.name, four.name) == ("1 shot", "4 shots")
    assert four[1:3] == ("train|shots(4, {seed})", "test")
    assert four[3:] == ("train|rest(0, 5)|shots(4, {seed})", "train|fold(0, 5)")
    assert draws(made("clouds"), 0, (4,))[0][3:] == ("train|shots(4, {seed})", "val")


def test_what_chooses_is_not_trained_on():
    c = made(train_split="train[:300]")
    for draw in draws(c, 3, ()):
        names = []
        for split in (draw.tune_train, draw.tune_judge, draw.judge):
            part = data.from_config(c.data, split)
            names.append({part[i]["name"] for i in range(len(part))})
        trained, chosen, judged = names
        assert not trained & chosen and not (trained | chosen) & judged
        assert len(trained | chosen | judged) == 300


def test_folds_or_shots():
    with pytest.raises(ConfigError, match="--folds or --shots, not both"):
        draws(made(), 3, (1,))
