"""How the cost of a population grows with its size, for population_training.py."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.table
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from population_sides import Ours, Problem, versions

from jaxnas import plots


class Cost(NamedTuple):
    """What a population of a size takes; memory is that of one device."""

    networks: int
    compile: float  # seconds, tracing included
    run: float  # seconds
    temporaries: float  # MB, as the next two
    arguments: float
    outputs: float

    @property
    def memory(self) -> float:
        """MB in all."""
        return self.temporaries + self.arguments + self.outputs


def measure_cost(problem: Problem, size: int) -> Cost:
    """Compiles the program of a size and runs it once."""
    ours = Ours(problem, size)
    seconds, _ = ours.run(problem.key(0), ours.proposal.arch)
    found = ours.program.memory_analysis()
    bytes_used = (
        found.temp_size_in_bytes,
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
    )
    memory = (number / 1e6 for number in bytes_used)
    return Cost(size, sum(ours.seconds.values()), seconds, *memory)


def show_costs(problem: Problem, costs: Sequence[Cost]) -> None:
    """Prints the table of all sizes."""
    print(f"{problem.epochs} epochs of batches of {problem.batch_size}; MB of a device")
    table = rich.table.Table(box=None)
    columns = "networks", "compile s", "run s", "networks/s", "MB"
    for column in (*columns, "temporaries", "arguments", "outputs"):
        table.add_column(column, justify="right")
    for cost in costs:
        figures = cost.compile, cost.run, cost.networks / cost.run, cost.memory
        parts = cost.temporaries, cost.arguments, cost.outputs
        row = (f"{figure:.2f}" for figure in (*figures, *parts))
        table.add_row(str(cost.networks), *row)
    rich.console.Console(width=88).print(table)
    print(versions())


def draw_costs(costs: Sequence[Cost]) -> Figure:
    """Draws seconds and memory by networks, both axes logarithmic."""
    sizes = [cost.networks for cost in costs]
    panels = {
        "seconds": {
            "running": (sizes, [cost.run for cost in costs]),
            "compiling": (sizes, [cost.compile for cost in costs]),
        },
        "MB of a device": {
            "in all": (sizes, [cost.memory for cost in costs]),
            "temporaries": (sizes, [cost.temporaries for cost in costs]),
        },
    }
    figure = plots.plot_curves(panels, xlabel="networks", title="Cost of a population")
    for axes in figure.axes:
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sizes)
        low, high = np.log10(axes.dataLim.intervaly)  # whole decades show what is flat
        axes.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_locator(NullLocator())
    return figure
