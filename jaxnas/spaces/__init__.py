"""Search spaces, by name."""

from collections.abc import Callable

from jaxnas.base import InputError, SearchSpace, Table
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.chain import chain
from jaxnas.spaces.darts import darts
from jaxnas.spaces.generative import generative
from jaxnas.spaces.multi_branch import multi_branch
from jaxnas.spaces.nasbench101 import nasbench101
from jaxnas.spaces.nasbench201 import nasbench201

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "chain": chain,
    "darts": darts,
    "generative": generative,
    "multi_branch": multi_branch,
    "nasbench101": nasbench101,
    "nasbench201": nasbench201,
}

GENERATIVE = ("generative",)
"""Those of them whose networks generate; those of the others classify."""


def space_of(table: Table) -> SearchSpace:
    """Makes the space that a table is of.

    Raises:
      InputError: it is none of `SPACES` and not categorical.
    """
    if table.space == "categorical":
        return categorical(table.num_choices)
    if table.space not in SPACES:
        raise InputError(
            f"expected a table of categorical, {', '.join(SPACES)}, but {table.name} "
            f"is of {table.space}: mend the table"
        )
    return SPACES[table.space]()
