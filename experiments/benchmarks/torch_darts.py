"""The search steps of DARTS in plain eager PyTorch, the other side of darts_step.py.

Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, 2019,
https://arxiv.org/abs/1806.09055; its settings of both optimizers.

Like the supernet they are meant to be strong: gradients are taken only with
respect to what a pass updates, and the virtual step and the finite difference
move the weights in place by torch's multi-tensor functions, without a copy of
the module or a wait for the device.

Images are float32[B, 3, H, W] and labels int64[B], on the model's device.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_supernet import Supernet, build

from jaxnas.base import InputError

__all__ = ["build", "make_step", "unrolled_alpha_gradient"]

Batch = tuple[Tensor, Tensor]
Order = Literal["first_order", "second_order"]


def loss_of(model: Supernet, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch, in nats."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def alpha_gradient(model: Supernet, batch: Batch) -> list[Tensor]:
    """The gradient of a batch's loss by the alphas, the weights held fixed."""
    alphas = list(model.alphas)
    # Two cells are both reductions: zero then for the alphas of normal cells.
    return list(
        torch.autograd.grad(loss_of(model, batch), alphas, materialize_grads=True)
    )


@torch.no_grad()
def virtual_step(
    weights: list[Tensor], grads: list[Tensor], sgd: torch.optim.SGD
) -> None:
    """Moves the weights in place as `sgd` would, and leaves its momentum alone."""
    group = sgd.param_groups[0]
    steps = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
    momenta = [sgd.state[weight].get("momentum_buffer") for weight in weights]
    if momenta[0] is not None:  # there is none before the first step
        torch._foreach_add_(steps, momenta, alpha=group["momentum"])
    torch._foreach_add_(weights, steps, alpha=-group["lr"])


@torch.no_grad()
def move(
    weights: list[Tensor],
    origin: list[Tensor],
    shift: list[Tensor] | None = None,
    alpha: float = 1.0,
) -> None:
    """Sets the weights in place to `origin + alpha * shift`, without drift."""
    torch._foreach_copy_(weights, origin)
    if shift is not None:
        torch._foreach_add_(weights, shift, alpha=alpha)


def unrolled_alpha_gradient(
    model: Supernet,
    sgd: torch.optim.SGD,
    train_batch: Batch,
    valid_batch: Batch,
    epsilon: float = 0.01,
) -> list[Tensor]:
    """The alphas' gradient through one step of the weights: the paper's (7), (8).

    With w' the weights after a virtual step of `sgd`, momentum and weight decay
    in it, it is the gradient of the validation loss at w' less the learning rate
    times the mixed second derivative of the training loss at w by the direction
    v, the validation gradient at w'; the latter is a central difference at
    w +- epsilon / ||v|| * v. The weights are as before when it returns.
    """
    weights, alphas = model.weights(), list(model.alphas)
    grads = torch.autograd.grad(loss_of(model, train_batch), weights)
    before = [weight.detach().clone() for weight in weights]
    virtual_step(weights, grads, sgd)

    loss = loss_of(model, valid_batch)
    grads = torch.autograd.grad(loss, weights + alphas, materialize_grads=True)
    direction, direct = grads[: len(weights)], grads[len(weights) :]
    scale = epsilon / nn.utils.get_total_norm(direction, foreach=True)
    shift = torch._foreach_mul(direction, scale)

    move(weights, before, shift, 1.0)
    above = alpha_gradient(model, train_batch)
    move(weights, before, shift, -1.0)
    below = alpha_gradient(model, train_batch)
    move(weights, before)

    factor = sgd.param_groups[0]["lr"] / (2 * scale)
    terms = zip(direct, above, below, strict=True)
    return [g - factor * (up - down) for g, up, down in terms]


def make_step(model: Supernet, order: Order) -> Callable[[Batch, Batch], float]:
    """One search step with the paper's optimizers, as a function of two batches.

    The alphas first, on the validation batch, then the weights on the training
    batch, as in the paper's algorithm 1. It returns the training loss in nats.

    Raises:
      InputError: `order` is neither "first_order" nor "second_order".
    """
    if order not in ("first_order", "second_order"):
        raise InputError(
            f"order must be first_order or second_order, got {order!r}; take one of"
            " the two"
        )
    weights, alphas = model.weights(), list(model.alphas)
    sgd = torch.optim.SGD(
        weights, lr=0.025, momentum=0.9, weight_decay=3e-4, foreach=True
    )
    adam = torch.optim.Adam(
        alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, foreach=True
    )

    def step(train_batch: Batch, valid_batch: Batch) -> float:
        if order == "first_order":
            grads = alpha_gradient(model, valid_batch)
        else:
            grads = unrolled_alpha_gradient(model, sgd, train_batch, valid_batch)
        for alpha, grad in zip(alphas, grads, strict=True):
            alpha.grad = grad
        adam.step()

        sgd.zero_grad(set_to_none=True)
        loss = loss_of(model, train_batch)
        loss.backward(inputs=weights)
        nn.utils.clip_grad_norm_(weights, 5.0, foreach=True)
        sgd.step()
        return loss.item()

    return step
