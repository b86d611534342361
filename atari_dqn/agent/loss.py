"""Targets, TD errors and the loss, as pure functions of tensors.

A wrong shape raises `ValueError`, because `[B] - [B, 1]` silently broadcasts to `[B, B]`. Targets carry no gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def q_target(q_next: Tensor, returns: Tensor, discounts: Tensor) -> Tensor:
    """Target values of Mnih et al. 2015, [B]: `returns + discounts * max_a q_next`.

    Args:
        q_next: the target network's Q values of the next observations, [B, A].
        returns: rewards summed over n steps, [B].
        discounts: gamma^n, or 0 after a terminal step, [B].
    """
    _check(q_next, returns, discounts)
    return returns + discounts * q_next.detach().amax(1)


def double_q_target(q_next_online: Tensor, q_next_target: Tensor, returns: Tensor, discounts: Tensor) -> Tensor:
    """Target values of van Hasselt et al. 2016, eq. 4, [B]: the online network picks the action, the target values it.

    As `q_target`, with the Q values of both networks, [B, A].
    """
    if q_next_online.shape != q_next_target.shape:
        raise ValueError(f"both Q values must have the same shape, not {_shapes(q_next_online, q_next_target)}")
    _check(q_next_target, returns, discounts)
    best = q_next_online.detach().argmax(1, keepdim=True)
    return returns + discounts * q_next_target.detach().gather(1, best).squeeze(1)


def td_error(q: Tensor, actions: Tensor, target: Tensor) -> Tensor:
    """`target - q[actions]`, [B], for `q` [B, A], `actions` int64 [B] and `target` [B]."""
    _check(q, actions, target)
    return target.detach() - q.gather(1, actions.unsqueeze(1)).squeeze(1)


def huber(error: Tensor) -> Tensor:
    """`0.5 d^2` if `|d| <= 1`, else `|d| - 0.5`, so that the gradient is the error clipped to [-1, 1] (Mnih 2015)."""
    size = error.abs()
    near = size.clamp(max=1.0)
    return near * (size - 0.5 * near)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"huber": huber, "mse": torch.square}
"""Losses of a TD error by the names of the setting `--loss`."""


def weighted_loss(error: Tensor, weights: Tensor, loss: Callable[[Tensor], Tensor] = huber) -> Tensor:
    """Mean over the batch of `weights * loss(error)`, both [B] (Schaul et al. 2016, algorithm 1)."""
    if error.ndim != 1 or error.shape != weights.shape:
        raise ValueError(f"errors and weights must both be [B], not {_shapes(error, weights)}")
    return (weights * loss(error)).mean()


def _check(q: Tensor, *per_sample: Tensor) -> None:
    if q.ndim != 2 or any(tensor.shape != q.shape[:1] for tensor in per_sample):
        raise ValueError(f"Q values must be [B, A] and everything else [B], not {_shapes(q, *per_sample)}")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)
