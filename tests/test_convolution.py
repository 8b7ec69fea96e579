"""The convolution by band matrices, and that by patches, is the one that XLA has."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.nn.convolution import (
    TILE,
    WHOLE_ROW,
    by_bands,
    convolution,
    transposed_by_lax,
    transposed_convolution,
)

# Whole rows, tiles that fit, and tiles of which the last is longer than the image.
IMAGES = [(1, 1), (2, 3), (3, 5), (8, 8), (9, 9), (10, 7), (7, 10), (16, 16)]


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def by_lax(x, kernel, stride=1, padding=None):
    """Written out, for the half of an odd kernel as padding."""
    border = len(kernel) // 2 if padding is None else padding
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(border, border)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def result_and_pulled(form, x, kernel, cotangent):
    """The result, and the gradients by the image and the kernel."""
    result, pull = jax.vjp(form, x, kernel)
    return result, *pull(cotangent)


def test_images_are_of_both_kinds():
    widths = [width for _, width in IMAGES]
    assert min(widths) < WHOLE_ROW in widths
    assert {width % TILE for width in widths if width > WHOLE_ROW} == {0, 1, 2}


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_bands_are_the_convolution_of_lax_and_its_gradients(size):
    given = [
        (draw(0, 2, *image, 3), draw(1, size, size, 3, 5), draw(2, 2, *image, 5))
        for image in IMAGES
    ]

    def every(form, given):
        return [result_and_pulled(form, *one) for one in given]

    with jax.enable_x64(True):
        found, expected = (
            jax.jit(partial(every, form))(given) for form in (by_bands, by_lax)
        )
    compare = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12, strict=True)
    jax.tree.map(compare, found, expected)


# The side of a kernel, the stride, the padding; None is half of the kernel.
WINDOWS = [(1, 2, None), (2, 1, 0), (2, 2, None), (3, 1, 0), (3, 2, None), (4, 3, 1)]


def test_convolution_of_any_window_is_that_of_lax_and_its_gradients():
    """Even kernels, strides and borders, on images of even and of odd sides."""
    given = [
        (draw(0, 2, *image, 3), draw(1, size, size, 3, 5))
        for image in ((4, 5), (7, 6))
        for size, _, _ in WINDOWS
    ]

    def every(form, given):
        """Values, gradients, and how these change along the images and kernels."""

        def one(x, kernel, stride, padding):
            def loss(x, kernel):
                return jnp.cos(form(x, kernel, stride, padding)).sum()

            gradient = jax.grad(loss, (0, 1))
            pushed = jax.jvp(gradient, (x, kernel), (jnp.sin(x), jnp.sin(kernel)))
            return form(x, kernel, stride, padding), pushed

        windows = [window[1:] for window in WINDOWS] * 2
        return [one(*a, *b) for a, b in zip(given, windows, strict=True)]

    with jax.enable_x64(True):
        found, expected = (
            jax.jit(partial(every, form))(given) for form in (convolution, by_lax)
        )
    compare = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11, strict=True)
    jax.tree.map(compare, found, expected)


def test_convolution_has_its_gradient_by_one_argument_alone():
    """As where images are data, or kernels are fixed."""
    x, kernel = draw(0, 2, 4, 9, 3), draw(1, 3, 3, 3, 2)

    def gradients(form):
        def value(x, kernel):
            return jnp.square(form(x, kernel)).sum()

        return [jax.grad(value, which)(x, kernel) for which in (0, 1)]

    with jax.enable_x64(True):
        run = jax.jit(gradients, static_argnums=0)
        found, expected = run(by_bands), run(by_lax)
    compare = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11)
    jax.tree.map(compare, found, expected)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("width", [4, 9])
def test_bands_are_the_convolution_inside_a_scan(size, width):
    """Four layers one after another: the value and its gradients."""
    x, kernels = draw(0, 2, 5, width, 3), draw(1, 4, size, size, 3, 3)

    def chained(form, x, kernels):
        def step(x, kernel):
            return jnp.tanh(form(x, kernel)), x.sum()

        x, sums = jax.lax.scan(step, x, kernels)
        return jnp.square(x).sum() + sums.sum()

    with jax.enable_x64(True):
        found, expected = (
            jax.jit(jax.value_and_grad(partial(chained, form), (0, 1)))(x, kernels)
            for form in (by_bands, by_lax)
        )
    compare = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    jax.tree.map(compare, found, expected)


def test_convolution_is_for_one_image_what_it_is_for_a_batch_of_networks():
    x, kernels = draw(0, 3, 2, 4, 9, 2), draw(1, 3, 3, 3, 2, 4)
    cotangents = draw(2, 3, 2, 4, 9, 4)
    with jax.enable_x64(True):
        run = partial(result_and_pulled, by_bands)
        found = jax.jit(jax.vmap(run))(x, kernels, cotangents)
        expected = jax.jit(
            lambda *given: jax.lax.map(
                lambda one: result_and_pulled(by_lax, *one), given
            )
        )(x, kernels, cotangents)
    compare = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    jax.tree.map(compare, found, expected)


def test_convolution_takes_the_form_of_its_platform():
    given = jnp.ones((1, 4, 9, 2)), jnp.ones((3, 3, 2, 4)), jnp.ones((1, 4, 9, 4))
    traced = jax.jit(partial(result_and_pulled, convolution)).trace(*given)
    for platform, is_lax in (("cpu", False), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 3 * is_lax
        assert text.count("stablehlo.dot_general") > 0 or is_lax


def test_convolution_sees_no_pixels_outside():
    """Ones under a kernel of ones: each pixel counts those that its window has."""
    counts = np.asarray(convolution(jnp.ones((1, 3, 10, 1)), jnp.ones((5, 5, 1, 1))))
    rows, columns = np.array([3, 3, 3]), np.array([3, 4, 5, 5, 5, 5, 5, 5, 4, 3])
    np.testing.assert_array_equal(counts[0, :, :, 0], np.outer(rows, columns))


# Sides of the kernel and strides: phases without a tap, windows that overlap or not.
SPREAD = [(size, stride) for size in range(2, 8) for stride in (1, 2, 3)]


def test_transposed_convolution_is_that_of_lax_and_its_gradients():
    """On odd sizes, with what is cut and what no window reaches."""
    x, sizes = (
        draw(0, 2, 4, 3, 3),
        [(4 * stride - 1, 3 * stride) for _, stride in SPREAD],
    )
    kernels = [draw(1, size, size, 3, 2) for size, _ in SPREAD]

    def every(form, x, kernels):
        """Values, gradients, and how these change: forwards, and in reverse."""

        def one(kernel, stride, size):
            def loss(x, kernel):
                return jnp.cos(form(x, kernel, stride, size)).sum()

            def slope(x, kernel):  # as a gradient penalty has it
                return jnp.square(jax.grad(loss)(x, kernel)).sum()

            gradient = jax.grad(loss, (0, 1))
            pushed = jax.jvp(gradient, (x, kernel), (jnp.sin(x), jnp.sin(kernel)))
            result = form(x, kernel, stride, size)
            return result, pushed, jax.grad(slope, (0, 1))(x, kernel)

        strides = [stride for _, stride in SPREAD]
        return [one(*given) for given in zip(kernels, strides, sizes, strict=True)]

    with jax.enable_x64(True):
        found, expected = (
            jax.jit(partial(every, form))(x, kernels)
            for form in (transposed_convolution, transposed_by_lax)
        )
    compare = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9, strict=True)
    jax.tree.map(compare, found, expected)


def test_strided_convolutions_are_for_one_what_they_are_for_a_batch_of_networks():
    x, kernels = draw(0, 3, 2, 5, 4, 2), draw(1, 3, 4, 4, 2, 3)

    def loss(x, kernel):
        down = convolution(x, kernel, stride=2, padding=1)
        up = transposed_convolution(down, kernel.swapaxes(2, 3), 2, (5, 4))
        return jnp.square(up).sum()

    with jax.enable_x64(True):
        run = jax.grad(loss, (0, 1))
        found = jax.jit(jax.vmap(run))(x, kernels)
        expected = jax.jit(lambda *given: jax.lax.map(lambda one: run(*one), given))(
            x, kernels
        )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), found, expected)
