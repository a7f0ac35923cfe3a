"""Where publishers keep the tensors of each family; `tests/test_parity.py` reads one of each."""

from dynadapt.weights.layouts import point_mae, sam, swin, vit, vit_hf
from dynadapt.weights.tables import Layout

# The first that fits is meant: families whose names include another's stand before it.
LAYOUTS: tuple[Layout, ...] = (
    *(*sam.LAYOUTS, *swin.LAYOUTS, *point_mae.LAYOUTS, *vit.LAYOUTS, *vit_hf.LAYOUTS),
)
