"""Surrogates that are fitted and asked on the host, those of scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.svm import SVR

from jaxnas.base import History, InputError
from jaxnas.encoding import encoder
from jaxnas.search import host_scan
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.surrogates.on_host import LEAST, _pieces
from jaxnas.surrogates.random_forest import random_forest
from jaxnas.surrogates.svm import svm

SPACE = categorical((3, 2, 4, 3))
MAKERS = {
    "random_forest": lambda space=SPACE, **to: random_forest(
        space, **({"num_trees": 5} | to)
    ),
    "svm": lambda space=SPACE, **to: svm(space, **({"num_bags": 4} | to)),
}
EVERY = pytest.mark.parametrize("name", MAKERS)
N, KNOWN = 12, 9


def drawn(key, count=N, space=SPACE):
    return jax.vmap(space.sample)(jax.random.split(key, count))


def history_of(seed, known=KNOWN, space=SPACE):
    key_arch, key_noise = jax.random.split(jax.random.key(seed))
    arch = drawn(key_arch, space=space)
    fitness = arch[:, 0] - 0.5 * arch[:, 2] + jax.random.normal(key_noise, (N,))
    is_known = jnp.arange(N) < known
    return History(arch, jnp.where(is_known, fitness, -jnp.inf), is_known)


WANTED = drawn(jax.random.key(99), 20)
KEY = jax.random.key(7)
# Compiled, targets differ in the last bit: libsvm then stops elsewhere, within 1e-3.
TOLERANCE = {"random_forest": 1e-5, "svm": 3e-3}


def plainly(name, space, encoding, state, wanted):
    """What scikit-learn says of the targets: mean, members."""
    encode = jax.vmap(encoder(space, encoding))
    known = np.asarray(state.known)
    x, y = np.asarray(state.x)[known], np.asarray(state.target)[known]
    z, seed = np.asarray(encode(wanted)), int(state.seed)
    if name == "random_forest":
        model = RandomForestRegressor(5, random_state=seed).fit(x, y)
        return model.predict(z), np.stack([t.predict(z) for t in model.estimators_])
    bags = np.random.RandomState(seed).randint(len(x), size=(4, len(x)))
    machines = [SVR().fit(x[bag], y[bag]) for bag in bags]
    return SVR().fit(x, y).predict(z), np.stack([m.predict(z) for m in machines])


@EVERY
@pytest.mark.parametrize("space", [SPACE, nasbench201()], ids=lambda space: space.name)
def test_prediction_is_that_of_scikit_learn(name, space):
    model, history = MAKERS[name](space, targets="standard"), history_of(0, space=space)
    wanted = drawn(jax.random.key(98), 20, space)
    state = model.fit(KEY, model.init(KEY, history), history)
    encoding = "one_hot" if space is SPACE else "path"
    encoded = jax.vmap(encoder(space, encoding))(history.arch)
    np.testing.assert_array_equal(state.x, encoded)
    mean, members = plainly(name, space, encoding, state, wanted)
    fitness = np.asarray(history.fitness)[:KNOWN]
    found = model.predict(state, wanted)
    np.testing.assert_allclose(
        found[0], fitness.mean() + fitness.std() * mean, rtol=1e-4, atol=1e-5
    )
    deviation = fitness.std() * np.maximum(members.std(0), LEAST)
    np.testing.assert_allclose(found[1], deviation, rtol=1e-3, atol=1e-5)


@EVERY
def test_draw_is_a_member(name):
    model, history = MAKERS[name](targets="standard"), history_of(0)
    state = model.init(KEY, history)
    _, members = plainly(name, SPACE, "one_hot", state, WANTED)
    fitness = np.asarray(history.fitness)[:KNOWN]
    members = fitness.mean() + fitness.std() * members
    keys = jax.random.split(jax.random.key(1), 30)
    draws = jax.vmap(model.sample, (0, None, None))(keys, state, WANTED)
    apart = np.abs(np.asarray(draws)[:, None] - members[None]).max(2)
    assert (apart.min(1) < 1e-4).all()
    assert len(set(apart.argmin(1))) == len(members)
    np.testing.assert_array_equal(draws[3], model.sample(keys[3], state, WANTED))


def test_many_draws_of_a_model_fit_it_once(monkeypatch):
    fits = []
    fit = RandomForestRegressor.fit
    monkeypatch.setattr(
        RandomForestRegressor, "fit", lambda *args: fits.append(0) or fit(*args)
    )
    model = MAKERS["random_forest"]()
    state = model.init(KEY, history_of(0))
    keys = jax.random.split(KEY, 8)
    jax.block_until_ready(jax.vmap(model.sample, (0, None, None))(keys, state, WANTED))
    assert len(fits) == 1


def one_step(model, history):
    """Makes f(carry, step): more is known with each step."""

    def step(state, number):
        seen = history._replace(known=history.known & (jnp.arange(N) <= 2 * number))
        key = jax.random.fold_in(KEY, number)
        state = model.fit(key, state, seen)
        return state, (*model.predict(state, WANTED), model.sample(key, state, WANTED))

    return step


@EVERY
def test_loops_give_what_steps_alone_give(name):
    model, history = MAKERS[name](), history_of(1)
    step, start = one_step(model, history), model.init(KEY, history)
    state, expected = start, []
    for number in range(4):
        state, y = step(state, jnp.int32(number))
        expected.append(y)
    expected = [np.stack(part) for part in zip(*expected, strict=True)]
    for scan in (jax.lax.scan, host_scan):
        _, found = scan(step, start, jnp.arange(4))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=TOLERANCE[name])


@EVERY
def test_seeds_side_by_side_give_what_each_gives(name):
    model = MAKERS[name]()
    histories = [[history_of(2 * i + j) for j in range(2)] for i in range(3)]
    keys = jax.random.split(KEY, (3, 2))

    def all_of(key, history):
        state = model.init(key, history)
        return (*model.predict(state, WANTED), model.sample(key, state, WANTED))

    rows = [jax.tree.map(lambda *x: jnp.stack(x), *row) for row in histories]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    found = jax.jit(jax.vmap(jax.vmap(all_of)))(keys, batch)
    for i, row in enumerate(histories):
        for j, history in enumerate(row):
            for one, other in zip(found, all_of(keys[i, j], history), strict=True):
                np.testing.assert_allclose(
                    one[i, j], other, rtol=1e-5, atol=TOLERANCE[name]
                )


@EVERY
@pytest.mark.parametrize("targets", ["ranks", "standard"])
@pytest.mark.parametrize("known", [0, 1, 2, N])
@pytest.mark.parametrize("equal", [False, True])
def test_prediction_is_finite_whatever_is_known(name, targets, known, equal):
    model, history = MAKERS[name](targets=targets), history_of(0, known)
    if equal:
        history = history._replace(fitness=jnp.where(history.known, 3.0, -jnp.inf))
    state = model.init(KEY, history)
    mean, deviation = model.predict(state, WANTED)
    draw = model.sample(KEY, state, WANTED)
    assert np.isfinite([mean, deviation, draw]).all()
    assert (np.asarray(deviation) >= 0).all()
    if equal and known:
        np.testing.assert_allclose(mean, 3.0, rtol=1e-5)
        np.testing.assert_allclose(deviation, 0.0, atol=0.01)


@EVERY
def test_nothing_known_is_a_standard_normal(name):
    model = MAKERS[name](targets="standard")
    state = model.init(KEY, history_of(0, 0))
    mean, deviation = model.predict(state, WANTED)
    np.testing.assert_allclose(mean, 0.0, atol=1e-6)
    np.testing.assert_allclose(deviation, 1.0, rtol=1e-5)
    many = model.sample(KEY, state, jnp.tile(WANTED, (50, 1)))
    assert abs(np.mean(many)) < 0.2
    assert np.std(many) == pytest.approx(1, abs=0.1)


@EVERY
def test_what_is_not_known_changes_nothing(name):
    model, history = MAKERS[name](), history_of(0)
    other = history._replace(
        arch=jnp.where(history.known[:, None], history.arch, 0),
        fitness=jnp.where(history.known, history.fitness, jnp.nan),
    )
    one, two = (model.predict(model.init(KEY, h), WANTED) for h in (history, other))
    np.testing.assert_array_equal(one, two)


@EVERY
def test_seed_follows_from_the_key(name):
    model, history = MAKERS[name](), history_of(0)
    state = model.init(KEY, history)
    again = model.fit(KEY, model.init(jax.random.key(1), history), history)
    assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(again)))
    assert state.seed != model.init(jax.random.key(1), history).seed


def test_large_batches_come_through_a_compiled_program():
    model = MAKERS["random_forest"]()
    state = model.init(KEY, history_of(0))
    wanted = drawn(KEY, 100_000)
    mean, _ = jax.jit(model.predict)(state, wanted)
    few, _ = model.predict(state, wanted[:20])
    np.testing.assert_allclose(mean[:20], few, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("random_forest", {"num_trees": 1}, "num_trees of 2 or more, but got 1"),
        ("random_forest", {"max_features": 0.0}, "up to 1, but got 0.0"),
        ("random_forest", {"max_features": 1.5}, "up to 1, but got 1.5"),
        ("random_forest", {"min_leaf": 0}, "min_leaf of 1 or more, but got 0"),
        ("svm", {"num_bags": 1}, "num_bags of 2 or more, but got 1"),
        ("svm", {"C": 0.0}, "C above 0 .* but got 0.0"),
        ("svm", {"C": np.inf}, "a finite C above 0 .* but got inf"),
        ("svm", {"gamma": np.inf}, "gamma above 0, .* but got inf"),
        ("svm", {"epsilon": -0.1}, "epsilon of 0 or more, but got 1.0 and -0.1"),
        ("svm", {"gamma": "auto_scale"}, "one of scale, auto, but got auto_scale"),
        ("svm", {"gamma": -1.0}, "gamma above 0, .* but got -1.0"),
        ("svm", {"targets": "raw"}, "targets of clipped, ranks, standard, but got raw"),
        ("svm", {"encoding": "path"}, "graphs for the path encoding, but got cat"),
        ("random_forest", {"encoding": "tree"}, "but got tree: choose"),
    ],
)
def test_wrong_arguments_are_refused_at_build(name, wrong, expected):
    with pytest.raises(InputError, match=expected):
        MAKERS[name](**wrong)


def test_what_comes_to_the_host_is_copied_at_once():
    rows = jnp.arange(300 * 160, dtype=jnp.float32).reshape(300, 160)
    pieces = _pieces(rows)
    assert all(piece.nbytes <= 100 * 1024 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), rows)
    assert len(_pieces(jnp.zeros((2, 10**6)))) == 2
