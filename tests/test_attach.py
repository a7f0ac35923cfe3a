import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.attach import (
    Adapted,
    Chain,
    Shared,
    adapted,
    all_or_nothing,
    attach,
    detach,
    lent,
    sites,
)
from dynadapt.context import Context, fold
from dynadapt.errors import AttachError

DIM = 4
MLP = r"blocks/\d+/mlp"


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.dim = DIM
        self.fc = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x, ctx):
        return jnp.tanh(self.fc(x))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.mlp = Mlp(rngs)

    def __call__(self, x, ctx):
        return x + self.mlp(x, ctx)


class Network(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.blocks = nnx.List([Block(rngs) for _ in range(3)])
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)

    def __call__(self, x, ctx):
        return self.norm(fold(self.blocks, x, ctx))


class Scaled(nnx.Module):
    """Adds a multiple of the input to the bare answer."""

    def __init__(self, host, factor):
        self.factor = nnx.Param(jnp.full((1, 1, host.dim), factor))

    def __call__(self, host, x, ctx):
        return host.bare(x, ctx) + self.factor[...] * x


class Powered(nnx.Module):
    """A function of the bare answer, so that order tells."""

    def __init__(self, host, factor):
        self.factor, self.width = nnx.Param(jnp.asarray(factor)), host.dim

    def __call__(self, host, x, ctx):
        return self.factor[...] * host.bare(x, ctx) ** 2


X = np.random.default_rng(1).normal(size=(2, 5, DIM)).astype(np.float32)


def paths(network):
    return list(tree.leaves(nnx.state(network)))


def classes(network):
    return [(path, type(m)) for path, m in nnx.iter_modules(network)]


def test_sites_are_found_by_their_whole_path():
    network = Network()
    assert [p for p, _ in sites(network, MLP)] == [f"blocks/{i}/mlp" for i in range(3)]
    assert [p for p, _ in sites(network, "blocks/1/mlp")] == ["blocks/1/mlp"]
    assert sites(network, "blocks/./ml") == sites(network, "mlp") == []
    assert sites(network, "")[0][1] is network


def test_every_matching_host_gets_an_adapter_of_its_own():
    network = Network()
    hosts = []
    attach(network, MLP, lambda host: hosts.append(host) or Scaled(host, 2.0))
    assert [p for p, _ in adapted(network)] == [f"blocks/{i}/mlp" for i in range(3)]
    assert [h for _, h in adapted(network)] == hosts
    assert len({id(h.adapter) for h in hosts}) == 3
    assert all(isinstance(h, Mlp) and isinstance(h, Adapted) for h in hosts)


def test_a_call_goes_through_the_adapter_and_bare_does_not():
    network, ctx = Network(), Context()
    host = network.blocks[0].mlp
    before = host(X, ctx)
    attach(network, "blocks/0/mlp", lambda host: Scaled(host, 2.0))
    np.testing.assert_allclose(host(X, ctx), before + 2 * X, rtol=1e-6)
    np.testing.assert_array_equal(host.bare(X, ctx), before)
    np.testing.assert_array_equal(host(X, ctx=ctx), host(X, ctx))


def test_base_paths_never_move_and_new_ones_hold_adapter():
    network = Network()
    before = paths(network)
    values = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(network)).items()}
    attach(network, MLP, lambda host: Scaled(host, 2.0))
    after = tree.leaves(nnx.state(network))
    assert [p for p in after if "adapter" not in p.split("/")] == before
    new = sorted(set(after) - set(before))
    assert new == [f"blocks/{i}/mlp/adapter/factor" for i in range(3)]
    for path, value in values.items():
        np.testing.assert_array_equal(after[path], value)


def test_a_pattern_that_matches_nothing_names_the_nearest_paths():
    network = Network()
    graph = nnx.graphdef(network)
    with pytest.raises(
        AttachError, match=re.escape(r"pattern 'blocks/*/mpl' matches no")
    ) as caught:
        attach(network, "blocks/*/mpl", lambda host: Scaled(host, 1.0))
    assert "did you mean 'blocks/*/mlp'" in str(caught.value)
    assert nnx.graphdef(network) == graph


def test_a_host_that_has_an_adapter_is_refused_before_anything_changes():
    network = Network()
    attach(network, "blocks/1/mlp", lambda host: Scaled(host, 1.0))
    graph = nnx.graphdef(network)
    with pytest.raises(AttachError, match="'blocks/1/mlp' already has an adapter; .* Chain"):
        attach(network, MLP, lambda host: Scaled(host, 1.0))
    assert nnx.graphdef(network) == graph
    attach(network, "", lambda host: Shared(host, nnx.Linear(DIM, DIM, rngs=nnx.Rngs(0))))
    with pytest.raises(AttachError, match="'the model' already has an adapter"):
        attach(network, "", lambda host: Scaled(host, 1.0))


def test_an_adapter_that_cannot_be_made_leaves_the_model_as_it_was():
    network = Network()
    graph, made = nnx.graphdef(network), []

    def make(host):
        made.append(host)
        if len(made) == 2:
            raise AttachError("no second one")
        return Scaled(host, 1.0)

    with pytest.raises(AttachError):
        attach(network, MLP, make)
    assert nnx.graphdef(network) == graph


def test_it_never_walks_into_an_adapter():
    class Nested(nnx.Module):
        def __init__(self, host):
            self.blocks = nnx.List([Block(nnx.Rngs(5))])

        def __call__(self, host, x, ctx):
            return host.bare(x, ctx) + self.blocks[0].mlp(x, ctx)

    network = Network()
    attach(network, "blocks/0/mlp", Nested)
    found = [p for p, _ in sites(network, r"(.*/)?mlp")]
    assert found == [f"blocks/{i}/mlp" for i in range(3)]
    with pytest.raises(AttachError, match="matches no module"):
        attach(network, r".*adapter.*", lambda host: Scaled(host, 1.0))
    attach(network, r"blocks/[12]/mlp", lambda host: Scaled(host, 1.0))
    detach(network)
    assert not adapted(network)


def test_hosts_inside_hosts():
    network = Network()
    attach(network, MLP, lambda host: Scaled(host, 0.5))
    attach(network, "", lambda host: Shared(host, nnx.Linear(DIM, DIM, rngs=nnx.Rngs(0))))
    assert len(adapted(network)) == 4
    detach(network)
    assert nnx.graphdef(network) == nnx.graphdef(Network())


@pytest.mark.parametrize("rounds", [1, 2])
def test_detach_is_exact(rounds):
    network, ctx = Network(), Context()
    graph, kinds, answer = nnx.graphdef(network), classes(network), network(X, ctx)
    attributes = {p: set(vars(m)) for p, m in nnx.iter_modules(network)}
    for _ in range(rounds):
        attach(network, MLP, lambda host: Chain(Scaled(host, 2.0), Powered(host, 3.0)))
        assert not np.allclose(network(X, ctx), answer)
        detach(network)
    assert classes(network) == kinds
    assert {p: set(vars(m)) for p, m in nnx.iter_modules(network)} == attributes
    assert nnx.graphdef(network) == graph and hash(nnx.graphdef(network)) == hash(graph)
    assert jax.tree.structure(network) == jax.tree.structure(Network())
    np.testing.assert_array_equal(network(X, ctx), answer)
    detach(network)
    assert nnx.graphdef(network) == graph


def test_a_chain_equals_composition_by_hand():
    network, ctx = Network(), Context()
    host = network.blocks[0].mlp
    bare = np.asarray(host(X, ctx))
    one = Chain(Scaled(host, 2.0), Powered(host, 3.0))
    other = Chain(Powered(host, 3.0), Scaled(host, 2.0))
    attach(network, "blocks/0/mlp", lambda host: one)
    np.testing.assert_allclose(host(X, ctx), 3 * bare**2 + 2 * X, rtol=1e-5)
    detach(network)
    attach(network, "blocks/0/mlp", lambda host: other)
    np.testing.assert_allclose(host(X, ctx), 3 * (bare + 2 * X) ** 2, rtol=1e-5)
    assert [p for p in paths(network) if "adapter" in p] == [
        "blocks/0/mlp/adapter/adapters/0/factor",
        "blocks/0/mlp/adapter/adapters/1/factor",
    ]


def test_a_chain_of_three_and_of_none():
    network, ctx = Network(), Context()
    host = network.blocks[0].mlp
    bare = np.asarray(host(X, ctx))
    attach(network, "blocks/0/mlp", lambda h: Chain(*(Scaled(h, f) for f in (1.0, 2.0, 4.0))))
    np.testing.assert_allclose(host(X, ctx), bare + 7 * X, rtol=1e-5)
    detach(network)
    attach(network, "blocks/0/mlp", lambda host: Chain())
    np.testing.assert_array_equal(host(X, ctx), bare)


def test_in_a_chain_the_host_still_shows_its_parts():
    class Reader(nnx.Module):
        def __call__(self, host, x, ctx):
            return host.bare(x, ctx) + host.fc(x) * host.dim

    network, ctx = Network(), Context()
    host = network.blocks[0].mlp
    wanted = host(X, ctx) + host.fc(X) * DIM + 2 * X
    attach(network, "blocks/0/mlp", lambda host: Chain(Reader(), Scaled(host, 2.0)))
    np.testing.assert_allclose(host(X, ctx), wanted, rtol=1e-5)


class Borrower(nnx.Module):
    def __call__(self, host, x, ctx):
        return host.bare(x, ctx) + lent(ctx, nnx.Linear)(x)


def test_shared_lends_one_copy_to_every_layer():
    network, ctx = Network(), Context()
    attach(network, MLP, lambda host: Borrower())
    common = nnx.Linear(DIM, DIM, rngs=nnx.Rngs(4))
    attach(network, "", lambda host: Shared(host, common))
    assert [p for p in paths(network) if "adapter" in p] == [
        "adapter/module/bias",
        "adapter/module/kernel",
    ]
    x = X
    for block in network.blocks:
        x = x + jnp.tanh(block.mlp.fc(x)) + common(x)
    np.testing.assert_allclose(network(X, ctx), network.norm(x), rtol=1e-5, atol=1e-6)
    assert ctx.shared == {}

    graph, state = nnx.split(network)
    gradient = jax.grad(lambda s: (nnx.merge(graph, s)(X, Context()) * X).sum())(state)
    assert np.abs(gradient["adapter"]["module"]["kernel"][...]).max() > 0


class Scale(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.asarray(3.0))


def test_each_of_several_lenders_is_found_by_its_class():
    class Both(nnx.Module):
        def __call__(self, host, x, ctx):
            return host.bare(x, ctx) + lent(ctx, Scale).scale[...] * lent(ctx, nnx.Linear)(x)

    common = nnx.Linear(DIM, DIM, rngs=nnx.Rngs(4))
    for first, second in ((common, Scale()), (Scale(), common)):
        network = Network()
        attach(network, MLP, lambda host: Both())
        chain = [Shared(network, first), Shared(network, second)]
        attach(network, "", lambda host, chain=chain: Chain(*chain))
        x = X
        for block in network.blocks:
            x = x + jnp.tanh(block.mlp.fc(x)) + 3 * common(x)
        np.testing.assert_allclose(network(X, Context()), network.norm(x), rtol=1e-5, atol=1e-6)


def test_what_no_one_lends_or_two_lend_is_refused():
    network = Network()
    attach(network, MLP, lambda host: Borrower())
    with pytest.raises(AttachError, match="uses the Linear that its backbone lends; call it as a"):
        network(X, Context())
    pair = [Shared(network, nnx.Linear(DIM, DIM, rngs=nnx.Rngs(n))) for n in range(2)]
    attach(network, "", lambda host: Chain(*pair))
    with pytest.raises(AttachError, match="two adapters on the root lend a Linear"):
        network(X, Context())


class Rewired(nnx.Module):
    """Calls a part of its host and never asks for the bare answer."""

    def __call__(self, host, x, ctx):
        return 2 * host.fc(x)


@pytest.mark.parametrize("form", [dict(), dict(remat="full"), dict(scan=True)])
def test_what_stands_behind_a_rewired_host_is_not_dropped_in_silence(form):
    network = Network()
    attach(network, MLP, lambda host: Chain(Powered(host, 3.0), Rewired(), Scaled(host, 1.0)))
    message = "Rewired never asks for the bare answer, so Scaled behind it .*; put Rewired last"
    with pytest.raises(AttachError, match=message):
        jax.eval_shape(lambda n, x: fold(n.blocks, x, Context(), **form), network, X)
    detach(network)
    attach(network, MLP, lambda host: Chain(Scaled(host, 1.0), Rewired()))
    host = network.blocks[0].mlp
    np.testing.assert_allclose(host(X, Context()), 2 * host.fc(X) + X, rtol=1e-5)


def test_all_or_nothing_keeps_what_was_there_before():
    network = Network()
    attach(network, "blocks/0/mlp", lambda host: Scaled(host, 2.0))
    first, graph, kinds = network.blocks[0].mlp.adapter, nnx.graphdef(network), classes(network)
    with pytest.raises(KeyError), all_or_nothing(network):
        attach(network, "blocks/[12]", lambda host: Borrower())
        attach(network, "blocks/1/mlp", lambda host: Scaled(host, 1.0))
        network.blocks[0].mlp.adapter = Chain(first, Scaled(network.blocks[0].mlp, 1.0))
        raise KeyError
    assert network.blocks[0].mlp.adapter is first
    assert nnx.graphdef(network) == graph and classes(network) == kinds
    with all_or_nothing(network):
        attach(network, "blocks/1/mlp", lambda host: Scaled(host, 1.0))
    assert [path for path, _ in adapted(network)] == ["blocks/0/mlp", "blocks/1/mlp"]


def test_split_and_merge_keep_swapped_classes():
    network = Network()
    attach(network, MLP, lambda host: Scaled(host, 2.0))
    graph, state = nnx.split(network)
    merged = nnx.merge(graph, state)
    assert classes(merged) == classes(network)
    assert [p for p, _ in adapted(merged)] == [p for p, _ in adapted(network)]
    np.testing.assert_array_equal(merged(X, Context()), network(X, Context()))
    detach(merged)
    assert nnx.graphdef(merged) == nnx.graphdef(Network())
    assert adapted(network)


def test_equal_models_share_one_compilation():
    traces = []

    @jax.jit
    def run(network, x):
        traces.append(1)
        return network(x, Context())

    def make(seed):
        network = Network(seed)
        attach(network, MLP, lambda host: Scaled(host, float(seed)))
        return network

    answers = [run(make(seed), X) for seed in (1, 2, 3)]
    assert len(traces) == 1
    assert not np.allclose(answers[0], answers[1])
    bare = Network(1)
    run(bare, X)
    assert len(traces) == 2
    attach(bare, MLP, lambda host: Scaled(host, 1.0))
    np.testing.assert_allclose(run(bare, X), answers[0], rtol=1e-6)
    detach(bare)
    run(bare, X)
    assert len(traces) == 2
    graphs = [nnx.graphdef(make(seed)) for seed in (1, 2)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


def test_a_generated_class_is_made_once_and_named_after_the_host():
    one, two = Network(), Network()
    for network in (one, two):
        attach(network, MLP, lambda host: Scaled(host, 2.0))
    assert type(one.blocks[0].mlp) is type(two.blocks[2].mlp)
    assert type(one.blocks[0].mlp).__name__ == "AdaptedMlp"
