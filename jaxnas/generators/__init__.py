"""Models that generate: images, and architectures, which `GENERATORS[name](space)`."""

from collections.abc import Callable

from jaxnas.base import Generator
from jaxnas.generators.arch_gan import arch_gan
from jaxnas.generators.arch_vae import arch_vae

GENERATORS: dict[str, Callable[..., Generator]] = {
    "arch_gan": arch_gan,
    "arch_vae": arch_vae,
}
"""Every generator of architectures by name, with the space that it needs."""
