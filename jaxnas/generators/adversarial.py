"""Two networks that learn from each other: generative adversarial networks.

Goodfellow et al. 2014, arXiv:1406.2661. The same update serves images and
architectures: what is generated is up to the networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import Array, InputError, PyTree
from jaxnas.checks import expect, expect_one_of
from jaxnas.training import TrainState, init_state, init_variables, make_update


class AdversarialLoss(NamedTuple):
    """What the two learn by, of the discriminator's outputs float32[N]; both -> []."""

    discriminator: Callable[[Array, Array], Array]  # of real, of generated examples
    generator: Callable[[Array], Array]  # of generated examples
    clip: float | None = None  # bound of the discriminator's parameters
    penalty: float = 0.0  # weight of the gradient penalty


def _vanilla(real: Array, fake: Array) -> Array:
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def _least_squares(real: Array, fake: Array) -> Array:
    return (jnp.square(real - 1).mean() + jnp.square(fake).mean()) / 2


def _wasserstein(real: Array, fake: Array) -> Array:
    return fake.mean() - real.mean()


LOSSES = {
    "vanilla": AdversarialLoss(_vanilla, lambda fake: jax.nn.softplus(-fake).mean()),
    "lsgan": AdversarialLoss(
        _least_squares, lambda fake: jnp.square(fake - 1).mean() / 2
    ),
    "wgan": AdversarialLoss(_wasserstein, lambda fake: -fake.mean(), clip=0.01),
    "wgan_gp": AdversarialLoss(_wasserstein, lambda fake: -fake.mean(), penalty=10.0),
}
"""Every loss by name, with its paper's numbers.

`vanilla`: binary cross entropy in nats, the generator's not saturating (Goodfellow et
al. 2014). `lsgan`: least squares (Mao et al. 2017, arXiv:1611.04076). `wgan`: the
Wasserstein distance, parameters clipped (Arjovsky, Chintala and Bottou 2017,
arXiv:1701.07875). `wgan_gp`: the same, gradients penalised (Gulrajani et al. 2017,
arXiv:1704.00028).
"""


class GanState(NamedTuple):
    """Both networks in training."""

    generator: TrainState
    discriminator: TrainState


class Gan(NamedTuple):
    """Functions that make a GAN; the networks and losses are inside."""

    init: Callable[[Array, PyTree, PyTree], GanState]  # key, x[N, ...], condition
    # key, state, x[N, ...], condition of each -> state, metrics
    update: Callable[[Array, GanState, PyTree, PyTree], tuple[GanState, dict]]
    # key, state, z float32[N, L], condition -> x[N, ...]
    generate: Callable[[Array, GanState, Array, PyTree], PyTree]
    # state, x[N, ...], condition -> float32[N], higher: more like the real ones
    score: Callable[[GanState, PyTree, PyTree], Array]


def gan(
    generator: Any,
    discriminator: Any,
    loss: str,
    tx: optax.GradientTransformation,
    *,
    num_latent: int,
    critic_steps: int = 1,
    tx_discriminator: optax.GradientTransformation | None = None,
) -> Gan:
    """Makes a GAN of two Linen modules.

    Both are called with `(inputs, condition, train)`; the generator's inputs are
    z float32[N, L], normal, and it may draw from the stream "sample". A condition is
    None or an array [N, ...] of what both are told of each example.

    Args:
      generator: gives x, a tree of arrays [N, ...].
      discriminator: gives float32[N] of x.
      loss: of `LOSSES`.
      tx: the optimizer of each; schedules count each network's own updates.
      num_latent: L, 1 or more.
      critic_steps: updates of the discriminator for each one of the generator, all on
        batches of their own: x is [critic_steps N, ...]. 5 is usual for `wgan`s.
      tx_discriminator: that of the discriminator, where it is another.

    Raises:
      InputError: a number is too small, or there is no such loss; by `init`, the loss
        has a penalty and the discriminator batch norm; by `update`, as it is traced,
        the examples are no multiple of critic_steps.
    """
    expect(1, num_latent=num_latent, critic_steps=critic_steps)
    expect_one_of("a loss", loss, LOSSES)
    chosen = LOSSES[loss]
    tx_discriminator = tx_discriminator or tx
    if chosen.clip is not None:
        tx_discriminator = optax.chain(tx_discriminator, clip(chosen.clip))

    def generate(variables, key, z, condition):
        return _apply(generator, variables, z, condition, rngs={"sample": key})

    def generator_loss(params, batch_stats, key, batch):
        condition, variables, size = batch
        key_z, key_sample = jax.random.split(key)
        z = jax.random.normal(key_z, (size, num_latent))
        own = {"params": params, "batch_stats": batch_stats}
        x, batch_stats = generate(own, key_sample, z, condition)
        outputs, _ = _apply(discriminator, variables, x, condition)
        return chosen.generator(outputs), (batch_stats, {})

    def discriminator_loss(params, batch_stats, key, batch):
        real, fake, condition = batch

        def judge(x, batch_stats):
            own = {"params": params, "batch_stats": batch_stats}
            return _apply(discriminator, own, x, condition)

        first = batch_stats
        of_real, batch_stats = judge(real, first)
        # Batch norms go on from the real ones; the weights are the same for both.
        first = _carried(first, batch_stats)
        of_fake, batch_stats = judge(fake, first)
        total = chosen.discriminator(of_real, of_fake)
        if chosen.penalty:
            slope = gradient_penalty(lambda x: judge(x, first)[0], key, real, fake)
            total += chosen.penalty * slope
        metrics = {"real": of_real.mean(), "fake": of_fake.mean()}
        return total, (batch_stats, metrics)

    update_generator = make_update(generator_loss, tx)
    update_discriminator = make_update(discriminator_loss, tx_discriminator)

    def init(key: Array, x: PyTree, condition: PyTree = None) -> GanState:
        size = len(jax.tree.leaves(x)[0])
        key_generator, key_discriminator = jax.random.split(key)
        z = jnp.zeros((size, num_latent))
        first = init_variables(generator, key_generator, z, condition, train=True)
        second = init_variables(
            discriminator, key_discriminator, x, condition, train=True
        )
        leaves = jax.tree_util.tree_leaves_with_path(second.get("batch_stats", {}))
        if chosen.penalty and any(_is_of_batch(path) for path, _ in leaves):
            raise InputError(
                f"expected a discriminator without batch norm for {loss}, which "
                "penalises each example's own gradient, but got one with it: normalise "
                "by layer or not at all"
            )
        return GanState(init_state(first, tx), init_state(second, tx_discriminator))

    def update(key: Array, state: GanState, x: PyTree, condition: PyTree = None):
        player, critic = state
        count = len(jax.tree.leaves(x)[0])
        size, left = divmod(count, critic_steps)
        if left or not size:
            raise InputError(
                f"expected examples in a multiple of {critic_steps} (critic_steps), "
                f"but got {count}: change the size of the batch"
            )
        keys = jax.random.split(key, (critic_steps + 1, 3))
        metrics: dict[str, Array] = {}
        for i in range(critic_steps):
            real, told = _part(i, size, (x, condition))
            z = jax.random.normal(keys[i, 0], (size, num_latent))
            fake, _ = generate(player.variables, keys[i, 1], z, told)
            batch = real, jax.lax.stop_gradient(fake), told
            critic, metrics = update_discriminator(keys[i, 2], critic, batch)
        batch = _part(0, size, condition), critic.variables, size
        player, own = update_generator(keys[-1, 0], player, batch)
        metrics = {
            "discriminator_loss": metrics.pop("loss"),
            "generator_loss": own["loss"],
            **metrics,
        }
        return GanState(player, critic), metrics

    def sample(key: Array, state: GanState, z: Array, condition: PyTree = None):
        rngs = {"sample": key}
        return generator.apply(state.generator.variables, z, condition, rngs=rngs)

    def score(state: GanState, x: PyTree, condition: PyTree = None) -> Array:
        return discriminator.apply(state.discriminator.variables, x, condition)

    return Gan(init, update, sample, score)


def _is_of_batch(path: tuple) -> bool:
    """Whether a leaf of `batch_stats` is of a batch norm; others are of weights."""
    return path[-1].key in ("mean", "var")


def _carried(before: PyTree, after: PyTree) -> PyTree:
    """The statistics before an example was seen, but for those of batch norms.

    So that spectral norm, whose power iteration moves at each call, takes one step.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, old, new: new if _is_of_batch(path) else old, before, after
    )


def _part(i: int, size: int, tree: PyTree) -> PyTree:
    """The i-th so many rows."""
    return jax.tree.map(lambda leaf: leaf[i * size : (i + 1) * size], tree)


def _apply(network, variables, x, condition, **kwargs):
    """The outputs in training, and the new statistics."""
    kwargs |= {"train": True, "mutable": ["batch_stats"]}
    outputs, updated = network.apply(variables, x, condition, **kwargs)
    return outputs, updated.get("batch_stats", {})


def gradient_penalty(
    function: Callable[[PyTree], Array], key: Array, real: PyTree, fake: PyTree
) -> Array:
    """How far the gradient's length is from 1, squared: float32[], the mean.

    At points drawn evenly between each real example and a generated one (Gulrajani et
    al. 2017, arXiv:1704.00028, equation 3).

    Args:
      function: x[N, ...] -> float32[N], of each example by itself.
      key: PRNG key.
      real: x[N, ...].
      fake: x[N, ...].
    """
    count = len(jax.tree.leaves(real)[0])
    part = jax.random.uniform(key, (count,))

    def between(one, other):
        by = part.reshape(-1, *[1] * (one.ndim - 1))
        return by * one + (1 - by) * other

    middle = jax.tree.map(between, real, fake)
    slopes = jax.grad(lambda x: function(x).sum())(middle)
    squares = [
        jnp.square(leaf).reshape(count, -1).sum(1) for leaf in jax.tree.leaves(slopes)
    ]
    total = sum(squares, jnp.zeros(count))
    # Of a slope of 0 the root has no gradient, and where would then take a NaN.
    length = jnp.sqrt(jnp.maximum(total, 1e-12))
    return jnp.square(length - 1).mean()


def clip(bound: float) -> optax.GradientTransformation:
    """Keeps every parameter in [-bound, bound], as the last of a chain."""

    def update(updates, state, params=None):
        kept = jax.tree.map(
            lambda u, p: jnp.clip(p + u, -bound, bound) - p, updates, params
        )
        return kept, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
