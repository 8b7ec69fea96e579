"""An encoder and a decoder that learn a distribution: variational autoencoders.

Kingma and Welling 2014, arXiv:1312.6114; by label Sohn, Lee and Yan 2015. The same
update serves images and architectures: what is decoded is up to the networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxnas.base import Array, PyTree
from jaxnas.checks import expect
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.tasks import elbo
from jaxnas.training import TrainState, init_state, init_variables, make_update


class Examples(NamedTuple):
    """What an autoencoder learns from."""

    x: PyTree  # [N, ...]
    condition: Array | None = None  # [N, ...], what encoder and decoder are told
    target: Array | None = None  # float32[N], what is predicted
    known: Array | None = None  # float32[N], weights of the targets; 0: there is none


class Vae(NamedTuple):
    """Functions that make an autoencoder; the networks and likelihood are inside."""

    init: Callable[[Array, Examples], TrainState]
    update: Callable[[Array, TrainState, Examples], tuple[TrainState, dict]]
    # key, state, x, condition -> the bound in nats and its divergence, float32[N] each
    bound: Callable[[Array, TrainState, PyTree, PyTree], tuple[Array, Array]]
    # state, x, condition -> mean and log variance float32[N, L] of the latent
    encode: Callable[[TrainState, PyTree, PyTree], tuple[Array, Array]]
    decode: Callable[[TrainState, Array, PyTree], PyTree]  # state, z, condition
    predict: Callable[[TrainState, Array], Array]  # state, z -> float32[N]


def vae(
    network: Autoencoder,
    log_likelihood: Callable[[PyTree, PyTree], Array],
    tx: optax.GradientTransformation,
    *,
    beta: float = 1.0,
    predictor_weight: float = 1.0,
) -> Vae:
    """Makes a variational autoencoder, whose loss is the negative bound in nats.

    With a predictor, half of the squared error of the targets is added.

    Args:
      network: encoder, decoder and predictor.
      log_likelihood: of what the decoder gives and x, in nats: float32[N].
      tx: the optimizer.
      beta: weight of the divergence, 0 or more; 1 is the bound.
      predictor_weight: of the squared error, 0 or more.

    Raises:
      InputError: a number is too small.
    """
    expect(0, beta=beta, predictor_weight=predictor_weight)

    def loss_fn(params, batch_stats, key, batch: Examples):
        evidence, updated = network.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.x,
            batch.condition,
            train=True,
            rngs={"sample": key},
            mutable=["batch_stats"],
        )
        bound, divergence = elbo(log_likelihood, evidence, batch.x, beta)
        loss = -bound.mean()
        metrics = {"bound": (bound + (beta - 1) * divergence).mean()}
        metrics["divergence"] = divergence.mean()
        if evidence.predicted is not None and batch.target is not None:
            known = jnp.ones_like(bound) if batch.known is None else batch.known
            errors = known * jnp.square(evidence.predicted - batch.target)
            metrics["error"] = errors.sum() / jnp.maximum(known.sum(), 1)
            loss += predictor_weight * metrics["error"] / 2
        return loss, (updated.get("batch_stats", {}), metrics)

    def init(key: Array, examples: Examples) -> TrainState:
        given = examples.x, examples.condition
        variables = init_variables(network, key, *given, train=True)
        return init_state(variables, tx)

    def bound(key: Array, state: TrainState, x: PyTree, condition: PyTree = None):
        rngs = {"sample": key}
        evidence: Any = network.apply(state.variables, x, condition, rngs=rngs)
        return elbo(log_likelihood, evidence, x)

    def encode(state: TrainState, x: PyTree, condition: PyTree = None):
        return network.apply(state.variables, x, condition, method="encode")

    def decode(state: TrainState, z: Array, condition: PyTree = None):
        return network.apply(state.variables, z, condition, method="decode")

    def predict(state: TrainState, z: Array) -> Array:
        said: Any = network.apply(state.variables, z, method="predict")
        return said

    return Vae(init, make_update(loss_fn, tx), bound, encode, decode, predict)
