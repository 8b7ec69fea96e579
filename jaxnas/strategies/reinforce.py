"""Policy gradient: what was better than lately becomes more likely.

Williams 1992, https://doi.org/10.1007/BF00992696. For architectures Zoph and Le 2017,
arXiv:1611.01578, and Pham et al. 2018 (ENAS), arXiv:1802.03268; with independent
logits Dong and Yang 2020 (NAS-Bench-201), arXiv:2001.00326.
"""

from jaxnas.base import FULL, Array, SearchSpace, Strategy
from jaxnas.strategies.policies import Policy, make_policy
from jaxnas.strategies.policy_gradient import learner


def reinforce(
    space: SearchSpace,
    *,
    policy: str | Policy = "independent",
    learning_rate: float | Array | None = None,
    baseline_decay: float | Array | None = None,
    entropy_weight: float | Array | None = None,
    normalize: bool = True,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy of one update of Adam a step.

    The advantage of an architecture is its fitness less a moving mean, over a moving
    standard deviation. So fitness in percent and in fractions learn alike, and the
    weight of the entropy means the same. A sample that the space does not allow is
    repaired by `space.discretize`, and credit goes to the sample as drawn. What failed
    gives no gradient; a step in which all failed changes nothing. ENAS adds the entropy
    to the reward; here it is differentiated, which independent logits need.

    At a learning rate of 0 it only draws: from the policy of an earlier search where it
    starts from that one's state.

    Args:
      space: what is searched.
      policy: `independent`, a logit for each choice; `lstm`, ENAS's controller with
        the paper's learning rate of 3.5e-4, made for thousands of steps; or a value.
      learning_rate: of Adam. This and the next two are the policy's `defaults` for
        None: 0.1, 0.9 and 0.1 for `independent`, 3.5e-4, 0.99 and 1e-4 for `lstm`.
      baseline_decay: of the moving mean and deviation, a step.
      entropy_weight: of the entropy in nats, against the advantages.
      normalize: whether to divide by the deviation. ENAS does not, so that its weight
        of the entropy is one against a fitness in fractions.
      batch_size: B, architectures a step.
      budget: of each, in epochs; a whole one by default.

    Raises:
      InputError: there is no such policy; batch_size or budget is below 1, the decay
        not from 0 to 0.9999, or a rate or weight negative.
    """
    return learner(
        space,
        make_policy(policy, space.num_choices),
        learning_rate=learning_rate,
        baseline_decay=baseline_decay,
        entropy_weight=entropy_weight,
        normalize=normalize,
        batch_size=batch_size,
        budget=budget,
    )
