"""Tables of `jaxnas.benchmarks` from the official releases of the benchmarks.

    python -m jaxnas.converters nasbench101 nasbench_only108.tfrecord nasbench101.npz
    python -m jaxnas.converters nats_bench NATS-tss-v1_0-3ffb9-simple nasbench201.npz \\
        --allow-pickle

Accuracies are in percent and costs in seconds, each the mean of an architecture's runs.
"""

from jaxnas.converters.nasbench101 import from_nasbench101
from jaxnas.converters.nats_bench import from_nats_bench

__all__ = ["from_nasbench101", "from_nats_bench"]
