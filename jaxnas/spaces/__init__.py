"""Search spaces, by name."""

from collections.abc import Callable

from jaxnas.base import SearchSpace
from jaxnas.spaces.darts import darts
from jaxnas.spaces.nasbench101 import nasbench101
from jaxnas.spaces.nasbench201 import nasbench201

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "darts": darts,
    "nasbench101": nasbench101,
    "nasbench201": nasbench201,
}
