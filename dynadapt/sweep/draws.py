"""Which examples the runs of a sweep train on, and which judge them.

Points of a grid are never judged on what the table is about: neither on the config's `eval_split`,
nor on the fold that is held out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dynadapt import data
from dynadapt.data import parts
from dynadapt.errors import ConfigError, DataError

VALIDATION = ("val", "validation")  # what data sets call the split to choose by
HELD, LEFT = "fold(0, 5)", "rest(0, 5)"  # of the training split, where there is none


class Draw(NamedTuple):
    """The splits of the final runs, and those of the runs that choose among the grid's points.

    In them `{seed}` stands for a run's seed.
    """

    name: str
    train: str
    judge: str
    tune_train: str
    tune_judge: str


def validation(config: Any) -> str:
    """The split that the data have to choose by; "" where there is none but those in use."""
    given = (parts.cut(config.input[f"{part}_split"])[0] for part in ("train", "eval"))
    used = {name for split in given for name, _ in data.parse(split)}
    for name in VALIDATION:
        try:
            if name not in used:
                data.from_config(config.data, name)
                return name
        except DataError:
            continue
    return ""


def draws(config: Any, folds: int, shots: Sequence[int]) -> list[Draw]:
    """The draws that a sweep makes of a config's data: one, or one for each fold or count of shots.

    Raises:
        ConfigError: for folds and shots at once.
        DataError: for data that are not there.
    """
    if folds and shots:
        raise ConfigError("give --folds or --shots, not both")
    train, judge, val = config.input.train_split, config.input.eval_split, validation(config)
    if folds:
        found = []
        for i in range(folds):
            rest = f"{train}|rest({i}, {folds})"
            tuning = (rest, val) if val else (f"{rest}|{LEFT}", f"{rest}|{HELD}")
            name = f"fold {i} of {folds}"
            found.append(Draw(name, rest, f"{train}|fold({i}, {folds})", *tuning))
        return found
    left, held = (train, val) if val else (f"{train}|{LEFT}", f"{train}|{HELD}")
    if not shots:
        return [Draw("", train, judge, left, held)]
    some = [f"|shots({n}, {{seed}})" for n in shots]
    return [
        Draw(f"{n} shot{'s' if n > 1 else ''}", train + few, judge, left + few, held)
        for n, few in zip(shots, some, strict=True)
    ]
