"""ENAS: a controller and the weights that its architectures share learn by turns.

Pham, Guan, Zoph, Le and Dean 2018, arXiv:1802.03268; published code:
https://github.com/melodyguan/enas.
"""

import jax
import jax.numpy as jnp

from jaxnas.base import FULL, Array, Feedback, Log, Proposal, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.encoding import one_hot
from jaxnas.strategies.policies import Policy, make_policy
from jaxnas.strategies.policy_gradient import ReinforceState, learner


def enas(
    space: SearchSpace,
    *,
    policy: str | Policy = "lstm",
    weight_steps: int = 300,
    controller_steps: int = 30,
    weight_archs: int = 1,
    batch_size: int = 10,
    learning_rate: float | Array | None = None,
    baseline_decay: float | Array = 0.9,
    entropy_weight: float | Array | None = None,
) -> Strategy:
    """Makes a strategy for shared weights that are trained by the same turns.

    In the first steps of a period the evaluator trains the weights on what is proposed,
    and nothing is learnt here. In the others it scores what is proposed, and each step
    is one of `reinforce` whose advantage is the fitness less its moving mean. What is
    for training has a budget of 1, what is for scoring one of `FULL`, so that the
    incumbent is the best that was scored.

    The answer is the controller's likeliest choice after those before it, one by one.
    The paper takes the best of many draws by the weights in the end: that is another
    search, by `reinforce` with the same policy and a learning rate of 0, which starts
    from the states of this one, with an evaluator whose weights learn no more.

    Args:
      space: what is searched.
      policy: as of `reinforce`.
      weight_steps: of a period, about an epoch in the published code; 0 where there
        are no weights to train, as in a table.
      controller_steps: of a period; this and the batch are those of the published
        search of cells, which has 150 periods.
      weight_archs: M, how many the weights train on in a step; the rest is padding.
      batch_size: B, how many are proposed.
      learning_rate: of Adam; for None the policy's default, the paper's 3.5e-4 for
        `lstm`. The published search of cells takes 3.5e-3, as a short one has to.
      baseline_decay: of the moving mean, a step that learns: 0.99 for each of ten.
      entropy_weight: of the entropy in nats, against the fitness; for None the
        policy's default.

    Raises:
      InputError: there is no such policy; a number is out of its range.
    """
    expect(0, weight_steps=weight_steps)
    expect(1, controller_steps=controller_steps, batch_size=batch_size)
    expect(1, batch_size, weight_archs=weight_archs)
    policy = make_policy(policy, space.num_choices)
    controller = learner(
        space,
        policy,
        learning_rate=learning_rate,
        baseline_decay=baseline_decay,
        entropy_weight=entropy_weight,
        normalize=False,
        batch_size=batch_size,
        budget=FULL,
    )

    def trains_weights(step: Array) -> Array:
        return step % (weight_steps + controller_steps) < weight_steps

    def ask(key: Array, step: Array, state: ReinforceState) -> Proposal:
        proposal = controller.ask(key, step, state)
        to_train = (jnp.arange(batch_size) < weight_archs).astype(jnp.int32)
        budget = jnp.where(trains_weights(step), to_train, proposal.budget)
        return proposal._replace(budget=budget)

    def tell(
        key: Array,
        step: Array,
        state: ReinforceState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> ReinforceState:
        return jax.lax.cond(
            trains_weights(step),
            lambda: state,
            lambda: controller.tell(key, step, state, proposal, feedback),
        )

    def recommend(state: ReinforceState, log: Log) -> Array:
        del log
        likeliest = policy.mode(state.params)
        return space.discretize(one_hot(likeliest, space.num_choices))

    return Strategy(controller.init, ask, tell, recommend)
