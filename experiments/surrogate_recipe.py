"""The recipe: train some, predict many, verify the best; on a table or for real."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import cli, runs
from jaxnas.base import (
    FULL,
    Array,
    Evaluator,
    History,
    InputError,
    Log,
    SearchSpace,
    Surrogate,
)
from jaxnas.metrics import kendall_tau
from jaxnas.search import incumbent, search
from jaxnas.strategies.checks import propose
from jaxnas.strategies.memory import Memory, canonical_keys, was_asked
from jaxnas.strategies.predictor_search import PredictorState, predictor_search
from jaxnas.surrogates import SURROGATES

FOLDS = 5
WITHIN = 1.96  # deviations to each side: 95 % of a normal distribution


class Problem(NamedTuple):
    """What is searched, and with what."""

    space: SearchSpace
    evaluator: Evaluator
    is_table: bool
    name: str  # of the table or the dataset
    unit: str  # of the fitness
    factor: float  # 100 where the fitness is a fraction and is shown in percent


def run_on_table(config: Any, problem: Problem) -> dict[str, Any]:
    """All seeds side by side; the surrogate is judged by new random architectures."""
    surrogate = SURROGATES[config.surrogate](problem.space)
    strategy = _strategy(config, problem.space, surrogate, config.train)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    steps = 1 + -(-config.verify // config.train)

    @jax.jit
    def recipe(keys: Array, data: Any):
        evaluator = problem.evaluator._replace(data=data)
        (state, _), log = search(keys, strategy, evaluator, steps)

        def judge(key: Array, model: Any, memory: Memory):
            draws = jax.random.split(jax.random.fold_in(key, steps), config.predict)
            archs = jax.vmap(problem.space.sample)(draws)
            mean, deviation = surrogate.predict(model, archs)
            asked = propose(archs, FULL)
            _, feedback = evaluator.evaluate(key, data, (), asked)
            # What was trained is no test of who learnt from it.
            new = ~was_asked(memory, canonical_keys(problem.space, archs))
            return mean, deviation, jnp.where(new, feedback.fitness, jnp.nan)

        judged = jax.vmap(judge)(keys, state.model, state.memory)
        best = jax.vmap(incumbent, 1)(log)
        return state, log, judged, best

    state, log, judged, best = jax.device_get(recipe(keys, problem.evaluator.data))
    by_seed = jax.tree.map(lambda x: np.moveaxis(x, 1, 0), log)
    rows = [
        _row(config, *jax.tree.map(lambda x: x[i], (state, by_seed, judged, best)))  # noqa: B023
        for i in range(config.seeds)
    ]
    return {"seeds": rows}


def run_for_real(config: Any, problem: Problem, run: runs.Run) -> dict[str, Any]:
    """Seed after seed; the surrogate is judged by cross-validation."""
    surrogate = SURROGATES[config.surrogate](problem.space)
    strategy = _strategy(config, problem.space, surrogate, config.batch)
    steps = -(-config.train // config.batch) - (-config.verify // config.batch)
    rows = []
    for seed in range(config.seeds):
        # The first keys are of the data and of the final training.
        key = jax.random.fold_in(jax.random.key(config.seed), 3 + seed)
        name = f"searching_{seed}"
        with cli.phase(run, name, steps, 1, _summarise) as scan:
            (state, _), log = search(key, strategy, problem.evaluator, steps, scan)
        history = state.memory.history
        if not history.known.sum() > 1:
            raise InputError(
                f"expected candidates that can be trained, but {config.train} of "
                f"{config.train} failed: try another --learning-rate or --space"
            )
        judged = *cross_validate(key, surrogate, history), history.fitness
        judged = [np.asarray(x)[np.asarray(history.known)] for x in judged]
        rows.append(_row(config, jax.device_get(state), log, judged, incumbent(log)))
    return {"seeds": rows}


def cross_validate(
    key: Array, surrogate: Surrogate, history: History
) -> tuple[Array, Array]:
    """Predicts each of N by the other folds: mean and deviation, float32[N]."""
    fold = jnp.arange(len(history.known)) % FOLDS

    @jax.jit
    def predict(key: Array, history: History):
        def one(left_out: Array):
            seen = history._replace(known=history.known & (fold != left_out))
            key_init, key_fit = jax.random.split(key)
            state = surrogate.fit(key_fit, surrogate.init(key_init, seen), seen)
            return surrogate.predict(state, history.arch)

        found = jax.vmap(one)(jnp.arange(FOLDS))
        return jax.tree.map(lambda x: x[fold, jnp.arange(len(fold))], found)

    return predict(key, history)


def _strategy(config, space, surrogate, batch_size):
    return predictor_search(
        space,
        surrogate,
        num_train=config.train,
        num_predict=config.predict,
        num_verify=config.verify,
        batch_size=batch_size,
    )


def _summarise(log: Log) -> dict[str, Any]:
    """A row of the log: candidates so far usable, and how good they are."""
    fitness = log.feedback.fitness[log.proposal.budget > 0]
    usable = fitness[np.isfinite(fitness)]
    row: dict[str, Any] = {"failed": len(fitness) - len(usable)}
    return row | ({"fitness": usable.mean()} if len(usable) else {})


def _row(
    config: Any, state: PredictorState, log: Log, judged: Any, best: Array
) -> dict[str, Any]:
    """What one seed found, as lists."""
    known = np.isfinite(np.asarray(judged[-1]))
    mean, deviation, measured = (np.asarray(part)[known] for part in judged)
    asked = log.proposal.budget > 0
    archs, fitness = log.proposal.arch[asked], log.feedback.fitness[asked]
    tests = log.feedback.metrics.get("test_accuracy", log.feedback.fitness)[asked]
    at = int(np.flatnonzero((archs == np.asarray(best)).all(1))[0])
    verified = slice(config.train, None)
    return {
        "archs": archs,
        "fitness": fitness,
        "cost": float(log.feedback.cost.sum()),
        "judged_predicted": mean,
        "judged_deviation": deviation,
        "judged_measured": measured,
        "kendall_tau": float(kendall_tau(mean, measured)),
        "coverage": coverage(mean, deviation, measured),
        "verified_predicted": state.mean[state.is_new],
        "verified_deviation": state.deviation[state.is_new],
        "verified_measured": fitness[verified],
        "verified_test": tests[verified],
        "best": np.asarray(best),
        "best_fitness": float(fitness[at]),
        "best_test": float(tests[at]),
    }


def coverage(mean: np.ndarray, deviation: np.ndarray, measured: np.ndarray) -> float:
    """The part of what was measured that lies in the 95 % interval predicted for it."""
    return float(np.mean(np.abs(measured - mean) <= WITHIN * deviation))
