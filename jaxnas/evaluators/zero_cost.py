"""Scores of untrained networks, of many architectures in one compiled program.

The program takes architectures as numbers. Of cells it computes what an architecture
has and nothing else, on each device one architecture after another; what the scores are
is in `evaluators.proxies`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxnas.base import (
    OK,
    Array,
    Evaluator,
    Feedback,
    InputError,
    Proposal,
    SearchSpace,
)
from jaxnas.encoding import one_hot
from jaxnas.evaluators.proxies import AGREEMENT, FLOW, INPUTS, PROXIES, Untrained, look
from jaxnas.parallel import population_mesh, spread
from jaxnas.tasks import Batch
from jaxnas.training import init_variables

SIZES = ("parameters", "flops")  # baselines that know nothing but these


def zero_cost(
    space: SearchSpace,
    data: Batch,
    prepare: Callable[[Array], Array],
    *,
    num_classes: int,
    proxies: Sequence[str] = ("naswot",),
    fitness: str = "naswot",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **size: Any,
) -> Evaluator:
    """Makes the evaluator of int32[B, D] that trains nothing.

    Each architecture is a network with fresh weights, which follow from the key of
    `evaluate` and its place among the B, and with the norms that the space's networks
    have. All are looked at with the same examples: `init` draws which, and the state is
    their numbers.

    Metrics: each proxy, float32[B], higher is better; `parameters` and `flops` as they
    are. Some are -inf for a network whose output does not depend on its input, see
    `evaluators.proxies`; as the fitness that counts as a failure. Cost is 0 epochs. A
    proposal of budget 0 is NaN and no work; other budgets are all the same.

    Args:
      space: one with a supernet.
      data: images uint8[N, H, W, colours] and labels int32[N] to draw from.
      prepare: `uint8[B, ...] -> float32`: normalises.
      num_classes: C.
      proxies: names in `PROXIES`; `parameters` and `flops` where the space knows them.
      fitness: one of them.
      batch_size: examples that networks are looked at with; None: of each proxy its
        own number.
      mesh: devices; all by default.
      **size: of `space.network`.

    Raises:
      InputError: there is no such proxy, or not of such networks; no supernet; more
        examples than there are, or none.
    """
    network = _network(space, num_classes=num_classes, **size)
    _check(space, network, proxies, fitness)
    chosen = {name: PROXIES[name] for name in proxies if name in PROXIES}
    counts = [p.examples if batch_size is None else batch_size for p in chosen.values()]
    counts = counts or [1]
    if not 0 < min(counts) <= max(counts) <= len(data.labels):
        raise InputError(
            f"expected a batch size from 1 to the {len(data.labels)} examples, but got "
            f"{max(counts)}: choose one in this range"
        )
    scorer = Scorer(space, network, tuple(proxies), batch_size, num_classes, size)
    mesh = population_mesh() if mesh is None else mesh

    def score_all(batch: Batch, parts: Any) -> dict[str, Array]:
        def one(part: Any) -> dict[str, Array]:
            arch, key, asked = part
            nothing = dict.fromkeys(proxies, jnp.float32(jnp.nan))
            score = partial(scorer.__call__, batch)
            return lax.cond(asked, score, lambda *_: nothing, arch, key)

        return lax.map(one, parts)

    def init(key: Array) -> Array:
        return jax.random.permutation(key, len(data.labels))[: max(counts)]

    def evaluate(key: Array, data: Batch, state: Array, proposal: Proposal):
        arch, asked = proposal.arch, proposal.budget > 0
        chex.assert_shape(arch, (None, len(space.num_choices)))
        batch = Batch(prepare(data.images[state]), data.labels[state])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(arch)))
        effort = asked.astype(jnp.float32)
        metrics = spread(score_all, mesh)(batch, (arch, keys, asked), effort)
        return state, Feedback(
            fitness=metrics[fitness],
            cost=jnp.zeros(len(arch)),
            status=jnp.full(len(arch), OK, jnp.int32),
            metrics=metrics,
        )

    return Evaluator(jax.tree.map(jnp.asarray, data), init, evaluate)


class Scorer(NamedTuple):
    """Draws one network and scores it; traceable."""

    space: SearchSpace
    network: Any  # the supernet
    names: tuple[str, ...]  # of proxies
    batch_size: int | None
    num_classes: int
    size: dict[str, Any]

    def __call__(self, batch: Batch, arch: Array, key: Array) -> dict[str, Array]:
        """The scores by name, float32[] each."""
        choice = one_hot(arch, self.space.num_choices)
        image = jax.ShapeDtypeStruct((1, *batch.images.shape[1:]), jnp.float32)
        variables = init_variables(self.network, key, image, choice, train=True)
        found = self._sizes(arch, batch)
        for count, names in self._by_count().items():
            few = Batch(batch.images[:count], batch.labels[:count])
            net = Untrained(self.network, variables, choice, few)
            seen = look(net, {PROXIES[name].sees for name in names})
            for name in names:
                found[name] = PROXIES[name].score(seen[PROXIES[name].sees])
        return {name: found[name] for name in self.names}

    def _by_count(self) -> dict[int, list[str]]:
        """The proxies that look at so many examples."""
        counts: dict[int, list[str]] = {}
        for name in self.names:
            if name in PROXIES:
                count = self.batch_size or PROXIES[name].examples
                counts.setdefault(count, []).append(name)
        return counts

    def _sizes(self, arch: Array, batch: Batch) -> dict[str, Array]:
        if not self.space.sizes:
            return {}
        shape = batch.images.shape[1:]
        size = {"num_classes": self.num_classes, **self.size}
        found = self.space.sizes(arch, shape, **size)
        return dict(zip(SIZES, (x.astype(jnp.float32) for x in found), strict=True))


def _network(space: SearchSpace, **size: Any) -> Any:
    """The supernet, of a single path where there is one, with its networks' norms."""
    supernet = space.network(**size)
    alone = space.network(space.sample(jax.random.key(0)), **size)
    norms = {"affine", "pool_norm"} & set(vars(alone))
    path = {"single_path": True} if "single_path" in vars(supernet) else {}
    return supernet.clone(**{name: getattr(alone, name) for name in norms}, **path)


def _check(space: SearchSpace, network: Any, proxies: Sequence[str], fitness: str):
    """Refuses proxies that there are not, or not of the network."""
    names = [*PROXIES, *(SIZES if space.sizes else ())]
    for name in proxies:
        if name not in names:
            raise InputError(
                f"expected proxies of {', '.join(names)}, but got {name}: choose others"
            )
        # Other networks tell nothing, or stop the gradient before the images.
        needs_path = name in PROXIES and PROXIES[name].sees in (AGREEMENT, FLOW, INPUTS)
        if needs_path and "single_path" not in vars(network):
            raise InputError(
                f"expected a space whose cells compute a single path for {name}, but "
                f"got {space.name}: choose another proxy"
            )
    if fitness not in proxies:
        raise InputError(
            f"expected a fitness among the proxies, {', '.join(proxies)}, but got "
            f"{fitness}: ask for it too"
        )
