"""What the search by surrogate leaves: a summary, tables and pictures."""

from typing import Any

import numpy as np
import rich.console
import rich.table
from surrogate_recipe import Problem

from jaxnas import plots, runs
from jaxnas.importance import Importance, decision_names
from jaxnas.incumbents import bootstrap


def numbers(values: Any) -> np.ndarray:
    """Reads numbers of which null is one that failed."""
    return np.array(values, float)


def interval(values: list[float]) -> dict[str, Any]:
    """The mean over seeds, and its 95 % bootstrap interval where there are several."""
    found = numbers(values)
    low, high = bootstrap(found) if len(found) > 1 else (None, None)
    return {"mean": float(found.mean()), "ci95_low": low, "ci95_high": high}


def summary(config: Any, problem: Problem, found: dict[str, Any]) -> dict[str, Any]:
    """What result.json says."""
    rows = found["recipe"]["seeds"]
    first = rows[0]
    verified = {
        name: problem.factor * numbers(first[f"verified_{name}"])
        for name in ("predicted", "deviation", "measured", "test")
        if f"verified_{name}" in first
    }
    best = "best_test" if problem.is_table else "best_fitness"
    result = {
        "problem": problem.name,
        "is_table": problem.is_table,
        "unit": problem.unit,
        "surrogate": config.surrogate,
        "trained": config.train,
        "predicted": config.predict,
        "seeds": config.seeds,
        "kendall_tau": interval([row["kendall_tau"] for row in rows]),
        "coverage": interval([row["coverage"] for row in rows]),
        "best_test_accuracy" if problem.is_table else "best_validation": interval(
            [problem.factor * row[best] for row in rows]
        ),
        "best": problem.space.to_string(np.array(first["best"])),
        "verified": verified,
    }
    for name in ("study", "acquisition", "importance"):
        if name in found:
            result[name] = found[name]
    if "front" in found:
        result["hypervolume"] = found["front"]["hypervolume"]
    if "importance" in found:
        cells = problem.space.cells
        result["decisions"] = decision_names(problem.space)
        result["choices"] = list(cells.op_names) if cells else None
    return result


def draw(run: runs.Run, problem: Problem, found: dict[str, Any]) -> None:
    """Draws all there is."""
    first = found["recipe"]["seeds"][0]
    groups = {
        name: tuple(
            problem.factor * numbers(first[f"{kind}_{what}"])
            for what in ("predicted", "deviation", "measured")
        )
        for name, kind in (("others", "judged"), ("verified", "verified"))
    }
    figure = plots.plot_predictions(
        groups, unit=problem.unit, title=f"Predictions on {problem.name}"
    )
    plots.save(figure, run.path("predictions.png"))
    draws = {"study": draw_study, "acquisition": draw_acquisition, "front": draw_front}
    for name, function in draws.items():
        if found.get(name):
            function(run, problem, found[name])
    if "importance" in found:
        draw_importance(run, problem, found["importance"])


def draw_study(run: runs.Run, problem: Problem, study: dict[str, Any]) -> None:
    """Kendall's tau and coverage over the size of the training set, by surrogate."""
    taus: dict[str, Any] = {}
    covered: dict[str, Any] = {}
    for name, by_size in study.items():
        sizes = np.array([int(size) for size in by_size])
        rows = {
            key: numbers([row[key] for row in by_size.values()])
            for key in ("tau", "low", "high", "coverage")
        }
        taus[name] = sizes, rows["tau"], np.stack([rows["low"], rows["high"]])
        if np.isfinite(rows["coverage"]).all():
            covered[name] = sizes, rows["coverage"], None
    panels = {"Kendall's tau": taus, "measured in the 95 % interval": covered}
    title = f"Surrogates on {problem.name}"
    figure = plots.plot_learning(panels, xlabel="architectures trained", title=title)
    plots.save(figure, run.path("study.png"))


def draw_acquisition(run: runs.Run, problem: Problem, found: dict[str, Any]) -> None:
    """What was acquired and found over the queries, the mean over seeds."""
    queries = numbers(found["queries"])
    curves = {
        "acquisition": f"{found['name'].replace('_', ' ')}, of what is asked",
        "incumbent_test": "test accuracy (%)",
    }
    panels = {
        label: {"mean over seeds": (queries, numbers(found[name]))}
        for name, label in curves.items()
    }
    title = f"Bayesian optimisation on {problem.name}"
    figure = plots.plot_curves(panels, xlabel="queries", title=title, smooth=False)
    plots.save(figure, run.path("acquisition.png"))


def draw_front(run: runs.Run, problem: Problem, found: dict[str, Any]) -> None:
    """The fronts over all there is."""
    figure = plots.plot_front(
        found["points"],
        evaluated=tuple(found["evaluated"]),
        xlabel=found["cost"],
        ylabel=found["worth"],
        title=f"Pareto fronts on {problem.name}",
    )
    plots.save(figure, run.path("front.png"))


def draw_importance(run: runs.Run, problem: Problem, found: dict[str, Any]) -> None:
    """Which decisions matter."""
    cells = problem.space.cells
    shown = Importance(**{name: numbers(value) for name, value in found.items()})
    figure = plots.plot_importance(
        shown._replace(marginal=problem.factor * shown.marginal),
        decision_names(problem.space),
        choices=cells.op_names if cells else None,
        label=f"mean prediction of {problem.unit}",
        title=f"Which decisions matter on {problem.name}",
    )
    plots.save(figure, run.path("importance.png"))


def show(result: dict[str, Any]) -> None:
    """Prints the summary of a finished run."""
    console = rich.console.Console(width=100)
    unit = result["unit"]
    table = rich.table.Table(
        title=f"Verified by {result['surrogate']} on {result['problem']}, first seed",
        box=None,
        title_justify="left",
    )
    columns = ["", f"predicted {unit}", "measured"]
    columns += ["test accuracy %"] if result["is_table"] else []
    for name in columns:
        table.add_column(name, justify="right")
    verified = {name: numbers(row) for name, row in result["verified"].items()}
    for i, mean in enumerate(verified["predicted"]):
        row = [str(i + 1), f"{mean:.2f} ± {verified['deviation'][i]:.2f}"]
        row += [f"{verified[x][i]:.2f}" for x in ("measured", "test") if x in verified]
        table.add_row(*row)
    console.print(table)
    for name in ("kendall_tau", "coverage", "best_test_accuracy", "best_validation"):
        if name in result:
            row = result[name]
            said = f"{row['mean']:.4g}"
            if row["ci95_low"] is not None:
                said += f" ({row['ci95_low']:.4g} to {row['ci95_high']:.4g})"
            print(f"{name.replace('_', ' ')}: {said}, seeds: {result['seeds']}")
    if "test_accuracy" in result:
        print(f"the best, trained on all images: {result['test_accuracy']:.2f} % test")
    if result.get("study"):
        show_study(console, result["study"])
    if "acquisition" in result:
        found = result["acquisition"]
        low, high = found["ci95"]
        print(
            f"Bayesian optimisation: test accuracy {found['test_accuracy']:.3f} % "
            f"({low:.3f} to {high:.3f}) after {found['queries'][-1]} queries; for each "
            f"seed the surrogate takes {found['surrogate_seconds']:.2f} seconds, and "
            f"training {found['training_cost']:.4g} of the table's seconds or epochs"
        )
    if "hypervolume" in result:
        show_hypervolume(result["hypervolume"])
    if "importance" in result:
        show_importance(console, result)


def show_study(console: rich.console.Console, study: dict[str, Any]) -> None:
    """Prints Kendall's tau and coverage by surrogate and size."""
    table = rich.table.Table(
        title="Kendall's tau (and the part in the 95 % interval predicted)",
        box=None,
        title_justify="left",
    )
    table.add_column("architectures", no_wrap=True)
    for size in next(iter(study.values())):
        table.add_column(str(size), justify="right")
    for name, by_size in study.items():
        cells = []
        for row in by_size.values():
            covered = "" if row["coverage"] is None else f" ({row['coverage']:.2f})"
            cells.append(f"{row['tau']:.3f}{covered}")
        table.add_row(name, *cells)
    console.print(table)


def show_hypervolume(found: Any) -> None:
    """Prints how much each front dominates."""
    if isinstance(found, float):
        hint = "" if found else ": nothing is above --reference"
        print(f"hypervolume of what was evaluated: {found:.6g}{hint}")
        return
    for name, row in found.items():
        low, high = (100 * x for x in row["quartiles"])
        print(
            f"{name}: {100 * row['median']:.2f} % of the table's hypervolume, median "
            f"(quartiles {low:.2f} to {high:.2f})"
        )


def show_importance(console: rich.console.Console, result: dict[str, Any]) -> None:
    """Prints which decisions matter."""
    table = rich.table.Table(
        title="Which decisions matter (parts of the prediction's variance)",
        box=None,
        title_justify="left",
    )
    for name in ("decision", "alone", "with others", "best choice"):
        table.add_column(name, justify="right")
    found = result["importance"]
    if not found["variance"]:
        print("the surrogate predicts the same everywhere: it needs more to learn from")
        return
    rows = zip(result["decisions"], found["main"], found["total"], strict=True)
    for (name, main, total), means in zip(rows, found["marginal"], strict=True):
        best = int(np.nanargmax(numbers(means)))
        choice = result["choices"][best] if result["choices"] else str(best)
        table.add_row(name, f"{main:.3f}", f"{total:.3f}", choice)
    console.print(table)
