"""PC-DARTS: partially connected DARTS, made steady by weights of edges.

Xu et al. 2020, arXiv:1907.05737. Each node has a softmax over the edges that enter it;
the answer is read from the product of edge and operation weights.
"""

from typing import Any

from jaxnas.base import SearchSpace, Strategy
from jaxnas.strategies.differentiable import differentiable


def pc_darts(
    space: SearchSpace,
    *,
    learning_rate: float = 6e-4,
    warmup: int = 0,
    **settings: Any,
) -> Strategy:
    """Makes the strategy; the weights of a decision sum to its edge's share of a node.

    This is the edge normalization; partial channels are the network's, which reads
    that sum. In a space without cells each decision is an edge to a node of its own,
    with a share of 1. Betas and decay are those of `differentiable`.

    Args:
      space: what is searched.
      learning_rate: of Adam.
      warmup: steps before the logits move; in the paper 15 of 50 epochs, which are
        1,455 steps of batches of 256.
      **settings: of `differentiable`.

    Raises:
      InputError: what `differentiable` raises.
    """
    return differentiable(
        space,
        edge_normalization=True,
        learning_rate=learning_rate,
        warmup=warmup,
        **settings,
    )
