"""The graph predictor: convolutions over an architecture's graph, in both directions.

Wen, Liu, Li, Chen, Bender and Kindermans 2020, arXiv:1912.00848: the neural predictor.
Where a space has no graphs, an architecture is its decisions one after the other.
"""

from jaxnas.base import SearchSpace, Surrogate
from jaxnas.checks import expect
from jaxnas.encoding import graphs_of
from jaxnas.nn.graph_network import GraphNetwork
from jaxnas.surrogates.deep_ensemble import deep_ensemble


def graph_predictor(
    space: SearchSpace,
    *,
    width: int = 32,
    layers: int = 3,
    targets: str = "ranks",
    num_members: int = 5,
    num_updates: int = 100,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
) -> Surrogate:
    """Makes the surrogate.

    Args:
      space: whose architectures are graphs.
      width: units of each layer, 1 or more.
      layers: convolutions over the graph, 1 or more.
      targets: of `TARGETS`.
      num_members: networks, 2 or more.
      num_updates: in each `fit`, which goes on from the last; 0 or more.
      learning_rate: of AdamW, 0 or more.
      weight_decay: of AdamW, times the learning rate; 0 or more.

    Raises:
      InputError: a number is too small, or the targets are none of `TARGETS`.
    """
    expect(1, width=width, layers=layers)
    return deep_ensemble(
        space,
        GraphNetwork(width, layers),
        graphs_of(space).of,
        targets=targets,
        num_members=num_members,
        num_updates=num_updates,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
