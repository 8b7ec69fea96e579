"""GANs and VAEs against closed forms, and what they learn of known distributions."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import logistic

from jaxnas.base import Evidence, InputError
from jaxnas.generators.adversarial import LOSSES, clip, gan, gradient_penalty
from jaxnas.generators.variational import Examples, vae
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.nn.image import (
    Discriminator,
    Double,
    Downward,
    GaussianEncoder,
    Halve,
    Norm,
    Upward,
    sides,
)
from jaxnas.tasks import (
    bernoulli,
    categorical,
    discretized_logistic,
    elbo,
    gaussian_kl,
)
from jaxnas.training import init_variables

draw = np.random.default_rng(0)


def test_divergence_of_gaussians_is_the_integral():
    mean, log_variance = draw.normal(size=(2, 5, 3))
    # KL = E[log q - log p] over q, with 40 nodes of Gauss and Hermite exact for it.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = mean[..., None] + np.exp(log_variance / 2)[..., None] * nodes
    log_q = -(nodes**2) / 2 - log_variance[..., None] / 2
    each = ((log_q + z**2 / 2) * weights).sum(-1) / weights.sum()
    found = gaussian_kl(jnp.array(mean), jnp.array(log_variance))
    np.testing.assert_allclose(found, each.sum(-1), rtol=1e-5)


def test_bound_is_the_likelihood_less_the_divergence():
    mean, log_variance = jnp.array(draw.normal(size=(2, 4, 3)), jnp.float32)
    logits = jnp.array(draw.normal(size=(4, 2, 5)), jnp.float32)
    x = jax.nn.one_hot(jnp.array(draw.integers(5, size=(4, 2))), 5)
    said = Evidence(mean, log_variance, logits)
    bound, divergence = elbo(categorical, said, x, beta=0.5)
    log_p = jnp.log(jax.nn.softmax(logits))[x > 0].reshape(4, 2).sum(1)
    np.testing.assert_allclose(bound, log_p - 0.5 * divergence, rtol=1e-5)


def test_bernoulli_is_a_probability_of_bits():
    logits = jnp.array(draw.normal(size=(1, 3)), jnp.float32)
    every = np.indices((2, 2, 2)).reshape(3, -1).T.astype(np.float32)
    total = sum(float(jnp.exp(bernoulli(logits, row[None]))[0]) for row in every)
    assert total == pytest.approx(1, rel=1e-5)


def test_discretized_logistic_gives_the_levels_probabilities_that_add_up():
    mean, std = 0.4, 0.25
    levels = (np.arange(256) / 255 - mean) / std
    width = np.float32([1 / 255 / std])
    function = discretized_logistic(width, levels[:1], levels[-1:])
    outputs = jnp.full((256, 1, 1, 1), 0.7), jnp.array([-1.5])
    found = np.exp(function(outputs, jnp.float32(levels[:, None, None, None])))
    assert found.sum() == pytest.approx(1, rel=1e-4)
    edges = [-np.inf, *(levels[1:] - width / 2), np.inf]
    expected = np.diff(logistic.cdf(edges, 0.7, np.exp(-1.5)))
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_discretized_logistic_of_a_mean_far_off_is_finite_and_so_is_its_gradient():
    function = discretized_logistic(*(np.float32([x]) for x in (2 / 255, -1, 1)))
    x = jnp.zeros((1, 1, 1, 1))

    def of(mean):
        outputs = jnp.full((1, 1, 1, 1), mean), jnp.zeros(1)
        return function(outputs, x)[0]

    # log(sigmoid(a) - sigmoid(b)) of a = b + width goes as b + log(exp(width) - 1).
    found, slope = jax.value_and_grad(of)(3e5)
    assert found == pytest.approx(-3e5, rel=1e-4)
    assert slope == pytest.approx(-1, rel=1e-4)


def test_gradient_penalty_of_a_linear_critic_is_that_of_its_weights():
    weights = draw.normal(size=6)
    x = jnp.array(draw.normal(size=(2, 4, 2, 3)), jnp.float32)

    def critic(x):
        return x.reshape(len(x), -1) @ jnp.float32(weights)

    found = gradient_penalty(critic, jax.random.key(0), *x)
    assert found == pytest.approx((np.linalg.norm(weights) - 1) ** 2, rel=1e-5)
    flat = gradient_penalty(lambda x: 0 * critic(x), jax.random.key(0), *x)
    assert flat == pytest.approx(1, rel=1e-5)


def test_losses_are_the_papers():
    real, fake = jnp.array(draw.normal(size=(2, 7)), jnp.float32)
    p, q = jax.nn.sigmoid(real), jax.nn.sigmoid(fake)
    expected = {
        "vanilla": (-jnp.log(p).mean() - jnp.log(1 - q).mean(), -jnp.log(q).mean()),
        "lsgan": (
            (((real - 1) ** 2).mean() + (fake**2).mean()) / 2,
            ((fake - 1) ** 2).mean() / 2,
        ),
        "wgan": (fake.mean() - real.mean(), -fake.mean()),
    }
    expected["wgan_gp"] = expected["wgan"]
    assert set(LOSSES) == set(expected)
    for name, (of_critic, of_player) in expected.items():
        loss = LOSSES[name]
        assert loss.discriminator(real, fake) == pytest.approx(float(of_critic))
        assert loss.generator(fake) == pytest.approx(float(of_player))


def test_clip_keeps_parameters_in_the_box():
    tx = optax.chain(optax.sgd(1.0), clip(0.5))
    params = {"w": jnp.array([0.2, -3.0, 0.4])}
    grads = {"w": jnp.array([0.1, 0.0, -7.0])}
    updates, _ = tx.update(grads, tx.init(params), params)
    found = optax.apply_updates(params, updates)["w"]
    np.testing.assert_allclose(found, [0.1, -0.5, 0.5], atol=1e-6)


class Shifted(nn.Module):
    """Generates normal numbers of a mean and deviation."""

    @nn.compact
    def __call__(self, z, condition=None, train=False):
        return nn.Dense(1)(z)


class Critic(nn.Module):
    """Tells distributions of numbers apart."""

    @nn.compact
    def __call__(self, x, condition=None, train=False):
        x = nn.leaky_relu(nn.Dense(64)(jnp.concatenate([x, x**2], -1)))
        return nn.Dense(1)(x)[:, 0]


# Not wgan_gp: on lines it circles, as Mescheder et al. 2018, arXiv:1801.04406, show.
@pytest.mark.parametrize("loss", ["vanilla", "lsgan", "wgan"])
def test_gan_learns_a_normal_distribution(loss):
    steps = 5 if loss.startswith("wgan") else 1
    rate = optax.cosine_decay_schedule(4e-3, 1500)
    made = gan(
        Shifted(),
        Critic(),
        loss,
        optax.adam(rate, b1=0.5),
        num_latent=1,
        critic_steps=steps,
        tx_discriminator=optax.adam(lambda step: rate(step // steps), b1=0.5),
    )
    state = made.init(jax.random.key(0), jnp.zeros((64, 1)), None)

    @jax.jit
    def train(state):
        def one(state, key):
            key_x, key = jax.random.split(key)
            x = 1.0 + 0.5 * jax.random.normal(key_x, (64 * steps, 1))
            return made.update(key, state, x, None)[0], None

        keys = jax.random.split(jax.random.key(1), 1500)
        return jax.lax.scan(one, state, keys)[0]

    state = train(state)
    z = jax.random.normal(jax.random.key(2), (2000, 1))
    found = made.generate(jax.random.key(3), state, z, None)
    assert found.mean() == pytest.approx(1.0, abs=0.15)
    assert found.std() == pytest.approx(0.5, abs=0.2)


class Linear(nn.Module):
    """The encoder of probabilistic principal components."""

    num_latent: int

    @nn.compact
    def __call__(self, x, condition=None, train=False):
        shape = (self.num_latent,)
        log_variance = self.param("log_variance", nn.initializers.zeros, shape)
        mean = nn.Dense(self.num_latent)(x)
        return mean, jnp.broadcast_to(log_variance[None], mean.shape)


class LinearDecoder(nn.Module):
    """Its decoder: a mean and one noise."""

    width: int

    @nn.compact
    def __call__(self, z, condition=None, train=False):
        return nn.Dense(self.width)(z), self.param(
            "log_noise", nn.initializers.zeros, ()
        )


def test_bound_of_linear_networks_reaches_the_evidence_of_principal_components():
    """Where the posterior is Gaussian the bound is tight: Lucas et al. 2019."""
    mixing = draw.normal(size=(2, 5))
    x = draw.normal(size=(500, 2)) @ mixing + 0.3 * draw.normal(size=(500, 5))
    x = jnp.array(x - x.mean(0), jnp.float32)

    def log_normal(outputs, x):
        mean, log_noise = outputs
        each = jnp.square((x - mean) * jnp.exp(-log_noise)) + jnp.log(2 * jnp.pi)
        return -(each / 2 + log_noise).sum(-1)

    made = vae(
        Autoencoder(Linear(2), LinearDecoder(5)),
        log_normal,
        optax.adam(optax.cosine_decay_schedule(3e-2, 4000)),
    )
    state = made.init(jax.random.key(0), Examples(x))

    @jax.jit
    def train(state):
        def one(state, key):
            return made.update(key, state, Examples(x))[0], None

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(1), 4000))[0]

    state = train(state)
    keys = jax.random.split(jax.random.key(2), 200)
    found = jax.vmap(lambda key: made.bound(key, state, x, None)[0].mean())(keys)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:3].mean()  # Tipping and Bishop 1999
    kept = vectors[:, 3:] * np.sqrt(values[3:] - noise)
    covariance = kept @ kept.T + noise * np.eye(5)
    whitened = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    assert found.mean() == pytest.approx(-(whitened.mean() + log_det) / 2, abs=0.05)


@pytest.mark.parametrize("side", [7, 8, 28])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_stages_halve_and_double_every_image(side, size):
    x = jnp.zeros((2, side, side + 1, 3))
    down, variables = Halve(4, size, bias=True).init_with_output(jax.random.key(0), x)
    del variables
    assert down.shape == (2, sides(side, 1)[1], sides(side + 1, 1)[1], 4)
    up = Double(3, size, (side, side + 1), bias=True)
    assert up.init_with_output(jax.random.key(0), down)[0].shape == x.shape


def test_spectral_normalisation_keeps_the_largest_singular_value_at_1():
    network = Discriminator(Downward((4, 8), norm="none", spectral=True))
    x = jnp.array(draw.normal(size=(3, 8, 8, 1)), jnp.float32)
    variables = init_variables(network, jax.random.key(0), x)
    for _ in range(30):
        _, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **updated}
    sigmas = {
        k: v for k, v in traversed(variables["batch_stats"]).items() if "sigma" in k
    }
    kernels = {k: v for k, v in traversed(variables["params"]).items() if "kernel" in k}
    values = sorted(
        np.linalg.svd(v.reshape(-1, v.shape[-1]))[1][0] for v in kernels.values()
    )
    np.testing.assert_allclose(
        sorted(float(v) for v in sigmas.values()), values, rtol=1e-2
    )


def test_layer_norm_is_of_a_whole_image():
    x = 3 + 2 * jnp.array(draw.normal(size=(2, 4, 3, 5)), jnp.float32)
    x *= jnp.arange(1.0, 6)[None, None, None]
    norm = Norm("layer")
    out, variables = norm.init_with_output(jax.random.key(0), x, True)
    each = x.reshape(2, -1)
    apart = each - each.mean(1, keepdims=True)
    expected = apart / each.std(1, keepdims=True)
    np.testing.assert_allclose(out.reshape(2, -1), expected, atol=1e-4)
    assert {leaf.shape for leaf in jax.tree.leaves(variables)} == {(5,)}


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_updates_of_images_stay_finite_and_in_bounds(loss, spectral):
    widths, norm = (4,), "none"
    if loss == "wgan_gp" and not spectral:
        widths, norm = (4, 4), "layer"  # of all stages but the first
    trunk = Downward(widths, norm=norm, spectral=spectral)
    made = gan(
        Upward((8, 8, 1), (4,)),
        Discriminator(trunk),
        loss,
        optax.adam(1e-5, b1=0.5),
        num_latent=3,
    )
    x = jnp.array(draw.uniform(-1, 1, size=(4, 8, 8, 1)), jnp.float32)
    state = made.init(jax.random.key(0), x, None)
    update = jax.jit(made.update)
    for key in jax.random.split(jax.random.key(1), 60 if spectral else 3):
        state, metrics = update(key, state, x, None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
    params = state.discriminator.params
    if loss == "wgan":
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(params)) <= 0.0101
    if spectral:
        kernels = {k: v for k, v in traversed(params).items() if "kernel" in k}
        for name, sigma in traversed(state.discriminator.batch_stats).items():
            if "sigma" in name:
                (kernel,) = (v for k, v in kernels.items() if layer(k) == layer(name))
                flat = kernel.reshape(-1, kernel.shape[-1]) / sigma
                assert np.linalg.norm(flat, 2) <= 1.05


def layer(path):
    """The layer that a leaf is of, by its path."""
    return re.search(r"(Halve|Dense)_\d", path)[0]


def test_real_and_generated_examples_meet_the_same_weights():
    """The power iteration moves once an update; statistics of batches move twice."""
    x = jnp.array(draw.normal(size=(4, 8, 8, 1)), jnp.float32)
    trunk = Downward((4, 4), norm="batch", spectral=True)
    network = Discriminator(trunk)
    made = gan(Upward((8, 8, 1), (4,)), network, "wgan", optax.sgd(0.0), num_latent=3)
    state = made.init(jax.random.key(0), x, None)
    before = state.discriminator
    state, metrics = jax.jit(made.update)(jax.random.key(1), state, x, None)
    first = {"params": before.params, "batch_stats": before.batch_stats}
    apply = partial(network.apply, train=True, mutable=["batch_stats"])
    outputs, once = jax.jit(apply)(first, x)
    assert metrics["real"] == pytest.approx(float(outputs.mean()), rel=1e-4)
    after = traversed(state.discriminator.batch_stats)
    for name, leaf in traversed(once["batch_stats"]).items():
        same = np.allclose(after[name], leaf, atol=1e-6)
        assert same != ("mean" in name or "var" in name), name


def traversed(tree):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_labels_change_what_conditional_networks_say():
    label = jnp.array([0, 1])
    z, x = jnp.zeros((2, 3)), jnp.ones((2, 8, 8, 1))
    trunk = Downward((4,), norm="none")
    decoder = Upward((8, 8, 1), (4,), norm="none", num_classes=2)
    for network, given in [
        (decoder, z),
        (Discriminator(trunk, 2), x),
        (GaussianEncoder(trunk, 3, 2), x),
    ]:
        variables = init_variables(network, jax.random.key(0), given, label)
        out = jax.tree.leaves(network.apply(variables, given, label))[0]
        assert not np.allclose(out[0], out[1])


def test_bad_arguments_are_one_line():
    make = partial(gan, Shifted(), Critic(), tx=optax.adam(1e-3))
    with pytest.raises(InputError, match="expected num_latent of 1 or more, but got 0"):
        make("vanilla", num_latent=0)
    with pytest.raises(InputError, match="expected a loss of vanilla, lsgan"):
        make("hinge", num_latent=1)
    made = make("vanilla", num_latent=1, critic_steps=2)
    state = made.init(jax.random.key(0), jnp.zeros((4, 1)))
    for size in (0, 1, 3):
        with pytest.raises(InputError, match=f"a multiple of 2 .* but got {size}"):
            jax.eval_shape(made.update, jax.random.key(0), state, jnp.zeros((size, 1)))
    made = gan(
        Upward((8, 8, 1), (4,)),
        Discriminator(Downward((4, 4))),
        "wgan_gp",
        optax.adam(1e-3),
        num_latent=1,
    )
    with pytest.raises(InputError, match="without batch norm for wgan_gp"):
        made.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(InputError, match="expected beta of 0 or more"):
        vae(Autoencoder(Linear(1), LinearDecoder(1)), bernoulli, None, beta=-1)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Downward((4, 4), norm="bach"), "a norm of batch, layer, none, but got bach"),
        (Downward((4,), activation="gelu"), "an activation of relu, leaky_relu"),
        (Upward((4, 4, 1), (4,), output="logstic"), "an output of tanh, linear"),
        (Upward((4, 4, 1), (4,), num_classes=3), "labels int32.N. of 3 classes"),
        (Discriminator(Downward((4,)), 3), "labels int32.N. of 3 classes"),
    ],
)
def test_networks_refuse_what_they_do_not_know(network, said):
    x = jnp.zeros((2, 5)) if isinstance(network, Upward) else jnp.zeros((2, 4, 4, 1))
    with pytest.raises(InputError, match=said):
        jax.eval_shape(network.init, jax.random.key(0), x)
