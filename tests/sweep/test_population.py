"""Cells that are trained together come to what each comes to alone."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, evaluate, model, optim, sharding, step, tasks, tree
from dynadapt.sweep.population import Population
from tests import devices
from tests import population_cells as tiny
from tests.population_cells import cell

pytestmark = pytest.mark.usefixtures("fast_compiling")

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("iconformer", "adapter_x", "vfm_adapter", "lora", "ssf")
STEPS = 20

# They differ in all that may differ, and cells 0 and 2 share a seed.
CELLS = (
    cell(seed=0, lr=1e-3, scale=1.0, steps=20, classes=5),
    cell(seed=3, lr=3e-3, weight_decay=0.0, drop_path=0.0, scale=0.2, steps=25, classes=8),
    cell(seed=0, lr=2e-3, weight_decay=0.05, drop_path=0.3, scale=3.0, steps=40, classes=3),
)


def alone(config, bare, given, data, steps):
    """The losses of a single run with the values of a cell as constants, and its metrics."""
    c = config.copy_and_resolve_references()
    c.seed = given["seed"]
    c.optim.update({k: given[k] for k in ("lr", "weight_decay", "drop_path")})
    if "scale" in c.adapter:
        c.adapter.scale = given["scale"]
    task = tasks.from_config(c.task, tiny.info(given["classes"]))
    network = model.build(c, task, tiny.spec(), bare)
    graph, train, stats, frozen = model.split(network, c)
    optimizer = optim.make(c.optim, given["steps"], train, model.layers(c))
    # The step takes its state's arrays away, and some methods train the bare backbone's own.
    state = step.initial_state(jax.tree.map(jnp.copy, train), stats, optimizer, c)
    run = step.make_step(graph, task, optimizer, c)
    key = jax.random.fold_in(jax.random.key(c.seed), 3)
    losses = []
    for number in range(steps):
        rows = tiny.rows([c.seed], number)[0]
        batch = {name: x[rows] for name, x in data.items()}
        batch |= dict(index=rows.astype(np.int32), mask=np.ones(len(rows), np.float32))
        state, logs = run(state, frozen, batch, key)
        losses.append(float(logs["loss"]))
    test, mesh = evaluate.make_step(graph, task, c), sharding.make_mesh()
    batches = tiny.batches(data)
    return losses, evaluate.evaluate(test, task, step.best(state), frozen, batches, mesh)


def form(method, scan):
    marks = {("iconformer", False): (), ("adapter_x", True): pytest.mark.slow}
    marks |= {("lora", False): pytest.mark.slow}
    return pytest.param(method, scan, marks=marks.get((method, scan), pytest.mark.exhaustive))


FORMS = [form(method, scan) for method in METHODS for scan in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scan"), FORMS)
def test_together_as_alone(method, scan):
    config, data = tiny.settings(method, scan=scan), tiny.examples()
    programs, bare = tiny.population(config, len(CELLS))
    state, losses = tiny.trained(programs, CELLS, data, STEPS)
    values = programs.evaluate(state, tiny.batches(data), programs.hyper(CELLS))
    for number, given in enumerate(CELLS):
        wanted, metrics = alone(config, bare, given, data, STEPS)
        assert wanted[-1] < wanted[0] - 0.01
        np.testing.assert_allclose(losses[:, number], wanted, atol=1e-4, rtol=0)
        assert values[number]["examples"] == tiny.EXAMPLES
        assert values[number]["loss"] == pytest.approx(metrics["loss"], abs=1e-4)
        assert abs(values[number]["top1"] - metrics["top1"]) <= 100 / tiny.EXAMPLES
    # All that differs has an effect.
    assert len({round(float(x), 3) for x in losses[-1]}) == len(CELLS)


@pytest.fixture(scope="module")
def lora():
    """The programs for three cells of lora, which many tests share."""
    return tiny.population(tiny.settings("lora"), 3)[0]


@pytest.mark.slow
def test_one_program_for_all_cells(lora):
    data = tiny.examples()
    for seeds, lr, classes, steps in (((0, 1, 2), 1e-3, 3, 9), ((4, 4, 7), 3e-2, 8, 31)):
        cells = [cell(s, lr, steps=steps, classes=classes, scale=lr, drop_path=lr) for s in seeds]
        state, _ = tiny.trained(lora, cells, data, 3)
        lora.evaluate(state, tiny.batches(data), lora.hyper(cells))
        # A state that was kept on disk is of numpy.
        state = lora.put(jax.device_get(state))
        seeds = [c["seed"] for c in cells]
        placed, rows = lora.put_data(data), tiny.rows(seeds, 3)
        lora.step(state, placed, rows, lora.keys(seeds), lora.hyper(cells))
    assert lora.step_program._cache_size() == 1
    assert lora.test_program._cache_size() == 1


@pytest.mark.parametrize("method", [m for m in adapters.names() if m != "dapt"])
def test_no_trained_leaf_is_weakly_typed(method):
    """The first step would be compiled for weak types, and the second one for its strong ones."""
    config = tiny.settings(method)
    task = tasks.from_config(config.task, tiny.info(4))
    network = model.abstract(config, task, tiny.spec())
    leaves = tree.leaves(model.split(network, config).train)
    assert leaves and [p for p, x in leaves.items() if x.weak_type] == []


@pytest.mark.slow
def test_one_copy_of_the_frozen_half():
    """The bytes that a step is given: the frozen half once, all else once a cell."""
    config = tiny.settings("lora", dim=32)
    found = {}
    for size in (2, 4):
        programs, bare = tiny.population(config, size)
        shapes = {tuple(x.shape) for x in jax.tree.leaves(nnx.state(bare))}
        assert {tuple(x.shape) for x in jax.tree.leaves(programs.frozen)} <= shapes
        cells = [cell(seed, 1e-3) for seed in range(size)]
        hyper, seeds = programs.hyper(cells), range(size)
        state, data = programs.start(seeds, hyper), programs.put_data(tiny.examples())
        rows = jnp.asarray(tiny.rows(seeds, 0), jnp.int32)
        given = (state, programs.frozen, data, rows, programs.keys(seeds), hyper)
        compiled = programs.step_program.lower(*given).compile()
        frozen = tree.nbytes(programs.frozen)
        each = sum(x.nbytes for x in jax.tree.leaves((state, rows, hyper))) / size
        key = 8
        found[size] = compiled.memory_analysis().argument_size_in_bytes
        # The tables of pointers to what is given are small.
        want = frozen + size * (each + key) + sum(x.nbytes for x in data.values())
        assert want <= found[size] <= want + 4096
    assert frozen > 4096 + 2 * (each + key)
    assert abs(found[4] - found[2] - 2 * (each + key)) < 4096


def test_no_program_has_a_frozen_half_of_its_own():
    config = tiny.settings("lora")
    bare = model.loaded_backbone(config)
    pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(nnx.state(bare))}
    for classes in (4, 8):
        task = tasks.from_config(config.task, tiny.info(classes))
        frozen = jax.tree.leaves(Population(config, task, tiny.spec(), bare, 2).frozen)
        assert {x.unsafe_buffer_pointer() for x in frozen} <= pointers


@pytest.mark.slow
def test_classes_that_a_task_lacks_are_never_predicted(lora):
    """Not even by a head that favours them beyond all measure."""
    data, cells = tiny.examples(), [cell(s, 1e-2, classes=5) for s in range(3)]
    state, _ = tiny.trained(lora, cells, data, 10)
    kept = jax.tree.map(lambda x: x[1], step.best(state))
    one = kept["train"]

    def favoured(path, x):
        return x.at[5:].set(1e6) if path == "head/linear/bias" else x

    biased = tree.map_leaves(favoured, one)
    assert float(tree.leaves(biased)["head/linear/bias"][6]) == 1e6
    test = evaluate.pure_step(lora.graph, lora.task, lora.config)
    for leaves in (one, biased):
        answers = set()
        for batch in tiny.batches(data):
            hyper = dict(classes=jnp.float32(5), scale=jnp.float32(1))
            given = {**kept, "train": leaves}
            rows, found = test(given, lora.frozen, batch, hyper)
            answers |= set(np.asarray(found["classes"])[:, 0].tolist())
            assert np.isfinite(rows["loss"]).all()
        assert answers and max(answers) < 5
    # What was never in reach was never trained.
    kernel = np.asarray(tree.leaves(one)["head/linear/kernel"])
    assert np.abs(kernel[:, :3]).max() > 0 and not kernel[:, 5:].any()


def test_a_cell_that_diverges_does_so_alone(lora):
    data, cells = tiny.examples(), [cell(s, 3e-3) for s in (0, 1, 2)]
    _, wanted = tiny.trained(lora, cells, data, 8)
    cells[1] = cell(1, 1e30)
    state, losses = tiny.trained(lora, cells, data, 8)
    bad = jax.device_get(state["bad"]["step"])
    assert bad[1] > 0 and bad[0] == bad[2] == -1
    assert not losses[-1, 1] < 1e6
    for number in (0, 2):
        np.testing.assert_array_equal(losses[:, number], wanted[:, number])
    values = lora.evaluate(state, tiny.batches(data), lora.hyper(cells))
    assert all(np.isfinite(values[number]["loss"]) for number in (0, 2))


def test_the_start_is_that_of_the_seed(lora):
    """Cells of one seed start alike, and as a single run of that seed does."""
    state = lora.start([4, 2, 4], lora.hyper([cell(s, 1e-3) for s in (4, 2, 4)]))
    config = lora.config.copy_and_resolve_references()
    config.seed = 2
    network = model.build(config, lora.task, tiny.spec())
    single = tree.leaves(model.split(network, config).train)
    for path, x in tree.leaves(state["train"]).items():
        np.testing.assert_array_equal(x[0], x[2], err_msg=path)
        np.testing.assert_array_equal(x[1], single[path], err_msg=path)
    assert any((x[0] != x[1]).any() for x in jax.tree.leaves(state["train"]))


@pytest.mark.slow
def test_methods_without_a_fixed_scale_get_none():
    config = tiny.settings("ssf")
    programs, _ = tiny.population(config, 2)
    cells = [cell(0, 1e-3), cell(1, 1e-3)]
    for one in cells:
        del one["scale"]
    assert set(programs.hyper(cells)) == {"lr", "weight_decay", "drop_path", "steps", "classes"}
    _, losses = tiny.trained(programs, cells, tiny.examples(), 2)
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_eight_devices_are_as_one():
    command = [sys.executable, "-m", "tests.population_cells"]
    done = subprocess.run(command, env=devices.eight(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, wanted = json.loads(done.stdout), tiny.eight()
    assert (found["devices"], wanted["devices"]) == (8, jax.device_count())
    assert found["frozen_whole"] and found["programs"] == [1, 1]
    for shape, part in found["train"].values():
        assert shape[0] == 8 and part == [1, *shape[1:]]
    np.testing.assert_allclose(found["losses"], wanted["losses"], atol=1e-5, rtol=0)
    for one, other in zip(found["values"], wanted["values"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
