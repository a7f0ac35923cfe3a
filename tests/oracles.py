"""Reference cases under $DYNADAPT_ORACLES, and the comparison with what one expects."""

import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ["DYNADAPT_ORACLES"])


def cases() -> list[Path]:
    return sorted(p.parent for p in FOLDER.glob("**/meta.json"))


def named(case: Path) -> str:
    return "/".join(case.parts[-2:])


class Check:
    """Compares outputs with a case's own allowances, and tells all that deviate at the end."""

    def __init__(self, case):
        self.case, self.faults = case, []

    def __call__(self, name, found, wanted, allowed=None):
        if allowed is None:
            allowed = self.case.meta["atol"].get(name, 1e-4)
        assert np.shape(found) == np.shape(wanted), name
        gap = np.abs(np.asarray(found, np.float64) - wanted)
        told = f"{gap.max(initial=0):.1e} of {np.max(allowed):.1e}"
        print(f"{named(self.case.folder)} {name}: {told}")
        if not (gap <= allowed).all():
            self.faults.append(f"{name} deviates by {told}")

    def done(self):
        assert not self.faults, "; ".join(self.faults)
