"""Search by generators: what it finds, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import OK, Evaluator, Feedback, InputError
from jaxnas.generators.arch_gan import arch_gan
from jaxnas.generators.arch_vae import arch_vae
from jaxnas.search import incumbent, search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.gan_search import gan_search
from jaxnas.strategies.latent_search import latent_search
from jaxnas.strategies.random_search import random_search
from jaxnas.surrogates.gp import gp

SPACE = categorical((4,) * 6)
BEST = jnp.array([3, 0, 2, 1, 1, 3])
KEYS = jax.random.split(jax.random.key(0), 6)
QUERIES = 50


def evaluate(key, data, state, proposal):
    fitness = (proposal.arch == BEST[None]).sum(1).astype(jnp.float32)
    status = jnp.full(fitness.shape, OK)
    return state, Feedback(fitness, jnp.ones_like(fitness), status, {})


EVALUATOR = Evaluator((), lambda key: (), evaluate)


def best_of(strategy):
    """The mean over the seeds of how much of the best architecture is found."""
    run = jax.jit(lambda keys: search(keys, strategy, EVALUATOR, QUERIES // 5))
    _, log = run(KEYS)
    found = jax.vmap(incumbent, 1)(log)
    return log, float((found == BEST[None]).sum(1).mean())


def expect_no_repetition(log):
    """After those drawn at random nothing is asked that was asked before."""
    for archs in np.asarray(log.proposal.arch).swapaxes(0, 1):
        drawn, chosen = set(map(bytes, archs[:2].reshape(-1, 6))), archs[2:]
        chosen = [bytes(one) for one in chosen.reshape(-1, 6)]
        assert len(set(chosen)) == len(chosen)
        assert not drawn & set(chosen)


@pytest.fixture(scope="module")
def by_chance():
    return best_of(random_search(SPACE, batch_size=5))[-1]


@pytest.mark.parametrize(
    ("chooser", "is_told"),
    [
        ("evolution", False),
        pytest.param("reinforcement", True, marks=pytest.mark.slow),
    ],
)
def test_gan_search_beats_chance(by_chance, chooser, is_told):
    made = arch_gan(SPACE, width=32, num_pretrain=0, num_updates=100)
    model = gp(SPACE, num_starts=1, num_updates=5) if is_told else None
    strategy = gan_search(SPACE, made, model, chooser=chooser, num_queries=QUERIES)
    log, found = best_of(strategy)
    assert found > by_chance + 0.25
    expect_no_repetition(log)


@pytest.mark.parametrize(
    "moves", [pytest.param("gradient", marks=pytest.mark.slow), "bayesian"]
)
def test_latent_search_finds_the_best(moves):
    made = arch_vae(SPACE, width=32, num_pretrain=500, num_updates=30)
    model = gp(SPACE, encoding="latent", num_starts=1, num_updates=5)
    given = made, model if moves == "bayesian" else None
    log, found = best_of(latent_search(SPACE, *given, num_queries=QUERIES))
    assert found > 5.5
    expect_no_repetition(log)


def test_bad_arguments_are_one_line():
    made, other = arch_vae(SPACE), arch_gan(SPACE)
    with pytest.raises(InputError, match="expected a chooser of random, evolution"):
        gan_search(SPACE, other, chooser="best")
    with pytest.raises(InputError, match="expected moves of prior, gradient, bayesian"):
        latent_search(SPACE, made, moves="jump")
    with pytest.raises(InputError, match="expected a surrogate of latents for bayes"):
        latent_search(SPACE, made, moves="bayesian")
    with pytest.raises(InputError, match="expected no surrogate for the moves prior"):
        latent_search(SPACE, made, gp(SPACE, encoding="latent"), moves="prior")
    with pytest.raises(InputError, match="expected a generator with an encoder"):
        latent_search(SPACE, other)
    for strategy in (gan_search, latent_search):
        with pytest.raises(InputError, match="expected a generator of space"):
            strategy(categorical((2, 3)), made)
