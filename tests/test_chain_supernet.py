"""All chains in one program: it computes what each of their networks does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.encoding import one_hot
from jaxnas.nn.chain import LINKS
from jaxnas.spaces.chain import chain
from jaxnas.training import init_variables

CLASSES = 3
IMAGES = np.random.default_rng(0).normal(size=(4, 4, 3, 2))
KEY = jax.random.key(1)
make = partial(chain, (4, 3, 2), channels=(3, 4), kernels=(1, 3), trunk=4, head=2)
make = partial(make, units=(5,))


def outputs_of(network, variables, weights=None):
    """Logits, gradient and statistics in training, and logits with those."""

    def loss(params):
        logits, changed = network.apply(
            {**variables, "params": params},
            IMAGES,
            weights,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.square(logits).mean(), (logits, changed["batch_stats"])

    grad, (logits, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    given = {"params": variables["params"], "batch_stats": stats}
    return logits, grad, stats, network.apply(given, IMAGES, weights)


def of_supernet(space):
    """The variables and outputs of any architecture."""
    network = space.network(num_classes=CLASSES)

    def run(arch):
        weights = one_hot(arch, space.num_choices)
        variables = init_variables(network, KEY, IMAGES, weights, train=True)
        return variables, outputs_of(network, variables, weights)

    return run


# What takes its input on as it is, and what is too wide for a dense link, too.
ARCHS = {
    ("none",): [
        "conv3x3-3 max_pool relu conv1x1-4 / dense-5 gelu",
        "identity identity identity identity / identity identity",
    ],
    ("dense",): ["relu+dense conv3x3-3+dense gelu+dense conv1x1-4+dense / tanh relu"],
    LINKS: [
        "conv3x3-4+residual avg_pool+residual conv1x1-3+residual tanh+residual "
        "/ relu identity",
        "conv1x1-3+dense conv3x3-4+residual sigmoid+dense max_pool / dense-5 dense-5",
        "max_pool avg_pool max_pool conv3x3-4+dense / identity sigmoid",
    ],
}


def read(space, links, text):
    """An architecture; where all slots have the same link no string says so."""
    if len(links) == 1:
        text = text.replace(f"+{links[0]}", "")
    return np.asarray(space.from_string(text))


@pytest.mark.parametrize("links", ARCHS)
def test_supernet_trains_each_network_as_it_is_by_itself(links):
    space = make(links=links)
    compare = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-11)
    with jax.enable_x64(True):
        run = jax.jit(of_supernet(space))
        for text in ARCHS[links]:
            arch = read(space, links, text)
            variables, (logits, grad, stats, tested) = run(arch)
            few = {k: space.restrict(v, arch) for k, v in variables.items()}
            network = space.network(arch, num_classes=CLASSES)
            alone = jax.jit(partial(outputs_of, network))
            of_arch = partial(space.restrict, arch=arch)
            found = logits, of_arch(grad), of_arch(stats), tested
            jax.tree.map(compare, found, alone(few))
            assert_nothing_elsewhere(grad, of_arch(grad))
            assert_nothing_elsewhere(variables["params"], few["params"])


def test_shared_weights_are_those_of_each_network():
    space = make(links=LINKS)
    supernet = space.network(num_classes=CLASSES, shared=True)
    archs = [jnp.asarray(read(space, LINKS, text)) for text in ARCHS[LINKS]]
    given = KEY, np.float32(IMAGES), one_hot(archs[0], space.num_choices)
    variables = init_variables(supernet, *given)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: x.astype(float), variables)
        run = jax.jit(partial(outputs_of, supernet))
        compare = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
        for arch in archs:
            logits, grad, stats, tested = run(
                variables, one_hot(arch, space.num_choices)
            )
            of_arch = partial(space.restrict, arch=arch)
            network = space.network(arch, num_classes=CLASSES)
            alone = jax.jit(partial(outputs_of, network))
            few = {k: of_arch(v) for k, v in variables.items()}
            found = logits, of_arch(grad), of_arch(stats), tested
            jax.tree.map(compare, found, alone(few))


def assert_nothing_elsewhere(full, few):
    """What a network does not have is zero; norms that it has not start at one."""
    for part in ("kernel", "bias"):
        sums = [
            sum(
                np.square(leaf).sum()
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
                if part in str(path[-1])
            )
            for tree in (full, few)
        ]
        np.testing.assert_allclose(*sums, rtol=1e-12)


def test_supernet_computes_every_network_of_a_batch():
    """Under vmap, where all layers are computed and one is taken."""
    space = make(links=LINKS, kernels=(3,), channels=(4,), trunk=2, head=1)
    archs = [
        "conv3x3-4+residual gelu+dense / dense-5",
        "max_pool conv3x3-4+dense / relu",
        "tanh avg_pool+residual / identity",
    ]
    archs = jnp.stack([space.from_string(text) for text in archs])
    run = of_supernet(space)
    together = jax.jit(jax.vmap(run))(archs)
    alone = jax.jit(run)
    compare = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    for i, arch in enumerate(archs):
        jax.tree.map(compare, jax.tree.map(lambda x: x[i], together), alone(arch))  # noqa: B023


def test_supernet_takes_the_strongest_choice():
    space = make()
    arch = read(space, ("none",), ARCHS[("none",)][0])
    network, weights = space.network(), one_hot(arch, space.num_choices)
    image = jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)
    draw = jax.random.uniform(KEY, weights.shape)
    run = jax.jit(lambda w: init_variables(network, KEY, image, w))
    jax.tree.map(np.testing.assert_array_equal, run(weights), run(2 * weights + draw))


def test_kernels_start_in_the_bounds_of_their_true_fan_in():
    space = make(channels=(4, 32), kernels=(1, 3, 5), trunk=3, units=(128, 256))
    arch = space.from_string("conv3x3-32 conv1x1-4 conv5x5-32 / dense-256 dense-128")
    network, weights = space.network(), one_hot(arch, space.num_choices)
    image = jax.ShapeDtypeStruct((1, 4, 3, 2), jnp.float32)
    drawn = jax.jit(init_variables, static_argnums=(0, 2))(network, KEY, image, weights)
    params = space.restrict(drawn["params"], arch)
    fan_in = {"trunk0": 2 * 9, "trunk1": 32, "trunk2": 4 * 25}
    fan_in |= {"head0": 32, "head1": 256, "classifier": 128}
    for name, number in fan_in.items():
        kernel = np.asarray(params[name]["kernel"])
        assert number == kernel[..., 0].size
        bound = number**-0.5
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        # The variance of what is uniform; 5 deviations of its mean square.
        spread = 3 * np.square(kernel).mean() / bound**2
        assert abs(spread - 1) < 5 * 0.9 / np.sqrt(kernel.size)


# PyTorch


def make_reference(torch, text, colours, most):
    """The network of a string, written anew, in float64."""
    nn = torch.nn
    active = {
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "gelu": partial(nn.GELU, approximate="tanh"),
        "max_pool": partial(nn.MaxPool2d, 2, ceil_mode=True),
        "avg_pool": partial(nn.AvgPool2d, 2, ceil_mode=True, count_include_pad=False),
    }

    def layer(name, before):
        if name in active:
            return active[name](), before
        kind, _, width = name.partition("-")
        width = int(width)
        if kind == "dense":
            return nn.Linear(before, width), width
        size = int(kind[-1])
        conv = nn.Conv2d(before, width, size, padding=size // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width)), width

    class Reference(nn.Module):
        def __init__(self):
            super().__init__()
            self.links, width = [], colours
            trunk, head = ([w for w in part.split()] for part in text.split("/"))
            self.trunk, self.head = nn.ModuleList(), nn.ModuleList()
            for word in trunk:
                name, _, link = word.partition("+")
                made, out = layer(name, width)
                self.trunk.append(made)
                if link == "dense" and width + out > most:
                    link = ""
                self.links.append(link)
                width = {"dense": width + out, "residual": max(width, out)}.get(
                    link, out
                )
            for word in [*head, f"dense-{CLASSES}"]:
                made, width = layer(word, width)
                self.head.append(made)

        def forward(self, x):
            for made, link in zip(self.trunk, self.links, strict=True):
                y = made(x)
                if link == "dense":
                    y = torch.cat([x, y], 1)
                elif link == "residual":
                    few, many = sorted((x, y), key=lambda z: z.shape[1])
                    y = many.clone()
                    y[:, : few.shape[1]] += few
                x = y
            x = x.mean((2, 3))
            for made in self.head:
                x = made(x)
            return x

    return Reference().double()


def copy_of(torch, model):
    """Our names for PyTorch's parameters and running statistics, and its gradients."""
    params, stats, grads = {}, {}, {}
    names = [f"trunk{i}" for i in range(len(model.trunk))]
    names += [f"head{i}" for i in range(len(model.head) - 1)] + ["classifier"]
    for name, layer in zip(names, [*model.trunk, *model.head], strict=True):
        for tree, take in ((params, lambda x: x.data), (grads, lambda x: x.grad)):
            if isinstance(layer, torch.nn.Linear):
                kernel, bias = take(layer.weight).T, take(layer.bias)
                tree[name] = {"kernel": kernel, "bias": bias}
            elif isinstance(layer, torch.nn.Sequential):
                conv, norm = layer
                kernel = take(conv.weight).permute(2, 3, 1, 0)
                tree[name] = {"kernel": kernel, "scale": take(norm.weight)}
                tree[name]["bias"] = take(norm.bias)
                stats[name] = {"mean": norm.running_mean, "var": norm.running_var}
    return jax.tree.map(lambda x: x.numpy().copy(), (params, stats, grads))


@pytest.mark.parametrize(
    "text",
    [
        "conv3x3-4 max_pool relu conv1x1-3 / dense-5 gelu",
        "conv3x3-4+residual avg_pool conv1x1-3+residual tanh+dense / sigmoid",
        "relu+dense conv3x3-3+dense gelu+dense conv1x1-4+dense / dense-5 dense-5",
    ],
)
def test_network_and_sizes_are_those_of_pytorch(text):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    counter = pytest.importorskip("torch.utils.flop_counter")
    space = make(links=LINKS)
    model = make_reference(torch, text, colours=2, most=8)
    generator = torch.Generator().manual_seed(0)
    for x in model.parameters():
        torch.nn.init.uniform_(x, -0.5, 1.0, generator=generator)
    inputs = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    trained = model.train()(inputs)
    trained.square().mean().backward()
    variables, stats, grads = copy_of(torch, model)
    tested = model.eval()(inputs).detach().numpy()

    slots = f"{text} identity".split()
    arch = space.from_string(" ".join(slots[: 4 + 1 + 2]))
    network = space.network(arch, num_classes=CLASSES)
    with jax.enable_x64(True):
        before = jax.tree.map(np.zeros_like, stats)
        for norm in before.values():
            norm["var"] += 1
        run = jax.jit(partial(outputs_of, network))
        given = {"params": variables, "batch_stats": before}
        logits, grad, moved, _ = run(given)
        evaluated = network.apply({"params": variables, "batch_stats": stats}, IMAGES)
    compare = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
    compare(logits, trained.detach().numpy())
    compare(evaluated, tested)
    jax.tree.map(compare, grad, grads)
    pooled = [i for i, word in enumerate(text.split()) if "pool" in word]
    for name, norm in moved.items():
        compare(norm["mean"], stats[name]["mean"])
        count = len(IMAGES) * (12 if int(name[-1]) < [*pooled, 4][0] else 4)
        theirs = 0.9 + (stats[name]["var"] - 0.9) * (count - 1) / count  # of n - 1
        compare(norm["var"], theirs)

    with torch.no_grad(), counter.FlopCounterMode(display=False) as counted:
        model(inputs)
    parameters, operations = space.sizes(arch, (4, 3, 2), num_classes=CLASSES)
    assert parameters == sum(x.numel() for x in model.parameters())
    assert operations == counted.get_total_flops() / len(IMAGES)
