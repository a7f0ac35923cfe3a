import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.errors import ConfigError

TREE = {
    "backbone": {"blocks": {0: {"kernel": jnp.ones((2, 3))}, 1: {"kernel": jnp.ones((2, 3))}}},
    "head": {"bias": jnp.zeros(4, jnp.bfloat16)},
}
PATHS = ["backbone/blocks/0/kernel", "backbone/blocks/1/kernel", "head/bias"]


class Pair(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(i)) for i in range(2)])


def test_leaves_are_named_by_path():
    assert list(tree.leaves(TREE)) == PATHS
    assert tree.leaves(TREE)["head/bias"].shape == (4,)


def test_a_param_adds_no_segment_in_a_state_or_a_module():
    names = {f"layers/{i}/{part}" for i in range(2) for part in ("bias", "kernel")}
    assert set(tree.leaves(nnx.state(Pair()))) == names
    assert set(tree.leaves(Pair())) == names


def test_optimizer_states_keep_the_path_of_their_leaf():
    opt = optax.adam(1.0).init(TREE)
    assert "0/mu/backbone/blocks/0/kernel" in tree.leaves(opt)


def test_map_and_replace_keep_the_structure():
    doubled = tree.map_leaves(lambda path, x: x + len(path), TREE)
    assert jax.tree.structure(doubled) == jax.tree.structure(TREE)
    assert float(doubled["head"]["bias"][0]) == len("head/bias")
    values = {path: number for number, path in enumerate(PATHS)}
    assert tree.leaves(tree.replace(TREE, values)) == values
    with pytest.raises(KeyError):
        tree.replace(TREE, {"head/bias": 0})


def test_a_pattern_must_match_the_whole_path():
    assert tree.matches(r"head/.*", "head/bias")
    assert not tree.matches("head", "head/bias")
    assert not tree.matches("bias", "head/bias")
    assert tree.matches_any(("x", ".*bias"), "head/bias")
    assert not tree.matches_any((), "head/bias")


def test_the_first_matching_rule_wins():
    rules = [(r".*/0/.*", "a"), (r"backbone/.*", "b"), (".*", "c")]
    assert tree.assign(rules, PATHS) == dict(zip(PATHS, "abc", strict=True))


def test_rules_must_cover_every_path():
    with pytest.raises(ConfigError, match=r"no rule covers 'backbone/blocks/1/kernel' \(2 paths"):
        tree.assign([(r".*/0/.*", 1)], PATHS)


def test_a_rule_that_matches_nothing_names_the_nearest_paths():
    rules = [("backbone/blocks/./kernle", 1), (".*", 2)]
    with pytest.raises(ConfigError, match="rate 'backbone/blocks/./kernle' matches no") as e:
        tree.assign(rules, PATHS, what="rate")
    assert "'backbone/blocks/*/kernel'" in str(e.value)
    assert tree.assign([(".*", 0)], []) == {}


def test_every_unused_pattern_is_a_problem_of_its_own():
    with pytest.raises(ConfigError) as caught:
        tree.check_used(["nothing", "head/.*", "neither"], PATHS, what="pattern")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("blocks/3/mlp", "blocks/*/mlp"),
        ("blocks/11", "blocks/*"),
        ("0/mu/blocks/0/1/kernel", "*/mu/blocks/*/*/kernel"),
        ("fc1/kernel", "fc1/kernel"),
    ],
)
def test_groups_replace_numbers(path, group):
    assert tree.group(path) == group
    assert tree.groups([path, path, "z"]) == [group, "z"]


def test_sizes_count_arrays_and_shapes():
    shapes = jax.eval_shape(lambda: TREE)
    assert tree.size(TREE) == tree.size(shapes) == 16
    assert tree.nbytes(TREE) == tree.nbytes(shapes) == 12 * 4 + 4 * 2


def test_a_table_joins_equal_groups_and_shapes():
    assert tree.table(TREE) == [
        ("backbone/blocks/*/kernel", 2, "2x3", 12, 48),
        ("head/bias", 1, "4", 4, 8),
    ]
