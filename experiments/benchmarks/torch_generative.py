"""A GAN and a VAE in eager PyTorch, the other side of generative_step.py.

The layers are those of `jaxnas.nn.image`, for images whose sides every stage halves
evenly: float32[N, C, H, W] here. As in torch_chain.py, batch norms do not count their
batches, and nothing waits for the device but the end of a measurement.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_chain import DEVICE, Way


def downward(channels: int, widths: Sequence[int], size: int) -> nn.Sequential:
    """Makes vectors of images, as `Downward` does with kernels of an even size."""
    layers: list[nn.Module] = []
    for had, width in itertools.pairwise([channels, *widths]):
        is_first = not layers
        layers.append(
            nn.Conv2d(had, width, size, 2, size // 2 - 1, bias=is_first)  # stride 2
        )
        layers += [] if is_first else [_batch_norm(width)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Flatten())


def upward(
    num_latent: int, image_shape: tuple[int, int, int], widths: Sequence[int], size: int
) -> nn.Sequential:
    """Makes images of vectors, as `Upward` does with an output that is linear."""
    height, width, channels = image_shape
    first = widths[0], height >> len(widths), width >> len(widths)
    dense = nn.Linear(num_latent, math.prod(first))
    layers: list[nn.Module] = [dense, nn.Unflatten(1, first)]
    for stage, (had, wanted) in enumerate(itertools.pairwise([*widths, channels])):
        is_last = stage + 1 == len(widths)
        layers += [
            _batch_norm(had),
            nn.ReLU(),
            nn.ConvTranspose2d(had, wanted, size, 2, size // 2 - 1, bias=is_last),
        ]
    return nn.Sequential(*layers)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    norm.num_batches_tracked = None
    return norm


class Gan:
    """A DCGAN whose discriminator steps first, then its generator."""

    def __init__(self, image_shape, num_latent: int, widths, size: int, way: Way):
        """The generator's widths are those of the discriminator backwards."""
        self.features = _features(image_shape, widths)
        trunk = downward(image_shape[2], widths, size)
        head = nn.Linear(math.prod(self.features), 1)
        decoder = upward(num_latent, image_shape, widths[::-1], size)
        self.discriminator = _placed(nn.Sequential(*trunk, head), way)
        self.generator = _placed(nn.Sequential(*decoder, nn.Tanh()), way)
        self.optimizers = [
            torch.optim.Adam(
                net.parameters(), 2e-4, (0.5, 0.999), **{way.optimizer: True}
            )
            for net in (self.discriminator, self.generator)
        ]
        self.noise = 2, num_latent

    def num_parameters(self) -> int:
        """Of both networks."""
        return _count(self.discriminator) + _count(self.generator)

    def load(self, generator: Mapping[str, Any], discriminator: Mapping[str, Any]):
        """Takes the parameters of our two networks."""
        *trunk, head = self.discriminator
        _load_trunk(trunk, discriminator["trunk"])
        _load_head(head, discriminator["Dense_0"], self.features)
        _load_decoder(self.generator, generator, self.features)

    def step(self, real: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """A step of each on images [N, C, H, W] and normal numbers [N, 2, L]."""
        first, second = self.optimizers
        with torch.no_grad():
            fake = self.generator(noise[:, 0])
        of_real = self.discriminator(real)[:, 0]
        of_fake = self.discriminator(fake)[:, 0]
        loss = _entropy(of_real, 1) + _entropy(of_fake, 0)
        _descend(loss, first)
        fooled = self.discriminator(self.generator(noise[:, 1]))[:, 0]
        other = _entropy(fooled, 1)
        _descend(other, second)
        return {"discriminator_loss": loss, "generator_loss": other}


class Vae(nn.Module):
    """An autoencoder of images whose likelihood is `discretized_logistic`."""

    def __init__(self, image_shape, num_latent: int, widths, size: int, way: Way):
        """The decoder's widths are those of the encoder backwards."""
        super().__init__()
        self.features = _features(image_shape, widths)
        self.trunk = downward(image_shape[2], widths, size)
        self.mean, self.log_variance = (
            nn.Linear(math.prod(self.features), num_latent) for _ in range(2)
        )
        self.decoder = upward(num_latent, image_shape, widths[::-1], size)
        self.log_scale = nn.Parameter(torch.zeros(image_shape[2]))
        _placed(self, way)
        self.optimizer = torch.optim.Adam(
            self.parameters(), 1e-3, **{way.optimizer: True}
        )
        self.noise = 1, num_latent

    def num_parameters(self) -> int:
        """Of encoder, decoder and likelihood."""
        return _count(self)

    def load(self, params: Mapping[str, Any]):
        """Takes the parameters of our network."""
        encoder = params["encoder"]
        _load_trunk(self.trunk, encoder["trunk"])
        _load_head(self.mean, encoder["mean"], self.features)
        _load_head(self.log_variance, encoder["log_variance"], self.features)
        _load_decoder(self.decoder, params["decoder"], self.features)
        with torch.no_grad():
            self.log_scale.copy_(torch.tensor(np.array(params["decoder"]["log_scale"])))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of the latent, and the images of one draw of it."""
        seen = self.trunk(x)
        mean, log_variance = self.mean(seen), self.log_variance(seen)
        z = mean + torch.exp(log_variance / 2) * noise
        return mean, log_variance, self.decoder(z)

    def step(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """A step on images [N, C, H, W] of 256 levels from -1 to 1."""
        mean, log_variance, images = self(x, noise[:, 0])
        divergence = mean.square() + log_variance.exp() - 1 - log_variance
        likelihood = log_likelihood(images, self.log_scale, x)
        loss = (divergence.sum() / 2 - likelihood) / len(x)
        _descend(loss, self.optimizer)
        return {"loss": loss}


def log_likelihood(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """That of `discretized_logistic` for 256 levels from -1 to 1, of all images."""
    by, half = torch.exp(-log_scale)[:, None, None], 1 / 255
    above, below = (x + half - mean) * by, (x - half - mean) * by
    inner = above + torch.log(-torch.expm1(-2 * half * by))
    inner = inner - F.softplus(above) - F.softplus(below)
    each = torch.where(x < half - 1, -F.softplus(-above), inner)
    return torch.where(x > 1 - half, -F.softplus(below), each).sum()


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _entropy(logits: Tensor, label: float) -> Tensor:
    targets = torch.full_like(logits, label)
    return F.binary_cross_entropy_with_logits(logits, targets)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of what the optimizer has; other gradients are not computed."""
    (group,) = optimizer.param_groups
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=group["params"])
    optimizer.step()


def _features(image_shape, widths) -> tuple[int, int, int]:
    """Channels, height and width of the smallest stage."""
    height, width, _ = image_shape
    return widths[-1], height >> len(widths), width >> len(widths)


def _placed(net: nn.Module, way: Way) -> nn.Module:
    return net.train().to(device=DEVICE, memory_format=way.layout)


def _load_trunk(layers: Sequence[nn.Module], params: Mapping[str, Any]) -> None:
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    for i, layer in enumerate(convolutions):
        _copy(layer, params[f"Halve_{i}"], (3, 2, 0, 1))
    for i, layer in enumerate(norms, 1):  # the first stage has none
        _copy(layer, params[f"Norm_{i}"]["BatchNorm_0"])


def _load_decoder(layers: Sequence[nn.Module], params, features) -> None:
    dense, _, *stages = layers
    first = {
        name: _channels_first(value, value.ndim - 1, features)
        for name, value in params["Dense_0"].items()
    }
    _copy(dense, first, (1, 0))
    for i in range(len(stages) // 3):
        _copy(stages[3 * i], params[f"Norm_{i}"]["BatchNorm_0"])
        _copy(stages[3 * i + 2], params[f"Double_{i}"], (2, 3, 0, 1))


def _load_head(layer: nn.Module, params: Mapping[str, Any], features) -> None:
    kernel = _channels_first(params["kernel"], 0, features)
    _copy(layer, {**params, "kernel": kernel}, (1, 0))


def _channels_first(values: Any, axis: int, features: tuple[int, int, int]):
    """Reorders an axis of pixels with channels to one of channels with pixels."""
    channels, height, width = features
    order = np.arange(math.prod(features)).reshape(height, width, channels)
    return np.take(values, order.transpose(2, 0, 1).reshape(-1), axis)


@torch.no_grad()
def _copy(layer: Any, params: Mapping[str, Any], axes: Sequence[int] = (0,)) -> None:
    """Takes a kernel, whose axes are moved, or a scale, and a bias if there is one."""
    weight = params["kernel"] if "kernel" in params else params["scale"]
    layer.weight.copy_(torch.tensor(np.transpose(weight, axes)))
    if "bias" in params:
        layer.bias.copy_(torch.tensor(np.array(params["bias"])))
