"""A cell: a small graph of states, with operations on its edges."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, InputError
from jaxnas.nn.apart import materialise
from jaxnas.nn.graph import Edge, groups, levels
from jaxnas.nn.ops import OPS, Identity
from jaxnas.nn.probes import AGREEMENT, tell
from jaxnas.nn.single_path import Loop, choose


class Cell(nn.Module):
    """Computes the states of a cell from its input states.

    A state is the sum of the edges that enter it, an edge the sum of its
    operations, each times its weight. Edges that leave the inputs, or one other
    state, and share an operation are computed together, see `jaxnas.nn.ops`.

    Attributes:
      edges: of the graph.
      op_names: the K choices of an edge; one that is not in OPS contributes nothing.
      num_inputs: how many states are given.
      num_states: inputs included. A state that no edge enters is zero.
      channels: of every state that is no input.
      stride: of the edges that leave an input.
      affine: whether batch norms learn a scale and a shift; None: there are none.
      pool_norm: whether pooling is normalised, as it is in supernets.
      single_path: whether an edge computes its strongest operation alone, with the
        parameters that it has in the whole supernet; see `jaxnas.nn.single_path`.
      partial: operations see the first channels alone, one in so many; the others
        pass by, and are mixed with them (PC-DARTS, Xu et al. 2020, arXiv:1907.05737).
    """

    edges: tuple[Edge, ...]
    op_names: tuple[str, ...]
    num_inputs: int
    num_states: int
    channels: int
    stride: int = 1
    affine: bool | None = True
    pool_norm: bool = False
    single_path: bool = False
    partial: int = 1

    @nn.compact
    def __call__(self, inputs, weights, keep, train):
        """Returns the list of all states, inputs first, each float32[N, H, W, C].

        Args:
          inputs: the input states, each float32[N, H, W, C]; of a single path with
            stride 1, C is that of the others.
          weights: float32[len(edges), K], a factor of each operation.
          keep: float32[len(edges), N], a factor of each edge and example from
            which a plain identity is exempt: drop path. Or None, for no factor.
          train: bool, whether batch norms use the statistics of the batch.

        Raises:
          InputError: the channels cannot be parted; a single path is asked for in part,
            or of edges with fewer operations.
        """
        self._check()
        if self.single_path and not self.is_initializing():
            return self._single_path(inputs, weights, keep, train)
        states = list(inputs)
        entering: list[list] = [[] for _ in range(self.num_states)]
        for level in levels(self.num_inputs, self.num_states):
            if level[0] >= self.num_inputs:
                arrived = entering[level[0]] or [self._nothing(inputs)]
                state = materialise(sum(arrived))[0]
                if self.partial > 1:
                    state = self._rejoin(level[0], state, states, weights)
                states.append(state)
            for users, outputs in self._mixtures(level, states, train).items():
                kept = keep if keep is None else _rows(keep, users)
                mixed = materialise(_mix(outputs, _rows(weights, users), kept))
                parts = lax.split(mixed, (1,) * len(users))
                for edge, value in zip(users, parts, strict=True):
                    entering[self.edges[edge].target].append(value)
        return states

    def _check(self):
        if self.partial < 1 or self.channels % self.partial:
            raise InputError(
                f"expected channels that {self.partial} divides, as operations see one "
                f"in so many, but got {self.channels}: change one of them"
            )
        known = {name for name in self.op_names if name in OPS}
        lacking = [edge for edge in self.edges if known - set(edge.ops)]
        if self.single_path and (self.partial > 1 or lacking or not known):
            raise InputError(
                "expected a single path of all channels, partial 1, and edges of all "
                f"operations, but got {self.partial}, and {len(lacking)} of fewer: "
                "leave out single_path"
            )

    def _nothing(self, inputs):
        """A state that no edge enters: of the channels that operations see."""
        count, *sides, _ = inputs[0].shape
        sides = [-(-side // self.stride) for side in sides]
        shape = (1, count, *sides, self.channels // self.partial)
        return jnp.zeros(shape, inputs[0].dtype)

    def _rejoin(self, target, seen, states, weights):
        """Puts the channels that passed by behind the others, and shuffles them.

        What passes an edge counts as much as its operations do together.
        """
        first = seen.shape[-1]
        passed = jnp.zeros((*seen.shape[:-1], self.channels - first), seen.dtype)
        for edge, row in zip(self.edges, weights, strict=True):
            if edge.target == target:
                x = states[edge.source][..., first:]
                if self.stride > 1 and edge.source < self.num_inputs:
                    x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
                passed += row.sum() * x
        x = jnp.concatenate([seen, passed], -1)
        parted = x.reshape(*x.shape[:-1], self.partial, -1)
        return materialise(parted.swapaxes(-1, -2).reshape(x.shape))

    def _mixtures(self, level, states, train):
        """Computes the operations that leave a level, by the edges that use them.

        Returns a dict from edges to [(k, float32[E or S, N, H, W, C], exempt)].
        """
        mixtures: dict[tuple[int, ...], list] = {}
        for k, op_name in enumerate(self.op_names):
            if op_name not in OPS:
                continue
            for name, users in groups(self.edges, level, op_name):
                sources = dict.fromkeys(self.edges[i].source for i in users)
                x = jnp.stack([self._seen(states[source]) for source in sources])
                op = OPS[op_name](len(users), *self._how(level[0]), name=name)
                output = (k, op(x, train), isinstance(op, Identity))
                mixtures.setdefault(users, []).append(output)
        return mixtures

    def _seen(self, x):
        """The channels of a state that operations see."""
        return x[..., : self.channels // self.partial] if self.partial > 1 else x

    def _how(self, source):
        """Channels, stride and norms of the operations that leave a state."""
        stride = self.stride if source < self.num_inputs else 1
        pool_norm = self.pool_norm and self.affine is not None
        return self.channels // self.partial, stride, self.affine, pool_norm

    def _single_path(self, inputs, weights, keep, train):
        """Computes the strongest operation of each edge, edge after edge."""
        first, given = self.num_inputs, (weights, keep, train)
        every = levels(first, self.num_states)
        new = jnp.repeat(self._nothing(inputs), self.num_states - first, 0)
        inputs = jnp.stack(inputs)
        if self.stride == 1:
            states = jnp.concatenate([inputs, new])
            return list(self._chosen(every, 0, None, states, *given))
        new = self._chosen(every[:1], first, inputs, new, *given)
        return [*inputs, *self._chosen(every[1:], first, None, new, *given)]

    def _chosen(self, every, first, inputs, states, weights, keep, train):
        """Adds what the edges of some levels carry to the states from a first one on.

        Inputs are what they leave; None: the states as well.
        """
        ops = [name for name in self.op_names if name in OPS]
        grouped = {
            name: [group for at in every for group in groups(self.edges, at, name)]
            for name in ops
        }
        users = [user for _, group in grouped[ops[0]] for user in group]
        if not users:
            return states
        begin = first if inputs is None else 0
        loop = Loop(
            self.op_names,
            self._how(self.edges[users[0]].source),
            tuple(self.edges[i].source - begin for i in users),
            tuple(self.edges[i].target - first for i in users),
            train,
            self.is_mutable_collection(AGREEMENT),
        )
        of_choice = [grouped.get(name, []) for name in self.op_names]
        params, stats = (
            [_join(self.variables.get(part, {}), named) for named in of_choice]
            for part in ("params", "batch_stats")
        )
        kept = keep if keep is None else _rows(keep, users)
        found = choose(loop, inputs, states, _rows(weights, users), kept, params, stats)
        if loop.agreement:
            tell(self, AGREEMENT, found.agreement)
        if self.is_mutable_collection("batch_stats"):
            for whole, named in zip(found.batch_stats, of_choice, strict=True):
                old = self.variables.get("batch_stats", {})
                for name, part in _part(whole, old, named):
                    self.put_variable("batch_stats", name, part)
        return found.sums


def _join(variables, named):
    """One tree with the rows of all groups; {} where these have no variables."""
    trees = [variables[name] for name, _ in named if name in variables]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees) if trees else {}


def _part(whole, variables, named):
    """The names of groups and their rows, the inverse of `_join`."""
    start = 0
    for name, _ in named:
        if name in variables:
            end = start + len(jax.tree.leaves(variables[name])[0])
            yield name, jax.tree.map(lambda x, a=start, b=end: x[a:b], whole)
            start = end


def _rows(x, indices):
    """Takes rows, without the gather whose gradient compiles slowly."""
    rows = lax.split(x, (1,) * len(x))
    return jnp.concatenate([rows[i] for i in indices])


def _mix(outputs, weights, keep):
    """Sums operations that the same edges use, weighted: float32[E, N, H, W, C]."""
    total: Array | float = 0.0
    alike = []  # the same for all edges of a state: mixed by one product, else XLA
    for k, y, exempt in outputs:  # computes them again for each edge
        factor = weights[:, k : k + 1]
        if keep is not None and not exempt:
            factor = factor * keep
            y = jnp.repeat(y, len(weights) // len(y), 0)
        elif len(y) < len(weights):
            alike.append((k, y))
            continue
        total += factor[:, :, None, None, None] * y
    if alike:
        stacked = jnp.stack([y for _, y in alike], 1)
        factors = jnp.stack([weights[:, k] for k, _ in alike], 1)
        factors = factors.reshape(len(stacked), -1, len(alike))
        mixed = jnp.einsum("sep,spnhwc->senhwc", factors, stacked)
        total += mixed.reshape(-1, *mixed.shape[2:])
    return total
