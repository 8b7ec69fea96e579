"""What surrogates share that are fitted and asked on the host, such as scikit-learn's.

Their state is the history and a seed. A prediction fits the model and asks it in one
call of the host, so states stay arrays: they are scanned, batched and saved like any.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, History, SearchSpace, Surrogate
from jaxnas.encoding import encoder
from jaxnas.targets import (
    Scale,
    check_targets,
    prediction,
    to_fitness,
    to_targets,
    usable,
)

# XLA leaves copies of larger arrays to another thread, for which a call of the host
# would wait for ever where all are at work, as under `parallel.use_cpu_cores`.
PIECE = 2**16
LEAST = 1e-3  # deviation of targets, which themselves have one of about 1

FitPredict = Callable[
    [np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]
]
"""Fits a model and asks it, in numpy alone, for which it has no room for JAX.

x float32[n, F] with n of 1 or more, targets float32[n], what to predict float32[M, F],
seed -> mean float[M], and what each of E members of an ensemble predicts, float[E, M].
"""


class HostState(NamedTuple):
    """What a model is fitted to: N points of F features."""

    x: Array  # float32[N, F]
    target: Array  # float32[N]
    known: Array  # bool[N]
    scale: Scale
    seed: Array  # uint32[]


def on_host(
    space: SearchSpace, encoding: str | None, targets: str, fit_predict: FitPredict
) -> Surrogate:
    """Makes the surrogate of what fits and predicts on the host.

    The deviation is the members', and no less than `LEAST`; a draw is one member, drawn
    anew. Where nothing is known, targets are normal with mean 0 and deviation 1.

    Args:
      space: whose architectures are encoded.
      encoding: see `encoding.encoder`.
      targets: of `TARGETS`.
      fit_predict: a pure function; see `FitPredict`.

    Raises:
      InputError: a name is unknown, or the space has no such encoding.
    """
    check_targets(targets)
    encode = jax.vmap(encoder(space, encoding))

    def one(x, target, known, seed, wanted):
        if not known.any():
            zeros = np.zeros(len(wanted))
            return zeros, zeros + 1, None
        mean, members = fit_predict(x[known], target[known], wanted, int(seed))
        return mean, np.maximum(members.std(0), LEAST), members

    def on_all(*args):
        """Of problems along any number of first axes: float32[..., M], three times."""
        x, target, known, seed, wanted, draws = args
        x, wanted = (
            np.concatenate([np.asarray(piece) for piece in rows], np.ndim(draws))
            for rows in (x, wanted)
        )
        *given, draws = map(np.asarray, (x, target, known, seed, wanted, draws))
        # These axes are of length 1 where an argument is the same along them: a model
        # of which there are many draws is fitted once.
        axes = draws.ndim
        fitted = np.broadcast_shapes(*(arg.shape[:axes] for arg in given))
        shape = np.broadcast_shapes(fitted, draws.shape)
        found = [
            one(*each) for each in zip(*(_flat(a, fitted) for a in given), strict=True)
        ]
        which = np.arange(len(found)).reshape(fitted)
        answers = [
            (*found[i][:2], _drawn(found[i], draw))
            for i, draw in zip(_flat(which, shape), _flat(draws, shape), strict=True)
        ]
        return tuple(
            np.stack(part).astype(np.float32).reshape(*shape, -1)
            for part in zip(*answers, strict=True)
        )

    def ask(state: HostState, arch: Array, draw: Array) -> tuple[Array, ...]:
        wanted = encode(arch)
        each = jax.ShapeDtypeStruct((len(wanted),), jnp.float32)
        given = _pieces(state.x), state.target, state.known, state.seed
        # A batch comes to the host in one call.
        return jax.pure_callback(
            on_all,
            (each,) * 3,
            *given,
            _pieces(wanted),
            draw,
            vmap_method="expand_dims",
        )

    def init(key: Array, history: History) -> HostState:
        history = usable(history)
        target, scale = to_targets(history, targets)
        seed = jax.random.bits(key, (), jnp.uint32)
        return HostState(encode(history.arch), target, history.known, scale, seed)

    def fit(key: Array, state: HostState, history: History) -> HostState:
        del state
        return init(key, history)

    def predict(state: HostState, arch: Array) -> tuple[Array, Array]:
        mean, deviation, _ = ask(state, arch, jnp.uint32(0))
        return prediction(state.scale, mean, deviation)

    def sample(key: Array, state: HostState, arch: Array) -> Array:
        draw = jax.random.bits(key, (), jnp.uint32)
        return to_fitness(state.scale, ask(state, arch, draw)[2])

    return Surrogate(init, fit, predict, sample)


def _pieces(rows: Array) -> list[Array]:
    """Splits float32[N, F] into parts of `PIECE` bytes or less, as far as rows are."""
    size = max(PIECE // (rows.dtype.itemsize * rows.shape[1]), 1)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _flat(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Broadcasts the first axes to a shape, and makes one axis of them."""
    rest = array.shape[len(shape) :]
    return np.broadcast_to(array, (*shape, *rest)).reshape(-1, *rest)


def _drawn(found: tuple, draw: np.uint32) -> np.ndarray:
    """A member's word, float[M]."""
    mean, _, members = found
    if members is None:
        return np.random.RandomState(draw).standard_normal(len(mean))
    return members[int(draw) % len(members)]
