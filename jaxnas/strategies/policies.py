"""Distributions over architectures with parameters to be learnt.

No strategy itself: what `reinforce` draws from, and whatever else learns to draw.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import Array, InputError, PyTree
from jaxnas.checks import expect
from jaxnas.encoding import choices_exist

NEVER = -1e30  # the logit of a choice that does not exist: finite, as its gradient


class Policy(NamedTuple):
    """How to draw raw architectures, valid by choices but maybe not for the space."""

    init: Callable[[Array], PyTree]  # key -> params
    sample: Callable[[Array, PyTree], Array]  # key, params -> int32[D]
    mode: Callable[[PyTree], Array]  # -> int32[D], the likeliest choice one by one
    score: Callable[[PyTree, Array], tuple[Array, Array]]  # -> log_prob[], entropy[]
    defaults: dict[str, float]  # arguments of `reinforce` that suit it


def independent(num_choices: Sequence[int]) -> Policy:
    """Makes the policy of a logit for each choice: float32[D, K], zeros at first.

    The entropy, in nats, is exact. As in the code of NAS-Bench-201 (Dong and Yang 2020,
    arXiv:2001.00326) and with its decay of the baseline, but from zeros, where it has
    small random logits.
    """
    is_choice = choices_exist(num_choices)

    def sample(key: Array, logits: Array) -> Array:
        return _draw(jax.random.gumbel(key, logits.shape), logits, is_choice)

    def mode(logits: Array) -> Array:
        return _draw(jnp.zeros(()), logits, is_choice)

    def score(logits: Array, arch: Array) -> tuple[Array, Array]:
        log_prob, entropy = _score(logits, arch, is_choice)
        return log_prob.sum(), entropy.sum()

    return Policy(
        init=lambda key: jnp.zeros(is_choice.shape),
        sample=sample,
        mode=mode,
        score=score,
        defaults=dict(learning_rate=0.1, baseline_decay=0.9, entropy_weight=0.1),
    )


def lstm(
    num_choices: Sequence[int],
    *,
    hidden_size: int = 100,
    temperature: float = 5.0,
    tanh_constant: float = 2.5,
) -> Policy:
    """Makes the controller of ENAS (Pham et al. 2018, arXiv:1802.03268).

    An LSTM of one layer reads the previous choice and gives logits for the next, after
    Zoph and Le 2017, arXiv:1611.01578. Each decision has an embedding and an output
    layer of its own. Parameters start uniform in [-0.1, 0.1]. The entropy, in nats,
    is that of each choice given those before it, summed along the architecture. The
    defaults for `reinforce` are the learning rate of the paper, and the decay of the
    baseline and weight of the entropy of its code.

    Args:
      num_choices: D numbers.
      hidden_size: of the LSTM and of the embeddings.
      temperature: by which logits are divided.
      tanh_constant: the range that they are then squashed into.

    Raises:
      InputError: hidden_size is below 1; temperature or tanh_constant is not above 0.
    """
    expect(1, hidden_size=hidden_size)
    expect(1e-6, temperature=temperature, tanh_constant=tanh_constant)
    is_choice = choices_exist(num_choices)
    num_decisions, most = is_choice.shape
    shapes = {
        "start": (hidden_size,),
        "cell": (2 * hidden_size, 4 * hidden_size),
        "embedding": (num_decisions, most, hidden_size),
        "output": (num_decisions, hidden_size, most),
    }

    def init(key: Array) -> dict[str, Array]:
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.uniform(key, shape, minval=-0.1, maxval=0.1)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def unroll(params, choose, given):
        """Runs along the decisions; choose(logits[K], given[d], is_choice[d])."""

        def decide(carry, xs):
            inputs, memory, hidden = carry
            embedding, output, given, is_choice = xs
            gates = jnp.concatenate([inputs, hidden]) @ params["cell"]
            keep, add, new, show = jnp.split(gates, 4)
            memory = jax.nn.sigmoid(keep) * memory
            memory = memory + jax.nn.sigmoid(add) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(show) * jnp.tanh(memory)
            logits = tanh_constant * jnp.tanh(hidden @ output / temperature)
            choice, y = choose(logits, given, is_choice)
            return (embedding[choice], memory, hidden), y

        zeros = jnp.zeros(hidden_size)
        xs = params["embedding"], params["output"], given, is_choice
        return jax.lax.scan(decide, (params["start"], zeros, zeros), xs)[1]

    def decode(params: dict[str, Array], noise: Array) -> Array:
        def choose(logits, noise, is_choice):
            choice = _draw(noise, logits, is_choice)
            return choice, choice

        return unroll(params, choose, noise)

    def sample(key: Array, params: dict[str, Array]) -> Array:
        return decode(params, jax.random.gumbel(key, is_choice.shape))

    def mode(params: dict[str, Array]) -> Array:
        return decode(params, jnp.zeros(is_choice.shape))

    def score(params: dict[str, Array], arch: Array) -> tuple[Array, Array]:
        def choose(logits, choice, is_choice):
            return choice, _score(logits, choice, is_choice)

        log_prob, entropy = unroll(params, choose, arch)
        return log_prob.sum(), entropy.sum()

    published = dict(learning_rate=3.5e-4, baseline_decay=0.99, entropy_weight=1e-4)
    return Policy(init, sample, mode, score, published)


POLICIES: dict[str, Callable[[Sequence[int]], Policy]] = {
    "independent": independent,
    "lstm": lstm,
}


def make_policy(policy: str | Policy, num_choices: Sequence[int]) -> Policy:
    """Makes the policy of a name; one that is a value already stays.

    Raises:
      InputError: there is none of this name.
    """
    if not isinstance(policy, str):
        return policy
    if policy not in POLICIES:
        raise InputError(
            f"expected a policy of {', '.join(POLICIES)}, but got {policy}: name one"
        )
    return POLICIES[policy](num_choices)


def _draw(noise: Array, logits: Array, is_choice: Array) -> Array:
    """Draws int32[...] by Gumbel noise [..., K]."""
    noisy = jnp.where(is_choice, logits + noise, NEVER)
    return jnp.argmax(noisy, -1).astype(jnp.int32)


def _score(logits: Array, choice: Array, is_choice: Array) -> tuple[Array, Array]:
    """The log-probability of int32[...] and the entropy, float32[...] each."""
    log_probs = jax.nn.log_softmax(jnp.where(is_choice, logits, NEVER))
    log_prob = jnp.take_along_axis(log_probs, choice[..., None], -1)[..., 0]
    return log_prob, -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
