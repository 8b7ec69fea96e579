"""The NAS-Bench-201 space, against its published numbers and PyTorch."""

import copy
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.spaces import SPACES
from jaxnas.spaces.nasbench201 import OPS, from_string, to_string

SPACE = SPACES["nasbench201"]()
EDGES = [(source, node) for node in range(1, 4) for source in range(node)]
ALL = np.array(list(itertools.product(range(5), repeat=6)), np.int32)
TABLE = Path(__file__).parents[2] / "shared" / "data" / "nas" / "nasbench201.npz"
NO_TABLE = "there is no ../shared/data/nas/nasbench201.npz"
EXAMPLE = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|"
    "+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
)
NONE, SKIP, CONV_1, CONV_3, POOL = range(5)
canonical = jax.jit(jax.vmap(SPACE.canonical))


def same_groups(one, other):
    """Whether two labellings part the same things alike."""
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(one.tolist())) == len(set(other.tolist()))


# Strings and graphs


def test_space_has_six_edges_with_five_choices():
    assert SPACE.num_choices == (5,) * 6
    assert SPACE.neighbours(jnp.zeros(6, jnp.int32))[0].shape == (24, 6)


def test_strings_are_those_of_the_benchmark():
    arch = from_string(EXAMPLE)
    np.testing.assert_array_equal(arch, [CONV_3, CONV_3, POOL, SKIP, CONV_3, SKIP])
    assert to_string(arch) == EXAMPLE


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("avg_pool_3x3~1", "max_pool_3x3~1", "max_pool_3x3"),
        ("avg_pool_3x3~1", "avg_pool_3x3~0", "cell like"),
        ("|avg_pool_3x3~1", "", "cell like"),
        ("+|skip_connect~0", "", "cell like"),
        (EXAMPLE, EXAMPLE + "+|none~0|", "cell like"),
    ],
)
def test_from_string_says_what_is_wrong(old, new, says):
    with pytest.raises(InputError, match=says) as error:
        from_string(EXAMPLE.replace(old, new))
    assert len(str(error.value).splitlines()) == 1


def test_canonical_finds_the_published_number_of_graphs():
    assert len(np.unique(canonical(ALL))) == 6466


def test_canonical_is_the_same_for_what_computes_the_same():
    # An operation is some function that keeps zero; none is zero, skip the identity.
    functions = (lambda x: 0 * x, lambda x: x, np.tanh, np.sinh, np.arctan)
    states = [np.full(len(ALL), 0.7)]
    for node in range(1, 4):
        entering = [i for i, (_, target) in enumerate(EDGES) if target == node]
        states.append(
            sum(
                np.select([ALL[:, i] == k for k in range(5)], [f(x) for f in functions])
                for i, x in zip(entering, states, strict=True)
            )
        )
    keys = np.asarray(canonical(ALL))[:, 0]
    first = {key: states[-1][i] for i, key in reversed(list(enumerate(keys.tolist())))}
    expected = [first[key] for key in keys.tolist()]
    np.testing.assert_allclose(states[-1], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("034140", "030100", True),  # node 1 is nothing: what leaves it is too
        ("103001", "130001", True),  # a copy of the input is the input
        ("333333", "222222", False),
        ("340021", "430012", False),  # nodes change places, but zero is a summand
    ],
)
def test_canonical_follows_the_rule_of_the_paper(one, other, alike):
    keys = canonical(np.array([list(one), list(other)], np.int32))
    assert (keys[0, 0] == keys[1, 0]) == alike


@pytest.mark.skipif(not TABLE.is_file(), reason=NO_TABLE)
def test_canonical_finds_the_classes_of_the_benchmark():
    table = np.load(TABLE)
    assert tuple(table["op_names"]) == OPS
    keys = np.asarray(canonical(table["ops"]))[:, 0]
    assert same_groups(keys, table["iso_class"])


# Networks


def shapes_of(network):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("cell", "parameters"),
    [
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", 73_306),
        (
            "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
            "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
            129_306,
        ),
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
            "+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
            1_531_546,
        ),
    ],
)
def test_network_has_the_parameters_of_the_benchmark(cell, parameters):
    shapes = shapes_of(SPACE.network(from_string(cell)))["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


def test_supernet_has_every_operation_and_plain_norms_in_cells():
    params = shapes_of(SPACE.network())["params"]
    assert params["cell0"]["state0_nor_conv_3x3"]["kernel"].shape == (3, 3, 3, 16, 16)
    assert set(params["cell0"]["state0_nor_conv_3x3"]) == {"kernel"}
    assert set(params["cell0"]) == {
        f"state{state}_nor_conv_{size}" for state in range(3) for size in ("1x1", "3x3")
    }


def make_reference(torch, cell, channels, cells, classes):
    """The published network, written after the paper: blocks in their order."""
    nn = torch.nn

    def conv_norm(before, after, size, stride=1):
        conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
        return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(after))

    class Cell(nn.Module):
        def __init__(self, width):
            super().__init__()
            make = {
                SKIP: nn.Identity,
                CONV_1: lambda: conv_norm(width, width, 1),
                CONV_3: lambda: conv_norm(width, width, 3),
                POOL: lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            }
            self.ops = nn.ModuleDict(
                {str(i): make[op]() for i, op in enumerate(cell) if op != NONE}
            )

        def forward(self, x):
            states = [x]
            for node in range(1, 4):
                arriving = [
                    self.ops[str(i)](states[source])
                    for i, (source, target) in enumerate(EDGES)
                    if target == node and str(i) in self.ops
                ]
                states.append(sum(arriving, torch.zeros_like(x)))
            return states[-1]

    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.long = nn.Sequential(
                conv_norm(width, 2 * width, 3, 2), conv_norm(2 * width, 2 * width, 3)
            )
            conv = nn.Conv2d(width, 2 * width, 1, bias=False)
            self.short = nn.Sequential(nn.AvgPool2d(2), conv)

        def forward(self, x):
            return self.long(x) + self.short(x)

    stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    blocks = [stem, nn.BatchNorm2d(channels)]
    for stage in range(3):
        width = channels * 2**stage
        blocks += [Residual(width // 2)] * (stage > 0)
        blocks += [Cell(width) for _ in range(cells)]
    blocks += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*blocks, nn.Linear(width, classes))


def copy_of(model, torch, names):
    """Our parameters and statistics of a torch model, by the names of its blocks."""
    params, stats = {}, {}

    def kernel(conv):
        return conv.weight.detach().numpy().transpose(2, 3, 1, 0)

    def norm(module):
        affine = {"scale": module.weight, "bias": module.bias}
        running = {"mean": module.running_mean, "var": module.running_var}
        return (
            {k: v.detach().numpy()[None] for k, v in values.items()}
            for values in (affine, running)
        )

    def conv_norm(block):
        whole = kernel(block[1])[None]
        inner = {"kernel": whole}
        if whole.shape[1:3] == (1, 1):
            inner = {"Pointwise_0": {"kernel": whole[:, 0, 0]}}
        affine, running = norm(block[2])
        return {**inner, "BatchNorm_0": affine}, {"BatchNorm_0": running}

    for name, block in zip(names, model, strict=True):
        if isinstance(block, torch.nn.Conv2d):
            params[name] = {"kernel": kernel(block)}
        elif isinstance(block, torch.nn.BatchNorm2d):
            params[name], stats[name] = norm(block)
        elif isinstance(block, torch.nn.Linear):
            weight, bias = (x.detach().numpy() for x in (block.weight, block.bias))
            params[name] = {"kernel": weight.T, "bias": bias}
        elif name.startswith("residual"):
            parts = {f"ReluConvNorm_{i}": conv_norm(block.long[i]) for i in range(2)}
            params[name] = {k: v[0] for k, v in parts.items()}
            params[name]["Conv_0"] = {"kernel": kernel(block.short[1])}
            stats[name] = {k: v[1] for k, v in parts.items()}
        elif name.startswith("cell"):
            parts = {
                int(i): op for i, op in block.ops.items() if len(list(op.children()))
            }
            made = {
                f"state{EDGES[i][0]}_nor_conv_{'x'.join(map(str, op[1].kernel_size))}":
                conv_norm(op) for i, op in parts.items()
            }  # fmt: skip
            params[name] = {k: v[0] for k, v in made.items()}
            stats[name] = {k: v[1] for k, v in made.items()}
    return {"params": params, "batch_stats": stats}


def test_network_computes_what_the_published_one_does():
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    torch.manual_seed(0)
    # Each convolution leaves its state once, so every name has one edge.
    cell = (CONV_3, CONV_1, POOL, SKIP, CONV_3, CONV_1)
    model = make_reference(torch, cell, channels=4, cells=1, classes=3)
    for x in (*model.parameters(), *model.buffers()):
        if x.dtype.is_floating_point:
            torch.nn.init.uniform_(x, 0.1, 1.0)
    names = ["stem", "stem_norm", "cell0", "residual1", "cell1", "residual2", "cell2"]
    names += ["last_norm", "relu", "pool", "flatten", "Dense_0"]
    # A copy, for training changes the running statistics where they lie.
    variables = copy_of(copy.deepcopy(model.double()), torch, names)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    with jax.enable_x64(True):
        network = SPACE.network(np.array(cell), channels=4, cells=1, num_classes=3)

        def outputs(variables, images):
            trained, _ = network.apply(
                variables, images, train=True, mutable="batch_stats"
            )
            return network.apply(variables, images), trained

        found = jax.jit(outputs)(variables, images)
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = [model.train(train)(inputs).numpy() for train in (False, True)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("size", [7, 9, 16])
def test_network_takes_images_of_any_size(size):
    network = SPACE.network(from_string(EXAMPLE), channels=4, cells=1)
    images = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 10)
