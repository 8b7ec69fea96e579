"""Generators of architectures: what they learn from, and how good what they draw is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import Generator, History, InputError
from jaxnas.encoding import LAYOUTS, is_valid, layout, one_hot
from jaxnas.generation import draw_architectures, quality
from jaxnas.generators import GENERATORS
from jaxnas.generators.arch_gan import arch_gan
from jaxnas.generators.arch_vae import ENCODERS, arch_vae
from jaxnas.generators.examples import draw_told, learn, rank_weights
from jaxnas.metrics import kendall_tau
from jaxnas.nn.architectures import KINDS, Reader, Writer, straight_through
from jaxnas.spaces import SPACES

KEY = jax.random.key(0)


def every_of(space):
    grid = np.indices(space.num_choices).reshape(len(space.num_choices), -1)
    return jnp.array(grid.T, jnp.int32)


def history_of(arch, fitness, known=None):
    known = jnp.ones(len(arch), bool) if known is None else jnp.array(known)
    return History(arch, jnp.where(known, jnp.float32(fitness), 0.0), known)


def test_weights_are_by_rank():
    fitness = [3.0, 9.0, 5.0, 7.0]
    known = [True, False, True, True]
    found = rank_weights(history_of(jnp.zeros((4, 2), jnp.int32), fitness, known), 0.5)
    raw = np.array([1 / (1.5 + 2), 0, 1 / (1.5 + 1), 1 / 1.5])
    np.testing.assert_allclose(found, raw / raw.sum(), rtol=1e-6)


def test_weights_of_nothing_are_0():
    nobody = history_of(jnp.zeros((3, 2), jnp.int32), [1.0, 2, 3], [False] * 3)
    assert (rank_weights(nobody, 0.1) == 0).all()


def test_draws_are_as_often_as_their_weights():
    weights = jnp.array([0.5, 0.0, 0.2, 0.3])
    history = history_of(jnp.zeros((4, 1), jnp.int32), [0.0] * 4)
    places = np.asarray(draw_told(KEY, history, weights, 20_000))
    counts = np.bincount(places, minlength=4) / 20_000
    np.testing.assert_allclose(counts, weights, atol=0.015)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("space_name", ["nasbench101", "nasbench201", "darts"])
def test_layouts_have_every_decision_once(space_name, name):
    space = SPACES[space_name]()
    grid = np.ravel(layout(space, name))
    assert sorted(grid[grid >= 0]) == list(range(len(space.num_choices)))


def test_layouts_are_where_edges_lead():
    assert layout(SPACES["nasbench201"](), "adjacency") == (
        (0, -1, -1),
        (1, 2, -1),
        (3, 4, 5),
    )
    tree = layout(SPACES["nasbench101"](), "tree")
    # Of the first inner vertex its one edge and what it does; the output does nothing.
    assert tree[0][:2] == (0, 21)
    assert len(tree) == 6
    assert sum(place >= 0 for place in tree[-1]) == 6


def test_space_without_graphs_has_a_sequence_alone():
    space = SPACES["chain"]((8, 8, 1))
    assert layout(space, "sequence") == (tuple(range(len(space.num_choices))),)
    with pytest.raises(InputError, match="but got chain: choose sequence"):
        layout(space, "tree")


def test_straight_through_draws_choices_and_has_the_slope_of_the_softmax():
    logits = jax.random.normal(KEY, (3, 2, 4))
    exists = jnp.array([[True] * 4, [True, True, False, False]])

    def soft(logits):
        noisy = logits + jax.random.gumbel(KEY, logits.shape)
        return jax.nn.softmax(jnp.where(exists[None], noisy, -1e9) / 0.5)

    found, pull = jax.vjp(lambda x: straight_through(KEY, x, exists, 0.5), logits)
    np.testing.assert_allclose(found.max(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.argmax(-1), soft(logits).argmax(-1))
    assert (found[:, 1, 2:] == 0).all()
    cotangent = jax.random.normal(jax.random.key(1), found.shape)
    expected = jax.vjp(soft, logits)[1](cotangent)[0]
    np.testing.assert_allclose(pull(cotangent)[0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_decision_is_read_and_written(kind):
    """By a matrix, whose places are the hardest to keep in order."""
    space = SPACES["nasbench201"]()
    grid = layout(space, "adjacency")
    reader = Reader(grid, kind, 8, 1)
    arch = space.sample(KEY)
    x = one_hot(arch, space.num_choices)[None]
    params = reader.init(KEY, x)
    slope = jax.grad(lambda x: (reader.apply(params, x) ** 2).sum())(x)
    assert (np.abs(slope[0]).max(-1) > 0).all()
    writer = Writer(grid, space.num_choices, kind, 8, 1)
    z = jax.random.normal(KEY, (2, 3))
    params = writer.init(KEY, z)
    logits, one = writer.apply(params, z), writer.apply(params, z[1:])
    assert logits.shape == (2, 6, 5)
    np.testing.assert_allclose(logits[1:], one, atol=1e-6)
    assert len({row.tobytes() for row in np.asarray(logits[0])}) == 6


@functools.cache
def fitted_vae(encoder):
    """On all architectures of a space of 5^6, each worth the number of its 3s."""
    space = SPACES["nasbench201"]()
    made = arch_vae(space, encoder=encoder, width=64, num_pretrain=1000)
    arch = jax.vmap(space.sample)(jax.random.split(KEY, 64))
    history = history_of(arch, (arch == 3).sum(1))
    state = jax.jit(made.init)(KEY, history)
    for i in range(4):
        state = jax.jit(made.fit)(jax.random.key(i), state, history)
    return space, made, state


@pytest.mark.parametrize("encoder", ENCODERS)
def test_autoencoder_gives_architectures_back(encoder):
    found = quality(KEY, *fitted_vae(encoder), np.zeros((0, 6)), 200, 200)
    assert found.reconstruction > 0.95
    assert found.validity == 1  # as every choice is an architecture there


def test_predictor_ranks_what_it_has_not_seen():
    space, made, state = fitted_vae("sequence")
    arch = jax.vmap(space.sample)(jax.random.split(jax.random.key(9), 200))
    said = made.predict(state, made.encode(state, arch))
    assert kendall_tau(said, (arch == 3).sum(1)) > 0.6


def test_equal_architectures_have_equal_scores():
    space, made, state = fitted_vae("sequence")
    arch = jnp.tile(space.sample(KEY)[None], (3, 1))
    assert np.ptp(made.score(state, arch)) < 1e-4


def test_generator_that_was_not_fitted_is_not_judged(tiny_space):
    made = arch_gan(tiny_space, num_pretrain=0, width=4)
    state = made.init(KEY, history_of(every_of(tiny_space), [0.0] * 24))
    with pytest.raises(InputError, match="expected a generator that was fitted"):
        quality(KEY, tiny_space, made, state, np.zeros((0, 3)))


def test_what_is_not_finite_is_not_learnt():
    def update(key, state, batch):
        return state * jnp.where(batch > 0, jnp.inf, 2.0), {}

    start = jnp.ones(3)
    found = [learn(KEY, start, update, lambda key, x=x: x, 3) for x in (0, 1)]
    np.testing.assert_array_equal(found, [[8.0] * 3, [1.0] * 3])


def test_score_of_an_autoencoder_is_a_bound_of_a_probability():
    space, made, state = fitted_vae("sequence")
    arch = jax.vmap(space.sample)(jax.random.split(jax.random.key(9), 200))
    # There are 5^6, drawn alike; most of a batch came from there.
    assert -25 < made.score(state, arch).mean() < np.log(5.0**-6) + 3


def test_adversarial_generator_draws_what_was_best(tiny_space):
    made = arch_gan(tiny_space, width=32, num_pretrain=200, num_updates=400)
    arch = every_of(tiny_space)
    history = history_of(arch, -(arch != jnp.array([[2, 1, 3]])).sum(1))
    state = jax.jit(made.init)(KEY, history)
    before, after = (
        np.asarray(draw_architectures(KEY, tiny_space, made, one, 500))
        for one in (state, jax.jit(made.fit)(KEY, state, history))
    )
    alike = [np.mean(one == [2, 1, 3]) for one in (before, after)]
    weights = np.asarray(rank_weights(history, 0.01))
    told = np.mean(np.asarray(arch) == [2, 1, 3], 1) @ weights
    assert alike[0] < 0.45
    assert alike[1] == pytest.approx(told, abs=0.15)
    assert told > 0.6


def constant(space, logits):
    """A generator of the same logits for every latent."""
    return Generator(
        space.num_choices,
        2,
        lambda key, history: (),
        lambda key, state, history: state,
        lambda state, z: jnp.broadcast_to(logits[None], (len(z), *logits.shape)),
        lambda state, arch: jnp.zeros(len(arch)),
    )


def test_validity_of_even_draws_is_the_part_of_a_space_that_is_valid():
    space = SPACES["nasbench101"]()
    made = constant(space, jnp.zeros((26, 3)))
    found = quality(KEY, space, made, (), np.zeros((0, 26)), 5000)
    assert found.validity == pytest.approx(0.73, abs=0.02)
    # All differ, but after pruning many are the same.
    assert 0.2 < found.uniqueness < 0.5
    assert found.novelty == 1
    assert np.isnan(found.reconstruction)
    assert not found.collapsed


def test_generator_that_draws_one_architecture_has_collapsed(tiny_space):
    arch = jnp.array([2, 1, 3])
    made = constant(tiny_space, 100 * one_hot(arch, tiny_space.num_choices))
    found = quality(KEY, tiny_space, made, (), arch[None], 100)
    assert found.collapsed
    assert found.uniqueness == pytest.approx(0.01)
    assert found.novelty == 0


def test_isomorphic_samples_are_one():
    space = SPACES["nasbench201"]()
    made = constant(space, jnp.zeros((6, 5)))
    found = quality(KEY, space, made, (), np.zeros((0, 6)), 10_000)
    # Of 5^6 cells 6,466 differ (Dong and Yang 2020); so many draws find most of them.
    assert found.uniqueness == pytest.approx(0.36, abs=0.02)
    one = space.from_string("|none~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|none~2|")
    nothing = space.from_string("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    made = constant(space, 100 * one_hot(one, space.num_choices))
    assert quality(KEY, space, made, (), nothing[None], 100).novelty == 0


def test_repaired_draws_are_valid():
    space = SPACES["nasbench101"]()
    made = constant(space, jnp.zeros((26, 3)))
    drawn = draw_architectures(KEY, space, made, (), 300)
    assert jax.vmap(lambda one: is_valid(space, one))(drawn).all()


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_latent": 0}, "expected num_latent of 1 or more, but got 0"),
        ({"network": "deep"}, "expected a network of dense, convolutional, recurrent"),
        ({"encoding": "graph"}, "expected an encoding of sequence, adjacency, tree"),
        ({"sharpness": 0}, "expected sharpness of 1e-06 or more, but got 0"),
    ],
)
def test_bad_arguments_are_one_line(tiny_space, name, given, said):
    with pytest.raises(InputError, match=said):
        GENERATORS[name](tiny_space, **given)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_that_was_not_fitted_says_so(tiny_space, name):
    made = GENERATORS[name](tiny_space, num_pretrain=0, width=4)
    state = made.init(KEY, history_of(every_of(tiny_space), [0.0] * 24))
    arch, z = tiny_space.sample(KEY)[None], jnp.zeros((1, made.num_latent))
    asked = [(made.decode, z), (made.score, arch)]
    if made.encode:
        asked += [(made.encode, arch), (made.predict, z)]
    for function, given in asked:
        with pytest.raises(InputError, match="expected a generator that was fitted"):
            function(state, given)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_that_never_learns_is_refused(tiny_space, name):
    with pytest.raises(InputError, match="but got 0 for both"):
        GENERATORS[name](tiny_space, num_pretrain=0, num_updates=0)


def test_generator_of_another_space_is_refused(tiny_space):
    made = arch_gan(tiny_space, width=4)
    with pytest.raises(InputError, match="expected a generator of space nasbench201"):
        quality(KEY, SPACES["nasbench201"](), made, (), np.zeros((0, 6)))
