"""The learning signal. Flows in: Q values, actions, folded returns and weights of a batch. Flows out: targets, TD
errors and one scalar loss.

Pure functions of tensors. Every shape is checked, because `[B] - [B, 1]` is a legal `[B, B]` that learns nonsense.
Targets carry no gradient, whatever is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def q_target(q_next: Tensor, returns: Tensor, discounts: Tensor) -> Tensor:
    """Mnih et al. 2015: `returns + discounts * max_a q_next`.

    `q_next` [B, A] is the target network's; `returns` and `discounts` [B] are folded over n steps, and the discount
    is 0 where nothing may be bootstrapped. Returns [B]. Raises `ValueError` when a shape differs.
    """
    _check(q_next, returns, discounts)
    return returns + discounts * q_next.detach().amax(1)


def double_q_target(q_next_online: Tensor, q_next_target: Tensor, returns: Tensor, discounts: Tensor) -> Tensor:
    """van Hasselt et al. 2016, eq. 4: the online network picks the action, the target network values it.

    Both Q are [B, A], `returns` and `discounts` [B]. Returns [B]. Raises `ValueError` when a shape differs.
    """
    if q_next_online.shape != q_next_target.shape:
        raise ValueError(f"the two Q differ in shape: {_shapes(q_next_online, q_next_target)}")
    _check(q_next_target, returns, discounts)
    best = q_next_online.detach().argmax(1, keepdim=True)
    return returns + discounts * q_next_target.detach().gather(1, best).squeeze(1)


def td_error(q: Tensor, actions: Tensor, target: Tensor) -> Tensor:
    """`target - q[actions]`: `q` [B, A], `actions` int64 [B], `target` [B]. Returns [B].

    Raises `ValueError` when a shape differs.
    """
    _check(q, actions, target)
    return target.detach() - q.gather(1, actions.unsqueeze(1)).squeeze(1)


def huber(error: Tensor) -> Tensor:
    """`0.5 d^2` where `|d| <= 1`, else `|d| - 0.5`: the gradient is the error clipped to [-1, 1] (Mnih 2015)."""
    size = error.abs()
    near = size.clamp(max=1.0)
    return near * (size - 0.5 * near)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"huber": huber, "mse": torch.square}
"""Of a TD error, by the names of the setting."""


def weighted_loss(error: Tensor, weights: Tensor, loss: Callable[[Tensor], Tensor] = huber) -> Tensor:
    """Mean over the batch of `weights * loss(error)`, both [B] (Schaul et al. 2016, algorithm 1). Returns a scalar.

    Raises `ValueError` when a shape differs.
    """
    if error.ndim != 1 or error.shape != weights.shape:
        raise ValueError(f"errors and weights must both be [B], not {_shapes(error, weights)}")
    return (weights * loss(error)).mean()


def _check(q: Tensor, *per_sample: Tensor) -> None:
    """Q values must be [B, A] and everything else [B]."""
    if q.ndim != 2 or any(tensor.shape != q.shape[:1] for tensor in per_sample):
        raise ValueError(f"Q values must be [B, A] and all else [B], not {_shapes(q, *per_sample)}")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)
