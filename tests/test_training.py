import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas.training import TrainState, init_state, init_variables, make_update, sgd

TARGET = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -4.0]], np.float32)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 0.05


def squared_distance(params, batch_stats, key, batch):
    """Half the squared distance of the parameters to the batch."""
    gap = params["w"] - batch
    new_stats = {"seen": batch_stats["seen"] + batch.sum()}
    metrics = {"largest": jnp.abs(gap).max(), "draw": jax.random.uniform(key)}
    return 0.5 * jnp.sum(gap**2), (new_stats, metrics)


def start(tx) -> TrainState:
    variables = {
        "params": {"w": jnp.zeros_like(TARGET)},
        "batch_stats": {"seen": jnp.float32(0)},
    }
    return init_state(variables, tx)


def follow(tx, num_steps):
    """States and metrics after each of the steps, all on the target."""
    update = jax.jit(make_update(squared_distance, tx))
    states, metrics = [start(tx)], []
    for key in jax.random.split(jax.random.key(0), num_steps):
        state, found = update(key, states[-1], TARGET)
        states.append(state)
        metrics.append(found)
    return states, metrics


class Small(nn.Module):
    """A dense layer and a batch norm, which have draws, ones and zeros."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(not train)(nn.Dense(3)(x))


@pytest.mark.parametrize("batched", [False, True])
def test_init_variables_are_those_of_flax(batched):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.ShapeDtypeStruct((1, 4), jnp.float32)

    def ours(key):
        return init_variables(Small(), key, x, train=True)

    def theirs(key):
        return Small().init(key, jnp.zeros(x.shape), train=True)

    if batched:
        found, expected = jax.vmap(ours)(keys), jax.vmap(theirs)(keys)
    else:
        found, expected = ours(keys[0]), theirs(keys[0])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_init_variables_of_a_network_without_draws():
    found = init_variables(nn.BatchNorm(True), jax.random.key(0), jnp.ones((2, 3)))
    expected = nn.BatchNorm(True).init(jax.random.key(0), jnp.ones((2, 3)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Centred(nn.Module):
    """A running mean that starts at what comes first, and a parameter."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", lambda: x.mean()).value
        return mean * self.param("scale", nn.initializers.normal(), ())


def test_init_variables_depend_on_the_values_of_arrays_and_tracers():
    key, xs = jax.random.key(0), jnp.array([[1.0, 3.0], [5.0, 5.0]])
    expected = Centred().init(key, xs[0])
    assert expected["batch_stats"]["mean"] == 2
    found = init_variables(Centred(), key, xs[0])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    batch = jax.jit(jax.vmap(lambda x: init_variables(Centred(), key, x)))(xs)
    np.testing.assert_array_equal(batch["batch_stats"]["mean"], [2, 5])
    scale = expected["params"]["scale"]
    np.testing.assert_allclose(batch["params"]["scale"], [scale] * 2, rtol=1e-6)


def test_init_variables_refuses_those_that_need_values_of_a_mere_shape():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(ValueError, match="depend on the inputs"):
        init_variables(Centred(), jax.random.key(0), shape)


def test_init_state_counts_no_step_and_keeps_what_init_made():
    tx = sgd(LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
    state = start(tx)
    assert (int(state.step), state.step.dtype) == (0, jnp.int32)
    np.testing.assert_array_equal(state.params["w"], np.zeros_like(TARGET))
    assert float(state.batch_stats["seen"]) == 0
    (buffer,) = jax.tree.leaves(state.opt_state)
    np.testing.assert_array_equal(buffer, np.zeros_like(TARGET))


def test_init_state_of_a_network_without_norms_has_no_statistics():
    state = init_state({"params": {"w": jnp.ones(3)}}, optax.sgd(0.1))
    assert state.batch_stats == {}


def test_update_of_plain_descent_is_its_closed_form():
    # w <- w - r (w - target) from zero gives target (1 - (1 - r)^t).
    states, metrics = follow(optax.sgd(LEARNING_RATE), 3)
    for t, state in enumerate(states):
        expected = TARGET * (1 - (1 - LEARNING_RATE) ** t)
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
        assert int(state.step) == t
        np.testing.assert_allclose(
            state.batch_stats["seen"], t * TARGET.sum(), rtol=1e-6
        )
    for t, found in enumerate(metrics):  # of the batch, before the step
        left = (1 - LEARNING_RATE) ** t
        np.testing.assert_allclose(
            found["loss"], 0.5 * np.sum((left * TARGET) ** 2), rtol=1e-5
        )
        np.testing.assert_allclose(found["largest"], 4 * left, rtol=1e-5)


def test_update_hands_its_key_to_the_loss():
    _, metrics = follow(optax.sgd(LEARNING_RATE), 2)
    for key, found in zip(jax.random.split(jax.random.key(0), 2), metrics, strict=True):
        np.testing.assert_allclose(found["draw"], jax.random.uniform(key))


def test_updates_compose_as_two_networks_that_learn_from_each_other():
    # Each descends on its distance to the other; from 0 and 1 at rate 1/2 the first
    # goes to 1/2, then the second to 3/4, the first to 5/8, the second to 11/16.
    tx = optax.sgd(0.5)
    update = make_update(
        lambda params, stats, key, other: (
            0.5 * jnp.sum((params - other) ** 2),
            (stats, {}),
        ),
        tx,
    )

    def step(states, key):
        one, other = states
        one, _ = update(key, one, other.params)
        other, _ = update(key, other, one.params)
        return (one, other), (one.params, other.params)

    states = tuple(init_state({"params": jnp.float32(x)}, tx) for x in (0, 1))
    _, (ones, others) = jax.lax.scan(
        step, states, jax.random.split(jax.random.key(0), 2)
    )
    np.testing.assert_allclose(ones, [1 / 2, 5 / 8])
    np.testing.assert_allclose(others, [3 / 4, 11 / 16])


@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
@pytest.mark.parametrize("weight_decay", [0.0, WEIGHT_DECAY])
def test_sgd_is_that_of_pytorch(momentum, weight_decay):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    target, params = torch.from_numpy(TARGET), torch.zeros(TARGET.shape)
    params.requires_grad_()
    reference = torch.optim.SGD(
        [params], LEARNING_RATE, momentum, weight_decay=weight_decay
    )
    states, metrics = follow(sgd(LEARNING_RATE, momentum, weight_decay), 6)
    for state, found in zip(states[1:], metrics, strict=True):
        reference.zero_grad()
        loss = 0.5 * ((params - target) ** 2).sum()
        loss.backward()
        reference.step()
        np.testing.assert_allclose(found["loss"], loss.item(), rtol=1e-5)
        np.testing.assert_allclose(state.params["w"], params.detach(), rtol=1e-5)


def test_sgd_reads_a_schedule_from_its_own_count():
    def schedule(step):
        return jnp.array([0.5, 0.25, 0.0])[step]

    states, _ = follow(sgd(schedule, 0.0, 0.0), 3)
    found = [state.params["w"] for state in states[1:]]
    for w, share in zip(found, (0.5, 0.625, 0.625), strict=True):
        np.testing.assert_allclose(w, share * TARGET, rtol=1e-6)
