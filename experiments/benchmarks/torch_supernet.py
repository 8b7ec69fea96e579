"""The supernet of DARTS in plain PyTorch, the other side of darts_step.py.

Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, 2019,
https://arxiv.org/abs/1806.09055. The configuration is that of the published
experiments: 16 channels, 8 cells, 4 nodes, 8 operations, batch norms without
scale and offset inside the cells.

It is meant to be a strong opponent, so it does what an attentive user would:

- `none` is never computed, since it adds zero whatever its weight is;
- what has no parameters (ReLU, the pooling branches and their batch norms) is
  computed once per state and not once per edge that leaves the state;
- an edge mixes its operations by one matrix product, not by seven products and
  six sums; the softmax of the alphas is taken once per pass;
- tensors are channels last on a CPU, where they took 0.6 to 0.9 of the time.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxnas.base import InputError

NUM_OPS = 8
"""Columns of the alphas: none, max_pool_3x3, avg_pool_3x3, skip_connect,
sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5."""


def batch_norm(channels: int, affine: bool = False) -> nn.BatchNorm2d:
    """A batch norm that does not count its batches: its momentum is constant."""
    norm = nn.BatchNorm2d(channels, affine=affine)
    norm.num_batches_tracked = None
    return norm


def depthwise_separable(
    channels: int, kernel: int, stride: int, dilation: int = 1
) -> list[nn.Module]:
    """A depthwise convolution, a pointwise one and a batch norm."""
    window = kernel, stride, dilation * (kernel // 2), dilation
    depthwise = nn.Conv2d(channels, channels, *window, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return [depthwise, pointwise, batch_norm(channels)]


def edge_convs(channels: int, stride: int) -> nn.ModuleList:
    """An edge's four convolutions, of an input already rectified.

    Separable ones are applied twice, dilated ones once.
    """
    separable = [
        nn.Sequential(
            *depthwise_separable(channels, kernel, stride),
            nn.ReLU(inplace=True),
            *depthwise_separable(channels, kernel, stride=1),
        )
        for kernel in (3, 5)
    ]
    dilated = [
        nn.Sequential(*depthwise_separable(channels, kernel, stride, dilation=2))
        for kernel in (3, 5)
    ]
    return nn.ModuleList(separable + dilated)


class FactorizedReduce(nn.Module):
    """Half the resolution by two pointwise convolutions, one pixel apart."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - half, 1, stride=2, bias=False)
        self.norm = batch_norm(out_channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """float32[B, C, H, W], H and W even -> float32[B, C', H/2, W/2]."""
        odd = self.odd(rectified[:, :, 1:, 1:])
        return self.norm(torch.cat([self.even(rectified), odd], dim=1))


def preprocess(in_channels: int, out_channels: int, reduce: bool) -> nn.Sequential:
    """Brings a cell's input to the cell's channels, and to half its size."""
    if reduce:
        return nn.Sequential(nn.ReLU(), FactorizedReduce(in_channels, out_channels))
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), conv, batch_norm(out_channels))


def mix(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sum of K outputs by `weights`, float32[K]: one product, in their layout."""
    last = outputs[0].is_contiguous(memory_format=torch.channels_last)
    there, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if last else ((0, 1, 2, 3),) * 2
    stacked = torch.stack([output.permute(there) for output in outputs])
    return torch.tensordot(weights, stacked, 1).permute(back)


def total(outputs: list[Tensor]) -> Tensor:
    """The sum, without the addition to 0 that `sum` begins with."""
    return sum(outputs[1:], outputs[0])


class OutgoingEdges(nn.Module):
    """All the mixed operations on the edges that leave one state of a cell."""

    def __init__(self, channels: int, stride: int, num_edges: int):
        super().__init__()
        self.stride, edges = stride, range(num_edges)
        self.max_norm = batch_norm(channels)
        self.avg_norm = batch_norm(channels)
        self.convs = nn.ModuleList(edge_convs(channels, stride) for _ in edges)
        reduces = edges if stride > 1 else ()
        self.reduces = nn.ModuleList(
            FactorizedReduce(channels, channels) for _ in reduces
        )

    def forward(self, state: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """One output an edge; `weights` are float32[7] an edge, `none` left out."""
        rectified = F.relu(state)
        average = F.avg_pool2d(state, 3, self.stride, 1, count_include_pad=False)
        pooled = [
            self.max_norm(F.max_pool2d(state, 3, self.stride, 1)),
            self.avg_norm(average),
        ]
        outputs = []
        for edge, convs in enumerate(self.convs):
            skip = self.reduces[edge](rectified) if self.stride > 1 else state
            branches = [*pooled, skip, *(conv(rectified) for conv in convs)]
            outputs.append(mix(branches, weights[edge]))
        return outputs


class Cell(nn.Module):
    """A cell: two inputs, `nodes` nodes, all edges between, the nodes joined."""

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        nodes: int,
        reduction: bool,
        after_reduction: bool,
    ):
        super().__init__()
        self.nodes, self.reduction = nodes, reduction
        self.preprocess0 = preprocess(in_channels[0], channels, after_reduction)
        self.preprocess1 = preprocess(in_channels[1], channels, False)
        self.sources = nn.ModuleList(
            OutgoingEdges(
                channels,
                stride=2 if reduction and source < 2 else 1,
                num_edges=nodes - max(0, source - 1),
            )
            for source in range(nodes + 1)
        )

    def forward(self, input0: Tensor, input1: Tensor, weights: list[Tensor]) -> Tensor:
        """The two cells before and float32[7] an edge -> float32[B, nodes * C, h, w].

        Edges are numbered node by node: node i has edges from states 0 to i + 1.
        """
        states = [self.preprocess0(input0), self.preprocess1(input1)]
        incoming: list[list[Tensor]] = [[] for _ in range(self.nodes)]
        for source, edges in enumerate(self.sources):
            if source >= 2:
                states.append(total(incoming[source - 2]))
            nodes = range(max(0, source - 1), self.nodes)
            rows = [weights[i * (i + 3) // 2 + source] for i in nodes]
            for i, output in zip(nodes, edges(states[source], rows), strict=True):
                incoming[i].append(output)
        states.append(total(incoming[-1]))
        return torch.cat(states[2:], dim=1)


class Supernet(nn.Module):
    """The network of all cells with all operations; logits are `alphas`."""

    def __init__(self, channels: int, cells: int, num_classes: int, nodes: int):
        super().__init__()
        previous = current = 3 * channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, current, 3, padding=1, bias=False),
            batch_norm(current, affine=True),
        )
        self.cells = nn.ModuleList()
        after_reduction = False
        for i in range(cells):
            reduction = i in reductions(cells)
            channels *= 2 if reduction else 1
            inputs = previous, current
            self.cells.append(Cell(inputs, channels, nodes, reduction, after_reduction))
            previous, current = current, nodes * channels
            after_reduction = reduction
        self.classifier = nn.Linear(current, num_classes)
        num_edges = nodes * (nodes + 3) // 2
        self.alphas = nn.ParameterList(
            [1e-3 * torch.randn(num_edges, NUM_OPS) for _ in ("normal", "reduce")]
        )

    def weights(self) -> list[nn.Parameter]:
        """Everything that is trained but the alphas."""
        named = self.named_parameters()
        return [value for name, value in named if not name.startswith("alphas.")]

    def forward(self, images: Tensor) -> Tensor:
        """float32[B, 3, H, W] -> logits of the classes, float32[B, num_classes]."""
        normal, reduce = (alpha.softmax(-1)[:, 1:].unbind() for alpha in self.alphas)
        previous = current = self.stem(images)
        for cell in self.cells:
            weights = reduce if cell.reduction else normal
            previous, current = current, cell(previous, current, weights)
        return self.classifier(current.mean((2, 3)))


def reductions(cells: int) -> set[int]:
    """The indices of the reduction cells, at one and two thirds of the depth."""
    return {cells // 3, 2 * cells // 3}


def build(
    channels: int = 16,
    cells: int = 8,
    image_size: int = 32,
    num_classes: int = 10,
    device: str = "cpu",
    seed: int = 0,
    nodes: int = 4,
    channels_last: bool | None = None,
) -> Supernet:
    """A supernet with fresh parameters on a device.

    On CUDA it also turns on cudnn's search for the fastest algorithm and TF32,
    which JAX's default precision uses there as well.

    Args:
      channels: of the first cell; the stem has three times as many.
      cells: how many, the reduction cells among them.
      image_size: height and width of the images, in pixels.
      num_classes: of the classifier.
      device: as torch names it.
      seed: of torch's global generator, which draws the parameters.
      nodes: inner nodes of a cell.
      channels_last: the layout; None takes it on a CPU only: on CUDA it would
        leave torch's own depthwise kernels for cudnn's (not measured).

    Raises:
      InputError: the image cannot be halved by every reduction cell.
    """
    factor = 2 ** len(reductions(cells))
    if image_size % factor or image_size < factor:
        raise InputError(
            f"image_size must be a multiple of {factor} for {cells} cells, got"
            f" {image_size}; pad the images or take fewer cells"
        )
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    if channels_last is None:
        channels_last = device == "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(seed)
    model = Supernet(channels, cells, num_classes, nodes)
    return model.to(device=device, memory_format=layout)
