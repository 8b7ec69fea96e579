"""Searches by a GAN over architectures, which learns from the best so far.

    python experiments/gan_search.py

searches the small table that the package carries, beside random search, regularized
evolution and Bayesian optimisation. On NAS-Bench-201, by both usual signals:

    python experiments/gan_search.py --preset paper --benchmark nasbench201.npz \
        --dataset cifar10 --signals valid_acc_12ep test_acc_200ep --queries 400

For real, training candidates of a space on images:

    python experiments/gan_search.py --evaluator population --dataset cifar10 \
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
from jaxnas.generators.adversarial import LOSSES
from jaxnas.generators.arch_gan import arch_gan
from jaxnas.strategies.gan_search import CHOOSERS, gan_search
from jaxnas.surrogates import SURROGATES, refitted


@dataclass(frozen=True)
class Config(GenerativeConfig):
    """Search architectures by a generative adversarial network."""

    workdir: Path = Path("runs/gan_search")
    """Where results go; the same command goes on from what is there."""
    chooser: Literal[CHOOSERS] = "evolution"
    """How candidates come of what is generated."""
    surrogate: Literal[("none", *SURROGATES)] = "gp"
    """What chooses of them; none: the discriminator."""
    loss: Literal[tuple(LOSSES)] = "vanilla"
    encoding: Literal[LAYOUTS] = "sequence"
    """Over which the networks are."""


PRESETS = {"quick": Config(**QUICK), "paper": Config()}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    made, searched = partial(generator, config), partial(strategy, config)
    run_method(config, Method("gan_search", made, searched))


def generator(config: Config, space: SearchSpace, **settings: Any) -> Generator:
    """Makes the generator of a space."""
    kinds: dict[str, Any] = {"network": config.network, "encoding": config.encoding}
    kinds |= {"num_latent": config.latent}
    return arch_gan(space, loss=config.loss, **kinds, **settings)


def strategy(
    config: Config, space: SearchSpace, made: Generator, queries: int
) -> Strategy:
    """Makes the search by it."""
    name = config.surrogate
    return gan_search(
        space,
        made,
        None if name == "none" else refitted(name, space),
        chooser=config.chooser,
        batch_size=config.batch,
        num_queries=queries,
    )


if __name__ == "__main__":
    parallel.use_cpu_cores()
    cli.main(main, PRESETS)
