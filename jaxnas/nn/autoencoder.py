"""An encoder and a decoder as one network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.base import Evidence


class Autoencoder(nn.Module):
    """The networks as one; its draws come from the stream "sample".

    Attributes:
      encoder: called with (x, condition, train), gives mean and log variance of the
        latent, float32[N, L] each.
      decoder: called with (z, condition, train), gives what the likelihood takes.
      predictor: called with (z), gives float32[N]; None: there is none.
    """

    encoder: nn.Module
    decoder: nn.Module
    predictor: Any = None

    def __call__(self, x, condition=None, train=False) -> Evidence:
        mean, log_variance = self.encoder(x, condition, train)
        noise = jax.random.normal(self.make_rng("sample"), mean.shape)
        z = mean + jnp.exp(log_variance / 2) * noise
        predicted = None if self.predictor is None else self.predictor(mean)
        outputs = self.decoder(z, condition, train)
        return Evidence(mean, log_variance, outputs, predicted)

    def encode(self, x, condition=None):
        """The latent's mean and log variance."""
        return self.encoder(x, condition, False)

    def decode(self, z, condition=None):
        """What the decoder says of z float32[N, L]."""
        return self.decoder(z, condition, False)

    def predict(self, z):
        """What the predictor says of z float32[N, L]: float32[N]."""
        return self.predictor(z)
