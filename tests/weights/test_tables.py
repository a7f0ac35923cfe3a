import numpy as np
import pytest

from dynadapt.weights import tables
from dynadapt.weights.layouts import LAYOUTS
from dynadapt.weights.tables import Layout, TensorRow

ROWS = (
    TensorRow("layers.{i}.blocks.{j}.w", "stages/{i}/blocks/{j}/w", tables.LINEAR),
    TensorRow("layers.{i+1}.merge", "stages/{i}/merge"),
    TensorRow(("q.{i}", "k.{i}", "v.{i}"), "qkv/{i}", tables.QKV_BIAS),
    TensorRow("^outside", "head/outside"),
)
LAYOUT = Layout(
    *("someone", "vit", "layers.0.blocks.0.w", ROWS, lambda shapes, card: {}), extras=(r"buffer",)
)


def source():
    rng = np.random.default_rng(0)
    names = ("layers.0.blocks.12.w", "layers.1.merge", "buffer", "odd")
    found = {f"net.{n}": rng.normal(size=(2, 3)).astype(np.float32) for n in names}
    found |= {f"net.{n}.3": rng.normal(size=2).astype(np.float32) for n in "qkv"}
    return found | {"outside": np.ones(2), "elsewhere": np.zeros(1)}


def test_both_ways():
    given = source()
    ours, strange = LAYOUT.to_ours(given, "net.")
    assert strange == ["net.odd"]
    assert ours.keys() == {"stages/0/blocks/12/w", "stages/0/merge", "qkv/3", "head/outside"}
    np.testing.assert_array_equal(ours["stages/0/blocks/12/w"], given["net.layers.0.blocks.12.w"].T)
    np.testing.assert_array_equal(ours["qkv/3"][2:4], given["net.k.3"])
    back = LAYOUT.to_source(ours, "net.", 1)
    assert back.keys() == given.keys() - {"net.buffer", "net.odd", "elsewhere"}
    for name, value in back.items():
        np.testing.assert_array_equal(value, given[name])
    assert LAYOUT.source_names("qkv/7", "p.") == ["p.q.7", "p.k.7", "p.v.7"]
    assert LAYOUT.source_names("nothing", "") == []


def test_one_of_three_missing_gives_no_value():
    given = source()
    del given["net.k.3"]
    assert "qkv/3" not in LAYOUT.to_ours(given, "net.")[0]


def test_a_path_without_a_row():
    with pytest.raises(KeyError, match="nothing"):
        LAYOUT.to_source({"nothing": np.zeros(1)}, "", 1)


def test_prefix():
    assert LAYOUT.prefixes(["x", "a.b.layers.0.blocks.0.w"]) == ["a.b."]
    names = ["layers.0.blocks.0.w", "b.layers.0.blocks.0.w", "ema.layers.0.blocks.0.w"]
    assert LAYOUT.prefixes(names) == ["ema.", "", "b."]
    assert LAYOUT.prefixes(["my_layers.0.blocks.0.w"]) == []


def test_what_is_averaged():
    for name in ("ema", "state_dict_ema", "net.model_ema.", "EMA", "teacher.backbone", "swa/x"):
        assert tables.averaged(name), name
    for name in ("model", "schema", "avgpool.x", "student", "cinema.", ""):
        assert not tables.averaged(name), name


def test_count():
    shapes = dict.fromkeys(("b.0.x", "b.0.y", "b.11.x", "c.5"), ())
    assert tables.count(shapes, r"b\.(\d+)\.") == 2


@pytest.mark.parametrize("how", [v for v in vars(tables).values() if isinstance(v, tables.How)])
def test_every_change_of_layout_has_its_inverse(how):
    """Bit-equal, starting from tensors of the source's shapes."""
    rng = np.random.default_rng(1)
    shapes = {
        tables.COPY: [(4, 3)],
        tables.LINEAR: [(4, 3)],
        tables.CONV: [(4, 3, 2, 5)],
        tables.POINT: [(4, 3, 1, 1)],
        tables.POINT1D: [(4, 3, 1)],
        tables.QKV: [(4, 6)] * 3,
        tables.QKV_BIAS: [(4,)] * 3,
        tables.GATED: [(4, 6)] * 2,
        tables.GATED_BIAS: [(4,)] * 2,
        tables.HEADS_QKV: [(6, 2, 3)] * 3,
        tables.HEADS_QKV_BIAS: [(2, 3)] * 3,
        tables.HEADS_OUT: [(2, 3, 6)],
    }[how]
    given = [rng.normal(size=s).astype(np.float16) for s in shapes]
    back = how.source(how.ours(given), 2)
    for one, other in zip(given, back, strict=True):
        assert other.dtype == np.float16
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.family}-{x.name}")
def test_no_two_rows_of_a_layout_are_of_one_path(layout):
    paths = [row.ours for row in layout.rows]
    assert len(set(paths)) == len(paths)
