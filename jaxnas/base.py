"""The types that everything else is made of. No logic lives here.

Letters used for shapes throughout the project: B architectures in a batch,
D decisions of an architecture, K = max(num_choices) choices of a decision,
N one-edit neighbours, W words of a canonical key.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any

OK, DIVERGED, ABSENT, OUT_OF_MEMORY, FAILED = range(5)
"""Values of `Feedback.status`: evaluated, not finite, not in the table, ..."""

STATUSES = ("ok", "diverged", "absent", "out of memory", "failed")
"""What the values of `Feedback.status` are called."""


FULL = 2**31 - 1
"""The budget of a whole evaluation, whatever that is for an evaluator."""


class InputError(ValueError):
    """A wrong argument, flag or file; its message is one line fit for a user.

    The line says what was expected, what came, and what to do about it.
    """


class Proposal(NamedTuple):
    """What a strategy asks an evaluator to look at."""

    arch: Array  # int32[B, D], or float32[B, D, K] relaxed
    budget: Array  # int32[B], epochs in total, or FULL; 0 = padding, nothing is asked
    slot: Array  # int32[B], where its network is kept; -1 = nowhere, see below

    # An evaluator that trains goes on from the network in a slot where that is of this
    # very architecture and a smaller budget; else a fresh one takes the slot.


class Feedback(NamedTuple):
    """What an evaluator answers to a `Proposal`."""

    fitness: Array  # float32[B], higher is better; -inf = failed
    cost: Array  # float32[B], what this added: seconds, or epochs without a clock
    status: Array  # int32[B], OK or why it failed
    metrics: dict[str, Array]  # float32[B] each, for the log only
    objectives: Array | None = None  # float32[B, M], higher is better
    grad: Array | None = None  # float32[B, D, K], d fitness / d arch


class Cells(NamedTuple):
    """What the decisions are, where each is an operation on an edge of a cell."""

    # D entries, the node that the edge enters; each cell has numbers of its own
    targets: tuple[int, ...]
    # D entries, the node that it leaves, of those numbers; below all: an input
    sources: tuple[int, ...]
    op_names: tuple[str, ...]  # K entries; "none" and "skip_connect" among them
    reduction: tuple[bool, ...]  # D entries, whether the cell is the reduction cell


class Graph(NamedTuple):
    """An architecture as C directed acyclic graphs whose V vertices are operations.

    Vertices are in topological order, the first the input and the last the output,
    which are no operations.
    """

    ops: Array  # float32[C, V, O], one-hot; zeros: the vertex does nothing
    edges: Array  # float32[C, V, V], 1 from the row's vertex to the column's


class Graphs(NamedTuple):
    """How the architectures of a space are graphs."""

    of: Callable[[Array], Graph]  # int32[D] -> its graph
    longest: int  # most operations on a way from the input to the output
    # D entries, the row and column of each decision in the matrix of vertices: an edge
    # to the row's from the column's, on the diagonal what a vertex does
    places: tuple[tuple[int, int], ...] | None = None  # None: decisions are vertices


class SearchSpace(NamedTuple):
    """A set of architectures, each an `int32[D]`, and how to move in it.

    A space hides its constraints in these functions. All of them but the two
    of strings, `network` and `restrict` are traceable and work on one
    architecture; `jax.vmap` makes the batch.
    """

    name: str
    num_choices: tuple[int, ...]  # D entries; choices at or past them are masked
    sample: Callable[[Array], Array]  # key -> valid int32[D]
    mutate: Callable[[Array, Array], Array]  # key, arch -> valid one-edit neighbour
    crossover: Callable[[Array, Array, Array], Array]  # key, two archs -> valid child
    neighbours: Callable[[Array], tuple[Array, Array]]  # -> int32[N, D], bool[N]
    discretize: Callable[[Array], Array]  # float32[D, K] -> valid int32[D]
    canonical: Callable[[Array], Array]  # -> uint32[W], equal for isomorphic ones
    network: Callable[..., Any]  # network(arch=None, **size) -> Linen module
    restrict: Callable[[PyTree, Array], PyTree]  # supernet params -> those of arch
    to_string: Callable[[Array], str]  # the genotype, readable
    from_string: Callable[[str], Array]  # its inverse; raises InputError
    # sizes(arch, image_shape, **size) -> parameters int32[], operations of one image
    # float32[]; traceable by the architecture. None: the space does not know them.
    sizes: Callable[..., tuple[Array, Array]] | None = None
    cells: Cells | None = None  # None: decisions are something else
    graphs: Graphs | None = None  # None: the space does not say
    # D entries, the choice that leaves a decision out: none, or what changes nothing.
    empty: tuple[int, ...] | None = None  # None: there is no such architecture


class Strategy(NamedTuple):
    """A search algorithm as ask and tell; `step` is the scan's own counter.

    `recommend` gives the answer of a finished search from the final state and
    the log: the incumbent unless the strategy knows better.
    """

    init: Callable[[Array], PyTree]  # key -> state
    ask: Callable[[Array, Array, PyTree], Proposal]  # key, step, state
    tell: Callable[[Array, Array, PyTree, Proposal, Feedback], PyTree]  # ask's key
    recommend: Callable[[PyTree, "Log"], Array]  # -> int32[D]


class Evaluator(NamedTuple):
    """What an architecture is worth, with whatever state that takes.

    `data` are read-only arrays (a table, a dataset). They are an argument of
    every step: never in the carry or a checkpoint, never batched over seeds.
    """

    data: PyTree
    init: Callable[[Array], PyTree]  # key -> state; () for a table
    evaluate: Callable[[Array, PyTree, PyTree, Proposal], tuple[PyTree, Feedback]]


class History(NamedTuple):
    """Architectures that were evaluated; its capacity N never changes."""

    arch: Array  # int32[N, D]
    fitness: Array  # float32[N], higher is better
    known: Array  # bool[N], false: nobody yet, or a failure


class Surrogate(NamedTuple):
    """A model of fitness by architecture, with how sure it is.

    `fit` goes on from a state where that makes it cheaper. What is predicted is in the
    unit of the fitness; deviations are those of the fitness without noise.
    """

    init: Callable[[Array, History], PyTree]  # key, history -> state of its capacity
    fit: Callable[[Array, PyTree, History], PyTree]  # key, state, history -> state
    predict: Callable[[PyTree, Array], tuple[Array, Array]]  # int32[M, D] -> mean, sd
    sample: Callable[[Array, PyTree, Array], Array]  # key -> a joint draw float32[M]


class Evidence(NamedTuple):
    """What a variational autoencoder says of N examples."""

    mean: Array  # float32[N, L], of the latent
    log_variance: Array  # float32[N, L]
    outputs: PyTree  # of the decoder, at one draw of the latent
    predicted: Array | None = None  # float32[N], by the mean, where it has a predictor


class Generator(NamedTuple):
    """A model of what architectures are like, which draws new ones.

    A latent z is float32[L], by the prior of independent normal numbers.
    """

    num_choices: tuple[int, ...]  # D entries, of the space whose architectures it draws
    num_latent: int  # L
    init: Callable[[Array, History], PyTree]  # key, history -> state of its capacity
    # key, state, history -> state that has learnt, most from the best
    fit: Callable[[Array, PyTree, History], PyTree]
    decode: Callable[[PyTree, Array], Array]  # float32[M, L] -> logits float32[M, D, K]
    # int32[M, D] -> float32[M], higher: more like what it has learnt from
    score: Callable[[PyTree, Array], Array]
    encode: Callable[[PyTree, Array], Array] | None = None  # int32[M, D] -> [M, L]
    # float32[M, L] -> float32[M], in the unit of the fitness
    predict: Callable[[PyTree, Array], Array] | None = None


class Table(NamedTuple):
    """Measured architectures, A of one space on S datasets; see `benchmarks`.

    A column is a quantity at a budget, `valid_acc_12ep`: what follows the last
    underscore are the epochs of training. `cost_12ep` are seconds.
    """

    name: str
    space: str  # its name in SPACES, or "categorical"
    num_choices: tuple[int, ...]  # D entries
    datasets: tuple[str, ...]  # S names
    archs: Array  # int32[A, D]
    columns: dict[str, Array]  # float32[A, S] each; accuracies in percent
    source: str = ""  # who measured it, and which version it is


class Log(NamedTuple):
    """What `search` records of every step: T steps along the first axis."""

    proposal: Proposal  # discrete archs as asked; relaxed ones too
    feedback: Feedback  # `grad` is dropped
