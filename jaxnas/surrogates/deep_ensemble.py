"""What surrogates share that are ensembles of networks.

Members differ by their first weights and by how often they see each point, as if all
were drawn with replacement (Lakshminarayanan, Pritzel and Blundell 2017,
arXiv:1612.01474; Breiman 1996). How far apart they are says how sure the ensemble is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Array, History, PyTree, SearchSpace, Surrogate
from jaxnas.checks import expect
from jaxnas.surrogates.linalg import one_by_one
from jaxnas.targets import (
    Scale,
    check_targets,
    prediction,
    to_fitness,
    to_targets,
    usable,
)
from jaxnas.training import TrainState, init_state, init_variables, make_update


class EnsembleState(NamedTuple):
    """E networks, and what their outputs mean."""

    training: TrainState  # leaves [E, ...]
    counts: Array  # float32[E, N], how often each learns from each point
    scale: Scale


def deep_ensemble(
    space: SearchSpace,
    network: Any,
    encode: Callable[[Array], PyTree],
    *,
    targets: str,
    num_members: int,
    num_updates: int,
    learning_rate: float,
    weight_decay: float,
) -> Surrogate:
    """Makes the surrogate of networks that map an encoded architecture to a float[1].

    Each `fit` goes on from the last with so many updates of AdamW, on all that is known
    at once.

    Raises:
      InputError: a number is too small, or the targets are none of `TARGETS`.
    """
    expect(2, num_members=num_members)
    expect(0, num_updates=num_updates, learning_rate=learning_rate)
    expect(0, weight_decay=weight_decay)
    check_targets(targets)

    def output(params: PyTree, encoded: PyTree) -> Array:
        return jax.vmap(lambda x: network.apply({"params": params}, x)[0])(encoded)

    def loss_fn(params, batch_stats, key, batch):
        del key
        encoded, y, counts = batch
        errors = counts * (output(params, encoded) - y) ** 2
        return errors.sum() / jnp.maximum(counts.sum(), 1), (batch_stats, {})

    def optimizer(rates):
        learning_rate, weight_decay = rates
        return optax.adamw(learning_rate, weight_decay=weight_decay)

    rates = jnp.asarray(learning_rate), jnp.asarray(weight_decay)  # may be traced

    def init(key: Array, history: History) -> EnsembleState:
        example = encode(history.arch[0])

        def start(key):
            variables = init_variables(network, key, example)
            return init_state(variables, optimizer(rates))

        training = jax.vmap(start)(jax.random.split(key, num_members))
        shape = num_members, len(history.known)
        counts = jax.random.poisson(jax.random.fold_in(key, num_members), 1.0, shape)
        scale = to_targets(usable(history), targets)[1]
        return EnsembleState(training, counts.astype(jnp.float32), scale)

    @one_by_one  # one ensemble stays in a core's cache, many do not
    def learn_all(key, rates, training, batch):
        encoded, y, counts = batch
        update = make_update(loss_fn, optimizer(rates))

        def learned(training, counts):
            def descend(_, training):
                return update(key, training, (encoded, y, counts))[0]

            return lax.fori_loop(0, num_updates, descend, training)

        return jax.vmap(learned)(training, counts)

    def fit(key: Array, state: EnsembleState, history: History) -> EnsembleState:
        history = usable(history)
        y, scale = to_targets(history, targets)
        encoded = jax.vmap(encode)(history.arch)

        batch = encoded, y, state.counts * history.known[None]
        training = learn_all(key, rates, state.training, batch)
        return state._replace(training=training, scale=scale)

    def members(state: EnsembleState, arch: Array) -> Array:
        """What each says: float32[E, M]."""
        encoded = jax.vmap(encode)(arch)
        return jax.vmap(output, (0, None))(state.training.params, encoded)

    def predict(state: EnsembleState, arch: Array) -> tuple[Array, Array]:
        said = members(state, arch)
        return prediction(state.scale, said.mean(0), said.std(0))

    def sample(key: Array, state: EnsembleState, arch: Array) -> Array:
        which = jax.random.randint(key, (), 0, num_members)
        one = jax.tree.map(lambda leaf: leaf[which], state.training.params)
        return to_fitness(state.scale, output(one, jax.vmap(encode)(arch)))

    return Surrogate(init, fit, predict, sample)
