"""Depthwise convolution and its derivatives, against sums written out in numpy."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnas.nn import depthwise
from jaxnas.nn.depthwise import Window, depthwise_conv

EDGES, IMAGES, SIZE, CHANNELS = 4, 2, (6, 7), 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def draw_case(size, sharers=1, image=SIZE, stride=1):
    """An image, a kernel and what the gradient of the output may be."""
    output = [-(-s // stride) for s in image]
    return (
        draw(0, EDGES // sharers, IMAGES, *image, CHANNELS),
        draw(1, EDGES, size, size, CHANNELS),
        draw(2, EDGES, IMAGES, *output, CHANNELS),
    )


def sum_up(x, kernel, g, stride, dilation):
    """The convolution, and the gradients of its product with g by x and kernel."""
    edges, size = kernel.shape[:2]
    margin = dilation * (size - 1) // 2
    pads = ((0, 0), (0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(np.repeat(x, edges // len(x), 0), pads)
    y, by_kernel, by_padded = (np.zeros_like(a) for a in (g, kernel, padded))
    for i, j in itertools.product(range(size), repeat=2):
        rows, columns = (
            slice(t * dilation, t * dilation + stride * (out - 1) + 1, stride)
            for t, out in zip((i, j), g.shape[2:4], strict=True)
        )
        under = padded[:, :, rows, columns]
        tap = kernel[:, None, None, None, i, j]
        y += under * tap
        by_kernel[:, i, j] = (under * g).sum((1, 2, 3))
        by_padded[:, :, rows, columns] += tap * g
    height, width = x.shape[2:4]
    by_x = by_padded[:, :, margin : margin + height, margin : margin + width]
    return y, by_x.reshape(len(x), -1, *x.shape[1:]).sum(1), by_kernel


def everything(x, kernel, g, stride=1, dilation=1):
    """The same three by JAX."""
    y, pull_back = jax.vjp(
        lambda x, kernel: depthwise_conv(x, kernel, stride, dilation), x, kernel
    )
    return y, *pull_back(g)


def everything_grouped(x, kernel, g, stride, dilation):
    """The same three as platforms other than the CPU compute them."""
    sharers = len(kernel) // len(x)
    window = Window(kernel.shape[1:3], x.shape[2:4], stride, dilation, sharers)
    return (
        depthwise._grouped(x, kernel, window=window),
        depthwise._grouped_input_grad(g, kernel, window=window),
        depthwise._grouped_kernel_grad(x, g, window=window),
    )


def assert_close(found, expected):
    compare = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    jax.tree.map(compare, found, tuple(expected))


settings = pytest.mark.parametrize(
    ("size", "stride", "dilation"), [*itertools.product((1, 3, 5), (1, 2), (1, 2))]
)
sharing = pytest.mark.parametrize("sharers", [1, 2, EDGES])


@sharing
@settings
def test_conv_and_its_gradients_are_the_sums(size, stride, dilation, sharers):
    case = draw_case(size, sharers, stride=stride)
    how = (stride, dilation)
    expected = sum_up(*case, *how)
    both = jax.jit(
        lambda *case: (everything(*case, *how), everything_grouped(*case, *how))
    )
    for found in both(*case):
        assert_close(found, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", [(1, 1), (2, 3), (2, 75)])
def test_conv_takes_images_below_the_kernel_and_wide_ones(image, stride):
    case = draw_case(5, image=image, stride=stride)
    run = jax.jit(partial(everything, stride=stride, dilation=2))
    assert_close(run(*case), sum_up(*case, stride, 2))


def test_conv_of_edges_that_cannot_share_equally_is_refused():
    x, kernel, _ = draw_case(3)
    with pytest.raises(ValueError, match="4 edges cannot share 3 inputs"):
        depthwise_conv(x[:3], kernel)


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((1, 2, 6, 7, 2), (4, 2, 2, 2)),
        ((1, 2, 6, 7, 3), (4, 3, 3, 1)),
        ((2, 6, 7, 2), (4, 3, 3, 2)),
        ((1, 2, 6, 7, 2), (0, 3, 3, 2)),
    ],
)
def test_conv_of_other_shapes_is_refused(x, kernel):
    with pytest.raises(ValueError, match=r"expected|share"):
        depthwise_conv(np.ones(x), np.ones(kernel))


def test_conv_gives_each_operand_a_gradient_of_its_type():
    x, kernel, _ = draw_case(3)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(np.float32)
    y, pull_back = jax.vjp(depthwise_conv, x, kernel)
    assert y.dtype == jnp.float32
    assert [g.dtype for g in pull_back(y)] == [jnp.bfloat16, jnp.float32]


def test_conv_has_the_output_and_type_of_its_input():
    x, kernel, _ = (a.astype(np.float32) for a in draw_case(3))
    out = jax.eval_shape(lambda x, k: depthwise_conv(x, k, 2), x, kernel)
    assert out.shape == (EDGES, IMAGES, 3, 4, CHANNELS)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("mode", ["fwd", "rev"])
@sharing
def test_conv_has_derivatives_of_every_order(sharers, mode):
    x, kernel, _ = draw_case(3, sharers, image=(3, 4))
    check_grads(partial(depthwise_conv, stride=2), (x, kernel), 3, [mode], rtol=1e-5)


@sharing
def test_conv_mixes_modes_as_differences_do(sharers):
    x, kernel, g = draw_case(3, sharers, stride=2)
    along = draw(3, *x.shape), draw(4, *kernel.shape)

    def gradient(x, kernel):
        y, *grads = everything(x, kernel, g, 2)
        return *grads, jnp.sum(y**2)

    @jax.jit
    def both(x, kernel):
        _, tangents = jax.jvp(gradient, (x, kernel), along)
        ends = [
            gradient(x + s * along[0], kernel + s * along[1]) for s in (1e-5, -1e-5)
        ]
        return tangents, jax.tree.map(lambda a, b: (a - b) / 2e-5, *ends)

    tangents, differences = both(x, kernel)
    compare = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(compare, tangents, differences)


@sharing
@pytest.mark.parametrize(
    "mapped", [m for m in itertools.product((True, False), repeat=3) if any(m)]
)
def test_conv_is_mapped_with_its_gradients(mapped, sharers):
    case = draw_case(3, sharers, stride=2)
    batch = tuple(
        np.stack([a, draw(5 + i, *a.shape)]) if is_mapped else a
        for i, (a, is_mapped) in enumerate(zip(case, mapped, strict=True))
    )
    axes = tuple(0 if is_mapped else None for is_mapped in mapped)
    run = jax.vmap(partial(everything, stride=2), axes)
    found = jax.jit(run)(*batch)
    for i in range(2):
        alone = [a[i] if axis == 0 else a for a, axis in zip(batch, axes, strict=True)]
        assert_close(tuple(a[i] for a in found), sum_up(*alone, 2, 1))


def test_conv_is_mapped_twice_and_over_any_axis():
    x, kernel, g = draw_case(3)
    many_x = np.stack([x, 2 * x], -1)
    many_g = np.stack([g, 3 * g, 5 * g], 2)
    run = jax.vmap(jax.vmap(everything, (-1, None, None)), (None, None, 2))
    found = jax.jit(run)(many_x, kernel, many_g)
    y, by_x, by_kernel = sum_up(x, kernel, g, 1, 1)
    for (i, by_g), (j, by) in itertools.product(
        enumerate((1, 3, 5)), enumerate((1, 2))
    ):
        expected = by * y, by_g * by_x, by * by_g * by_kernel
        assert_close(tuple(a[i, j] for a in found), expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_a_grouped_convolution(platform):
    case = [a.astype(np.float32) for a in draw_case(3)]
    text = jax.jit(everything).trace(*case).lower(lowering_platforms=(platform,))
    assert text.as_text().count("stablehlo.convolution") == 3
    on_cpu = jax.jit(everything).trace(*case).lower(lowering_platforms=("cpu",))
    assert "stablehlo.convolution" not in on_cpu.as_text()
