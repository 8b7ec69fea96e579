"""The recipe: train some, predict many, verify the best; on a table or for real."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kendalltau

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
        _row(
            config,
            problem,
            *jax.tree.map(lambda x: x[i], (state, by_seed, judged, best)),  # noqa: B023
        )
        for i in range(config.seeds)
    ]
    return {"seeds": rows}


def run_for_real(config: Any, problem: Problem, run: runs.Run) -> dict[str, Any]:
    """Seed after seed; the surrogate is judged by cross-validation."""
    surrogate = SURROGATES[config.surrogate](problem.space)
    strategy = _strategy(config, problem.space, surrogate, config.batch)
    steps = -(-config.train // config.batch) - (-config.verify // config.batch)
    cross_validate, rows = cross_validator(surrogate), []
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
        # Apart from the keys of the search, which number its steps.
        key_judge = jax.random.fold_in(key, 2**31)
        judged = *cross_validate(key_judge, history), history.fitness
        judged = [np.asarray(x)[np.asarray(history.known)] for x in judged]
        state = jax.device_get(state)
        rows.append(_row(config, problem, state, log, judged, incumbent(log)))
    return {"seeds": rows}


def cross_validator(
    surrogate: Surrogate,
) -> Callable[[Array, History], tuple[Array, Array]]:
    """Makes what predicts each of N by the other folds: mean, deviation float32[N]."""

    @jax.jit
    def predict(key: Array, history: History):
        fold = jnp.arange(len(history.known)) % FOLDS

        def one(left_out: Array, key: Array):
            seen = history._replace(known=history.known & (fold != left_out))
            key_init, key_fit = jax.random.split(key)
            state = surrogate.fit(key_fit, surrogate.init(key_init, seen), seen)
            return surrogate.predict(state, history.arch)

        found = jax.vmap(one)(jnp.arange(FOLDS), jax.random.split(key, FOLDS))
        return jax.tree.map(lambda x: x[fold, jnp.arange(len(fold))], found)

    return predict


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
    config: Any,
    problem: Problem,
    state: PredictorState,
    log: Log,
    judged: Any,
    best: Array,
) -> dict[str, Any]:
    """What one seed found, as lists."""
    known = np.isfinite(np.asarray(judged[-1]))
    if known.sum() < 2 or not np.any(state.is_new):
        raise InputError(
            "expected random architectures to predict that were not trained, but of "
            f"{config.predict} a seed drew none or one: raise --predict, lower --train"
        )
    mean, deviation, measured = (np.asarray(part)[known] for part in judged)
    asked = log.proposal.budget > 0
    archs, fitness = log.proposal.arch[asked], log.feedback.fitness[asked]
    at = int(np.flatnonzero((archs == np.asarray(best)).all(1))[0])
    verified = slice(config.train, None)
    tested = {}
    if problem.is_table:  # of what is trained, the best is tested at the end
        tests = log.feedback.metrics["test_accuracy"][asked]
        tested = {"verified_test": tests[verified], "best_test": float(tests[at])}
    return {
        "archs": archs,
        "fitness": fitness,
        "cost": float(log.feedback.cost.sum()),
        "judged_predicted": mean,
        "judged_deviation": deviation,
        "judged_measured": measured,
        "kendall_tau": float(np.nan_to_num(kendalltau(mean, measured).statistic)),
        "coverage": coverage(mean, deviation, measured),
        "verified_predicted": state.mean[state.is_new],
        "verified_deviation": state.deviation[state.is_new],
        "verified_measured": fitness[verified],
        "best": np.asarray(best),
        "best_fitness": float(fitness[at]),
        **tested,
    }


def coverage(mean: np.ndarray, deviation: np.ndarray, measured: np.ndarray) -> float:
    """The part of what was measured that lies in the 95 % interval predicted for it."""
    return float(np.mean(np.abs(measured - mean) <= WITHIN * deviation))
