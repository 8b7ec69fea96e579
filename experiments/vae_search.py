"""Searches the latent space of a variational autoencoder over architectures.

    python experiments/vae_search.py

searches the small table that the package carries, beside random search, regularized
evolution and Bayesian optimisation. On NAS-Bench-201, by both usual signals:

    python experiments/vae_search.py --preset paper --benchmark nasbench201.npz \
        --dataset cifar10 --signals valid_acc_12ep test_acc_200ep --queries 400

For real, training candidates of a space on images:

    python experiments/vae_search.py --evaluator population --dataset cifar10 \
        --space nasbench201
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from generative_parts import QUICK, GenerativeConfig, Method
from generative_run import run_method

from jaxnas import cli, parallel
from jaxnas.base import Generator, SearchSpace, Strategy
from jaxnas.encoding import LAYOUTS
from jaxnas.generators.arch_vae import ENCODERS, arch_vae
from jaxnas.strategies.latent_search import MOVES, latent_search
from jaxnas.surrogates import REFITTED, SURROGATES


@dataclass(frozen=True)
class Config(GenerativeConfig):
    """Search architectures in the latent space of an autoencoder."""

    workdir: Path = Path("runs/vae_search")
    """Where results go; the same command goes on from what is there."""
    moves: Literal[MOVES] = "bayesian"
    """How latents are found: of the prior, along gradients, by the Gaussian process."""
    encoder: Literal[ENCODERS] = "sequence"
    """What the encoder looks at: the decisions, or the graph."""
    encoding: Literal[LAYOUTS] = "sequence"
    """Over which the networks are."""


PRESETS = {"quick": Config(**QUICK), "paper": Config()}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    made, searched = partial(generator, config), partial(strategy, config)
    run_method(config, Method("latent_search", made, searched))


def generator(config: Config, space: SearchSpace, **settings: Any) -> Generator:
    """Makes the generator of a space."""
    kinds: dict[str, Any] = {"network": config.network, "encoding": config.encoding}
    kinds |= {"num_latent": config.latent}
    return arch_vae(space, encoder=config.encoder, **kinds, **settings)


def strategy(
    config: Config, space: SearchSpace, made: Generator, queries: int
) -> Strategy:
    """Makes the search in its latent space."""
    of_latents = SURROGATES["gp"](space, encoding="latent", **REFITTED["gp"])
    return latent_search(
        space,
        made,
        of_latents if config.moves == "bayesian" else None,
        moves=config.moves,
        batch_size=config.batch,
        num_queries=queries,
    )


if __name__ == "__main__":
    parallel.use_cpu_cores()
    cli.main(main, PRESETS)
