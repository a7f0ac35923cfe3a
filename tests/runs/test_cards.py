"""What a card may hold: values of other types are named, and no number is beyond all bounds."""

import copy
import json

import pytest

from dynadapt import choices
from dynadapt import config as configs
from dynadapt.data import labelled
from dynadapt.errors import CheckpointError, ConfigError, UnknownName
from dynadapt.runs import cards, product


@pytest.fixture(scope="module")
def card():
    c = configs.resolve(configs.default(backbone="vit_mini", method="lora", data_set="digits"))
    made = product.card(c, labelled("digits", "ab", size=(8, 8)), {}, {})
    return json.loads(json.dumps({**made, "file_sha256": "", "tensor_sha256": {}}))


def test_a_card_of_ours(card):
    assert list(cards.problems(card)) == []
    assert cards.number(card, 2) == 2 and cards.number({}, 2) == 1
    assert cards.config(card["config"]).adapter.name == "lora"


@pytest.mark.parametrize("value", [0, -3, True, "2", 2.0, None, [], {}])
def test_no_number_of_a_format(value):
    with pytest.raises(CheckpointError, match="which is no number of a format"):
        cards.number({"format": value}, 2)


@pytest.mark.parametrize("versions", [None, 3, {}, {"dynadapt": [1]}])
def test_a_later_format(versions):
    with pytest.raises(CheckpointError, match="reads formats up to 2; it was written by dynadapt"):
        cards.number({"format": 10**4000, "versions": versions}, 2)


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("classes",), "ab", "classes must be list, not 'ab'"),
        (("classes",), ["a", 1], "classes must be names"),
        (("config",), None, "config must be dict, not None"),
        (("weights_sha256",), 3, "weights_sha256 must be str, not 3"),
        (("fields",), [], "fields must be dict"),
        (("fields", "image"), 3, "fields.image must be dict, not 3"),
        (("fields", "image"), {}, "fields.image.kind must be str, not None"),
        (("fields", "image", "size"), [8, -8], "fields.image.size must be numbers"),
        (("fields", "image", "size"), [8, 10**9], "fields.image.size must be numbers"),
        (("fields", "image", "dtype"), "O", "fields.image.dtype must be that of numbers"),
        (("fields", "image", "dtype"), "(2,", "fields.image.dtype must be that of numbers"),
        (("fields", "image", "fill"), True, "fields.image.fill must be float, not True"),
        (("fields", "label", "classes"), [None], "fields.label.classes must be names"),
    ],
)
def test_what_is_of_another_type_is_named(path, value, part, card):
    changed = copy.deepcopy(card)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert any(part in problem for problem in cards.problems(changed))


@pytest.mark.parametrize(
    ("section", "name", "value", "part"),
    [
        ("backbone", "depth", 2000, "backbone.depth is 2000, above 256"),
        ("backbone", "dim", "x", "backbone.dim must be int, not 'x'"),
        ("backbone", "dim", 10**9, "backbone.dim is 1000000000, above 65,536"),
        ("adapter", "rank", 10**9, "adapter.rank is 1000000000, above"),
        ("adapter", "rank", "x", "config can't be read"),
        ("adapter", "scale", float("nan"), "not JSON compliant"),
        ("optim", "lr", [], "config can't be read"),
        ("backbone", "weights", "a\0b", "zero byte"),
        ("backbone", "weights", "\ud800", "config can't be read"),
        ("backbone", "name", None, "config can't be read"),
    ],
)
def test_a_config_that_no_model_has(section, name, value, part, card):
    values = copy.deepcopy(card["config"])
    values[section][name] = value
    with pytest.raises(CheckpointError, match=part):
        cards.config(values)


@pytest.mark.parametrize("values", [{}, {"backbone": 3}, {"adapter": []}])
def test_no_config_at_all(values):
    with pytest.raises(CheckpointError, match="config can't be read"):
        cards.config(values)


def test_a_choice_that_is_gone(card):
    values = copy.deepcopy(card["config"])
    values["adapter"]["name"] = "lorra"
    with pytest.raises(UnknownName, match="did you mean 'lora'"):
        cards.config(values)


@pytest.mark.parametrize("record", [False, True])
def test_a_cards_code_is_not_run(record, card, tmp_path):
    file, ran = tmp_path / "evil.py", tmp_path / "ran"
    file.write_text(f"open({str(ran)!r}, 'w')\n\n\ndef adapt(backbone, *, rngs):\n    pass\n")
    values = copy.deepcopy(card["config"])
    values["adapter"]["name"] = choices.record(str(file)) if record else str(file)
    part = "is code in the file" if record else "is a file without a hash"
    with pytest.raises(ConfigError, match=part):
        cards.config(values)
    assert not ran.exists()
