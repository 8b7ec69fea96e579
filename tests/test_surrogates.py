"""What holds for every surrogate; a new one needs a line of small settings at most."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau
from trees import to_numpy

from jaxnas.base import Graph, History, InputError
from jaxnas.encoding import one_hot
from jaxnas.metrics import kendall_tau
from jaxnas.nn.graph_network import GraphNetwork
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.surrogates import SURROGATES

SPACE = categorical((3, 2, 4, 3))
N, M, KNOWN = 24, 16, 18
SMALL = {
    "ensemble": {"widths": (16,), "num_members": 3, "num_updates": 60},
    # Of several starts that are as likely, the last bit would choose.
    "gp": {"num_starts": 1, "num_updates": 5},
    "graph_predictor": {
        "width": 8,
        "layers": 2,
        "num_members": 2,
        "num_updates": 60,
    },
    "random_forest": {"num_trees": 10},
    "svm": {"num_bags": 4},
}
EVERY = pytest.mark.parametrize("name", SURROGATES, scope="module")
KEYS = jax.random.split(jax.random.key(3), 2)
WORTH = np.random.default_rng(0).normal(size=(4, 4))


def drawn(seed, count):
    return jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(seed), count))


def fitness_of(arch):
    return np.float32(70 + 5 * WORTH[np.arange(4), np.asarray(arch)].sum(1))


def history_of(seed=0, known=KNOWN, hidden=-np.inf):
    arch, is_known = drawn(seed, N), jnp.arange(N) < known
    return History(arch, jnp.where(is_known, fitness_of(arch), hidden), is_known)


WANTED = drawn(99, M)


@functools.cache
def programs(name):
    """The surrogate, its traces, and compiled: state and answers of a fit."""
    model, traced = SURROGATES[name](SPACE, **SMALL.get(name, {})), []

    def fit(key, state, history):
        traced.append(name)
        return model.fit(key, state, history)

    def answers(key, state):
        return (*model.predict(state, WANTED), model.sample(key, state, WANTED))

    def learned(key, history):
        state = model.fit(key, model.init(key, history), history)
        return state, answers(key, state)

    counted = model._replace(fit=fit)
    return counted, traced, jax.jit(learned), answers


def assert_close(found, expected, name, unit=1.0):
    # Of a compiled program the last bit differs; libsvm and L-BFGS make much of it.
    atol = unit * (2e-2 if name in ("gp", "svm") else 2e-3)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=atol)


@EVERY
def test_state_keeps_its_structure(name):
    model, *_ = programs(name)

    def fit(key, history):
        state = model.init(key, history)
        return state, model.fit(key, state, history)

    first, fitted = jax.eval_shape(fit, KEYS[0], history_of())
    assert jax.tree.structure(first) == jax.tree.structure(fitted)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(fitted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.weak_type == other.weak_type


@EVERY
def test_answers_have_a_number_for_each_architecture(name):
    _, _, learned, _ = programs(name)
    state, answers = learned(KEYS[0], history_of())
    for answer in answers:
        assert (answer.shape, answer.dtype) == ((M,), jnp.float32)
        assert np.isfinite(answer).all()
    assert (np.asarray(answers[1]) >= 0).all()
    for leaf in jax.tree.leaves(state):
        assert not np.isnan(to_numpy(leaf)).any()


@EVERY
def test_seeds_side_by_side_give_what_each_gives(name):
    *_, learned, _ = programs(name)
    histories = [history_of(0), history_of(1)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *histories)
    _, together = jax.jit(jax.vmap(learned))(KEYS, batch)
    for i, history in enumerate(histories):
        _, alone = learned(KEYS[i], history)
        assert_close([part[i] for part in together], alone, name, unit=5)


@EVERY
def test_growing_history_is_fitted_in_one_trace(name):
    model, traced, _, answers = programs(name)
    history = history_of()

    def step(state, number):
        seen = history.known & (jnp.arange(N) < 6 * number)
        key = jax.random.fold_in(KEYS[0], number)
        state = model.fit(key, state, history._replace(known=seen))
        return state, answers(key, state)

    state = model.init(KEYS[0], history)
    traced.clear()
    _, found = jax.lax.scan(step, state, jnp.arange(4))
    assert len(traced) == 1
    by_step, traced_before = jax.jit(step), len(traced)
    for number in range(4):
        state, expected = by_step(state, jnp.int32(number))
        # The factor of a draw jumps where rounding asks for more jitter.
        moments = [part[number] for part in found[:2]]
        assert_close(moments, expected[:2], name, unit=5)
    assert len(traced) == traced_before + 1


@EVERY
@pytest.mark.parametrize("hidden", [np.nan, 1e30])
def test_what_is_not_known_changes_nothing(name, hidden):
    *_, learned, _ = programs(name)
    history, other = history_of(), history_of(hidden=hidden)
    arch = jnp.where(other.known[:, None], other.arch, 0)
    _, expected = learned(KEYS[0], history)
    _, found = learned(KEYS[0], other._replace(arch=arch))
    assert_close(found, expected, name)


@EVERY
@pytest.mark.parametrize("known", [0, 1, 2, N])
@pytest.mark.parametrize("equal", [False, True])
def test_answers_are_finite_whatever_is_known(name, known, equal):
    *_, learned, _ = programs(name)
    history = history_of(known=known)
    if equal:
        fitness = jnp.where(history.known, jnp.float32(71.3), -jnp.inf)
        arch = jnp.broadcast_to(history.arch[:1], history.arch.shape)
        history = history._replace(fitness=fitness, arch=arch)
    state, answers = learned(KEYS[0], history)
    assert np.isfinite(answers).all()
    for leaf in jax.tree.leaves(state):
        assert not np.isnan(to_numpy(leaf)).any()
    if equal and known:
        np.testing.assert_allclose(answers[0], 71.3, rtol=1e-5)


@EVERY
def test_what_can_be_learned_is_ranked(name):
    *_, learned, _ = programs(name)
    truth = fitness_of(WANTED)
    _, (mean, _, draw) = learned(KEYS[0], history_of(known=N))
    assert kendall_tau(mean, jnp.array(truth)) > 0.5
    assert kendalltau(mean, truth).statistic > 0.5
    # In the unit of the fitness: better than to say the mean of all.
    spread = np.abs(truth - truth.mean()).mean()
    assert np.abs(mean - truth).mean() < spread
    assert np.abs(draw - truth).mean() < 3 * spread


def test_graphs_are_learned_where_the_space_has_them():
    space = nasbench201()
    model = SURROGATES["graph_predictor"](space, **SMALL["graph_predictor"])
    arch = jax.vmap(space.sample)(jax.random.split(KEYS[0], 40))
    fitness = (arch == 3).sum(1).astype(jnp.float32)
    known = jnp.arange(40) < 30

    @jax.jit
    def predicted(history):
        state = model.fit(KEYS[0], model.init(KEYS[0], history), history)
        return model.predict(state, history.arch)[0]

    mean = predicted(History(arch, fitness, known))
    assert kendall_tau(mean, fitness, ~known) > 0.5


def test_graph_network_is_a_loop_over_vertices():
    """Two inner vertices of two operations, and one that leads nowhere."""
    rng, width, vertices = np.random.default_rng(1), 3, 5
    edges = np.zeros((2, vertices, vertices), np.float32)
    for cell, pairs in enumerate([[(0, 1), (0, 2), (1, 4), (2, 4)], [(0, 1), (1, 4)]]):
        for source, target in pairs:
            edges[cell, source, target] = 1
    ops = np.zeros((2, vertices, 2), np.float32)
    ops[0, 1, 0] = ops[0, 2, 1] = ops[1, 1, 1] = 1
    network = GraphNetwork(width, layers=1)
    graph = Graph(jnp.array(ops), jnp.array(edges))
    params = network.init(jax.random.key(0), graph)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)

    def dense(number, x):
        layer = params[f"Dense_{number}"]
        return x @ layer["kernel"] + layer["bias"]

    means = []
    for cell in range(2):
        x = [np.array([*ops[cell, v], v == 0, v == vertices - 1]) for v in range(5)]
        found = []
        for v in range(vertices):
            if not x[v].any():
                continue
            both = []
            for number, there in enumerate((edges[cell][v], edges[cell][:, v])):
                near = [v, *np.flatnonzero(there)]
                total = sum(dense(number, x[other]) for other in near)
                both.append(np.maximum(total / len(near), 0))
            found.append(sum(both) / 2)
        means.append(np.mean(found, 0))
    # The last layer is made before the one that it is applied to.
    expected = dense(2, np.maximum(dense(3, np.concatenate(means)), 0))[0]
    found = network.apply({"params": params}, graph)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_hamming_kernel_looks_at_decisions_alone():
    """Which other choice a decision makes is one to it, as sizes of steps are not."""
    model = SURROGATES["gp"](SPACE, kernel="hamming", num_updates=0, num_starts=1)
    arch = jnp.zeros((N, 4), jnp.int32)
    known = jnp.arange(N) < 1
    history = History(arch, jnp.ones(N), known)
    near = jnp.array([[0, 0, choice, 0] for choice in range(1, 4)])
    _, deviation = jax.jit(lambda h: model.predict(model.init(KEYS[0], h), near))(
        history
    )
    np.testing.assert_allclose(deviation, deviation[0], rtol=1e-5)
    assert one_hot(near[0], SPACE.num_choices).shape == (4, 4)


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("gp", {"kernel": "linear"}, "a kernel of rbf, .*, but got linear: choose"),
        ("gp", {"targets": "raw"}, "clipped, ranks, standard, but got raw: choose"),
        ("gp", {"encoding": "path"}, "graphs for the path encoding, but got categ"),
        ("gp", {"encoding": "tree"}, "one_hot, adjacency, path, latent, but got tree"),
        (
            "gp",
            {"kernel": "hamming", "encoding": "adjacency"},
            "one_hot for the kernel hamming, but got adjacency: change",
        ),
        ("gp", {"num_starts": 0}, "num_starts of 1 or more, but got 0: change"),
        ("gp", {"num_updates": -1}, "num_updates of 0 or more, but got -1: change"),
        ("gp", {"learning_rate": -0.1}, "learning_rate of 0 or more, but got -0.1"),
        ("ensemble", {"num_members": 1}, "num_members of 2 or more, but got 1"),
        ("ensemble", {"num_updates": -1}, "num_updates of 0 or more, but got -1"),
        ("ensemble", {"widths": (8, 0)}, "widths of 1 or more, but got 0"),
        (
            "ensemble",
            {"weight_decay": np.nan},
            "weight_decay of 0 or more, but got nan",
        ),
        ("ensemble", {"targets": "raw"}, "standard, but got raw"),
        ("ensemble", {"encoding": "path"}, "path encoding, but got categorical"),
        ("graph_predictor", {"width": 0}, "width of 1 or more, but got 0"),
        ("graph_predictor", {"layers": 0}, "layers of 1 or more, but got 0"),
        ("graph_predictor", {"num_members": 1}, "num_members of 2 or more, but got 1"),
        ("graph_predictor", {"targets": "raw"}, "standard, but got raw"),
    ],
)
def test_wrong_arguments_are_refused_at_build(name, wrong, expected):
    with pytest.raises(InputError, match=expected):
        SURROGATES[name](SPACE, **wrong)


def test_ensembles_of_several_rates_are_fitted_side_by_side():
    history = history_of()

    def predicted(rate):
        small = {"widths": (4,), "num_members": 2, "num_updates": 3}
        model = SURROGATES["ensemble"](SPACE, learning_rate=rate, **small)
        state = model.fit(KEYS[0], model.init(KEYS[1], history), history)
        return model.predict(state, WANTED)[0]

    rates = jnp.array([0.001, 0.1])
    together = jax.jit(jax.vmap(predicted))(rates)
    for rate, found in zip(rates, together, strict=True):
        np.testing.assert_allclose(found, predicted(rate), rtol=1e-4)


def test_graphs_are_not_made_of_features():
    model = SURROGATES["graph_predictor"](nasbench201(), num_updates=0)
    history = History(jnp.zeros((2, 6), jnp.int32), jnp.zeros(2), jnp.ones(2, bool))
    state = model.init(KEYS[0], history)
    with pytest.raises(InputError, match=r"architecture int32\[D\] to encode as graph"):
        model.predict(state, jnp.zeros((1, 6, 5)))
