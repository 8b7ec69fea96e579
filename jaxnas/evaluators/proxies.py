"""Zero-cost proxies: what an untrained network tells of the accuracy it will reach.

Each is a look at a network with fresh weights, in training mode, and a score of what
was seen: higher is better. Where papers leave a choice, it is that of their code and of
Abdelfattah et al. 2021, arXiv:2101.08134. Weights are kernels of convolutions and
linear layers, without biases and the parameters of norms.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, PyTree
from jaxnas.tasks import Batch, classification

# Flax collections in which networks of a single path tell more where these are mutable,
# see `jaxnas.nn.probes`.
AGREEMENT = "agreement"  # float32[N, N], in how many units ReLUs agree on two images
SCALE = "scale"  # float32[], logarithms of what the output was divided by on the way

# What else there is to see, beside AGREEMENT.
LOSS = "loss"  # parameters, and the gradient of the mean cross entropy by them
INPUTS = "inputs"  # float32[N, pixels], the gradient of the sum of logits by images
KERNEL = "kernel"  # float32[N, N], the neural tangent kernel of sums of logits
FLOW = "flow"  # see `_flow`


class Untrained(NamedTuple):
    """A network with fresh weights, and what it is looked at with."""

    network: Any  # the supernet
    variables: PyTree
    choice: Array  # float32[D, K], the architecture, one-hot
    batch: Batch  # N examples, images float32[N, H, W, colours]

    def run(self, params: PyTree, images: Array, *told: str) -> tuple[Array, Array]:
        """Logits float32[N, C]; the sum of what is told in a collection, or 0."""
        logits, changed = self.network.apply(
            {**self.variables, "params": params},
            images,
            self.choice,
            train=True,
            mutable=["batch_stats", *told],
        )
        leaves = [x for name in told for x in jax.tree.leaves(changed.get(name, {}))]
        return logits, sum(leaves, jnp.float32(0))


def look(net: Untrained, wanted: set[str]) -> dict[str, Any]:
    """Sees what is wanted, by one pass forwards and one program that goes backwards.

    Norms normalise by the batch, and gradients go through that, as in the papers' code:
    an image has a part in the logits of others. The kernel takes N passes backwards,
    and their gradients are in memory together.
    """
    found: dict[str, Any] = {FLOW: _flow(net)} if FLOW in wanted else {}
    if wanted <= {FLOW}:
        return found
    told = [AGREEMENT] if AGREEMENT in wanted else []
    params, batch = net.variables["params"], net.batch
    logits, pull, found[AGREEMENT] = jax.vjp(
        lambda *given: net.run(*given, *told), params, batch.images, has_aux=True
    )
    ones = jnp.ones_like(logits)
    directions = {
        LOSS: jax.grad(classification().loss)(logits, batch)[None],
        INPUTS: ones[None],
        KERNEL: jnp.eye(len(ones))[:, :, None] * ones[None],
    }
    pulled = [direction for name, direction in directions.items() if name in wanted]
    if not pulled:
        return found
    by_params, by_images = lax.map(pull, jnp.concatenate(pulled))
    if LOSS in wanted:
        found[LOSS] = params, jax.tree.map(lambda x: x[0], by_params)
    if INPUTS in wanted:
        gradient = by_images[int(LOSS in wanted)]
        found[INPUTS] = gradient.reshape(len(gradient), -1)
    if KERNEL in wanted:
        found[KERNEL] = _kernel(jax.tree.map(lambda x: x[-len(ones) :], by_params))
    return found


def _kernel(gradients: PyTree) -> Array:
    """Products of the gradients of N images [N, ...] by all parameters but biases."""
    flat = [
        x.reshape(len(x), -1) for name, x in _named(gradients) if _kind(name) != "bias"
    ]
    products = (jnp.matmul(x, x.T, precision="highest") for x in flat)
    return sum(products, jnp.float32(0))


def _flow(net: Untrained) -> tuple[Array, PyTree, PyTree]:
    """log R, the absolute weights, and the gradient of log R by them.

    R is the sum of the outputs for an image of ones, without norms. The network divides
    its states as it goes and tells by how much: that changes no gradient of a
    logarithm. Its only bias is the classifier's. Without it R changes by a constant,
    and its gradient by the weights not at all. Where no path leads to the output the
    gradient is zero.
    """
    net = net._replace(network=net.network.clone(affine=None, pool_norm=False))

    def log_sum(params: PyTree) -> Array:
        logits, told = net.run(params, jnp.ones_like(net.batch.images[:1]), SCALE)
        total = logits.sum()
        return jnp.log(jnp.where(total > 0, total, 1.0)) + told

    def positive(path: tuple, x: Array) -> Array:
        return jnp.zeros_like(x) if _kind(_name(path)) == "bias" else jnp.abs(x)

    params = jax.tree_util.tree_map_with_path(positive, net.variables["params"])
    value, gradient = jax.value_and_grad(log_sum)(params)
    return value, params, gradient


# Scores


def grad_norm(seen: tuple[PyTree, PyTree]) -> Array:
    """The sum over layers of the Euclidean norm of the loss's gradient by the weights.

    Abdelfattah et al. 2021; 0 where no path leads to the output.
    """
    norms = [_norms(name, x) for name, x in _named(seen[1]) if _is_weight(name)]
    return sum(norms, jnp.float32(0))


def snip(seen: tuple[PyTree, PyTree]) -> Array:
    """The sum over weights of |w dL/dw| (Lee et al. 2019, arXiv:1810.02340).

    Abdelfattah et al. 2021 made it a proxy. 0 where no path leads to the output.
    """
    return _saliency(*seen)


def synflow(seen: tuple[Array, PyTree, PyTree]) -> Array:
    """The logarithm of the sum over weights of |w dR/dw|, without norms.

    Tanaka et al. 2020, arXiv:2006.05467; its logarithm, since products of many layers
    overflow: log R + log of the sum of w d(log R)/dw, weights being positive. -inf
    where no path leads to the output.
    """
    value, params, gradient = seen
    return value + jnp.log(_saliency(params, gradient))


def jacob_cov(gradient: Array) -> Array:
    """How little the gradients of N images, float32[N, pixels], are correlated.

    Mellor et al. 2020 (first version of arXiv:2006.04647): with the eigenvalues v of
    the N correlations' matrix -sum(log(v + k) + 1 / (v + k)), k = 1e-5. They are
    squares of singular values, which float32 resolves better. Where no path leads to
    the output v are 0: lower than any other score, and finite.
    """
    centred = gradient - gradient.mean(1, keepdims=True)
    norm = jnp.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / jnp.where(norm > 0, norm, 1.0)
    v = jnp.square(jnp.linalg.svd(unit, compute_uv=False)) + 1e-5
    return -jnp.sum(jnp.log(v) + 1 / v)


def naswot(kernel: Array) -> Array:
    """The log determinant of the agreement of ReLUs, float32[N, N].

    Mellor et al. 2021, arXiv:2006.04647. ReLUs that lead nowhere count, as in their
    code. -inf for images that all units agree on, and so where no path leads to the
    output and no ReLU lies before the gap.
    """
    return jnp.linalg.slogdet(kernel)[1]


def ntk(kernel: Array) -> Array:
    """Minus the condition number of the neural tangent kernel, float32[N, N].

    TE-NAS (Chen et al. 2021, arXiv:2102.11535), where smaller numbers are better. -inf
    for a kernel that is singular in float32, as where no path leads to the output.
    """
    values = jnp.linalg.eigvalsh(kernel)
    least = values[0]
    return jnp.where(least > 0, -values[-1] / jnp.where(least > 0, least, 1), -jnp.inf)


class Proxy(NamedTuple):
    """One proxy; those of equal numbers of examples share a look."""

    sees: str  # what `look` finds by this name
    score: Callable[[Any], Array]  # and what that is worth, float32[]
    examples: int  # N, unless another number is asked for


PROXIES = {
    "grad_norm": Proxy(LOSS, grad_norm, 64),
    "snip": Proxy(LOSS, snip, 64),
    "synflow": Proxy(FLOW, synflow, 1),
    "jacob_cov": Proxy(INPUTS, jacob_cov, 64),
    "naswot": Proxy(AGREEMENT, naswot, 128),
    "ntk": Proxy(KERNEL, ntk, 32),
}
"""All of them, with the batches of their papers' code. That of TE-NAS takes 72 examples
on CIFAR-10, for networks of 3 channels."""


# Parameters


def _named(params: PyTree) -> list[tuple[list[str], Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(_name(path), x) for path, x in leaves]


def _name(path: tuple) -> list[str]:
    return [key.key for key in path]


def _kind(name: list[str]) -> str:
    return name[-1].rpartition("_")[2]


def _is_weight(name: list[str]) -> bool:
    return _kind(name) not in ("scale", "bias")


def _saliency(params: PyTree, gradient: PyTree) -> Array:
    """The sum of |w g| over weights."""
    pairs = zip(_named(params), _named(gradient), strict=True)
    parts = [jnp.abs(w * g).sum() for (name, w), (_, g) in pairs if _is_weight(name)]
    return sum(parts, jnp.float32(0))


def _norms(name: list[str], x: Array) -> Array:
    """The Euclidean norms of the layers that a leaf holds, summed.

    In a cell each row is an edge's, and in a chain's trunk a slot's.
    """
    in_cell = any(re.fullmatch(r"cell\d*", part) for part in name)
    rows = len(x) if in_cell or name == ["trunk_kernel"] else 1
    return jnp.linalg.norm(x.reshape(rows, -1), axis=1).sum()
