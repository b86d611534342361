"""Targets, errors and losses against numbers worked out by hand, a plain loop, and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atari_dqn.agent.loss import LOSSES, double_q_target, huber, q_target, td_error, weighted_loss

B, A = 3, 4
RETURNS = torch.tensor([1.0, 2.0, -1.0])
DISCOUNTS = torch.tensor([0.5, 0.0, 0.9])
# In every row the two networks' favourites differ, and so do the four values a mix-up could pick.
ONLINE = torch.tensor([[1.0, 9.0, 2.0, 3.0], [4.0, 1.0, 8.0, 2.0], [7.0, 0.0, 5.0, 6.0]])
TARGET = torch.tensor([[10.0, 20.0, 30.0, 40.0], [50.0, 60.0, 70.0, 80.0], [15.0, 25.0, 35.0, 45.0]])


def test_double_q_lets_online_choose_and_target_value() -> None:
    expected = [1 + 0.5 * 20.0, 2.0, -1 + 0.9 * 15.0]
    assert double_q_target(ONLINE, TARGET, RETURNS, DISCOUNTS).tolist() == pytest.approx(expected)


def test_plain_q_takes_the_targets_best() -> None:
    assert q_target(TARGET, RETURNS, DISCOUNTS).tolist() == pytest.approx([1 + 0.5 * 40.0, 2.0, -1 + 0.9 * 45.0])


def test_td_error_is_target_minus_the_taken_actions_q() -> None:
    error = td_error(ONLINE, torch.tensor([1, 0, 3]), torch.tensor([10.0, 0.0, 6.5]))
    assert error.tolist() == pytest.approx([1.0, -4.0, 0.5])


@pytest.mark.parametrize(
    ("error", "value", "slope"),
    [(0.5, 0.125, 0.5), (-0.5, 0.125, -0.5), (1.0, 0.5, 1.0), (2.0, 1.5, 1.0), (-7.0, 6.5, -1.0)],
)
def test_huber_is_a_parabola_with_straight_arms(error: float, value: float, slope: float) -> None:
    at = torch.tensor(error, requires_grad=True)
    huber(at).backward()
    assert huber(at).item() == pytest.approx(value)
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(slope)


def test_importance_weighted_loss_by_hand() -> None:
    loss = weighted_loss(torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.0, 0.5, 0.2]))
    assert loss.item() == pytest.approx((0.125 + 0.5 * 1.5 + 0.2 * 2.5) / 3)


def test_weighted_squared_loss_by_hand() -> None:
    loss = weighted_loss(torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.0, 0.5, 0.2]), LOSSES["mse"])
    assert loss.item() == pytest.approx((0.25 + 0.5 * 4 + 0.2 * 9) / 3)


def test_doubling_an_importance_weight_doubles_that_samples_share_of_the_gradient_and_no_other() -> None:
    actions, target = torch.tensor([1, 0, 3]), torch.tensor([9.5, 0.0, 6.3])

    def gradient(weights: Tensor) -> Tensor:
        q = ONLINE.clone().requires_grad_()
        (grad,) = torch.autograd.grad(weighted_loss(td_error(q, actions, target), weights), q)
        return grad

    weights = torch.tensor([1.0, 0.5, 0.2])
    before = gradient(weights)
    assert before.count_nonzero() == B, "one action of each sample"
    for sample in range(B):
        heavier = weights.clone()
        heavier[sample] *= 2
        change = gradient(heavier) - before
        assert torch.equal(change[sample], before[sample])
        assert change.count_nonzero() == 1


def test_targets_carry_no_gradient() -> None:
    online, target = ONLINE.clone().requires_grad_(), TARGET.clone().requires_grad_()
    assert not double_q_target(online, target, RETURNS, DISCOUNTS).requires_grad
    assert not q_target(target, RETURNS, DISCOUNTS).requires_grad
    bootstrapped = torch.zeros(B, requires_grad=True)
    td_error(online, torch.zeros(B, dtype=torch.int64), bootstrapped).sum().backward()
    assert bootstrapped.grad is None


def test_gradient_agrees_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    q = (3 * torch.randn((16, A), generator=generator, dtype=torch.float64)).requires_grad_()
    next_q = torch.randn((16, A), generator=generator, dtype=torch.float64)
    actions = torch.randint(A, (16,), generator=generator)
    returns, weights = torch.rand((2, 16), generator=generator, dtype=torch.float64)

    def loss(q: Tensor) -> Tensor:
        target = double_q_target(next_q, -next_q, returns, torch.full_like(returns, 0.9))
        return weighted_loss(td_error(q, actions, target), weights)

    assert torch.autograd.gradcheck(loss, q)


@given(st.data())
def test_equals_a_loop_over_samples(data: st.DataObject) -> None:
    batch, actions = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    numbers = st.floats(-4, 4, width=32)

    def draw(*shape: int) -> list[float]:
        size = int(torch.Size(shape).numel())
        return data.draw(st.lists(numbers, min_size=size, max_size=size))

    q, online, target = (torch.tensor(draw(batch, actions)).view(batch, actions) for _ in range(3))
    returns, discounts, weights = (torch.tensor(draw(batch)) for _ in range(3))
    taken = data.draw(st.lists(st.integers(0, actions - 1), min_size=batch, max_size=batch))
    total = 0.0
    for i in range(batch):
        row = online[i].tolist()
        bootstrap = float(target[i, row.index(max(row))])
        d = float(returns[i]) + float(discounts[i]) * bootstrap - float(q[i, taken[i]])
        total += float(weights[i]) * (0.5 * d * d if abs(d) <= 1 else abs(d) - 0.5)
    loss = weighted_loss(td_error(q, torch.tensor(taken), double_q_target(online, target, returns, discounts)), weights)
    assert float(loss) == pytest.approx(total / batch, abs=1e-4)


COLUMN = torch.ones(B, 1)
ACTIONS = torch.zeros(B, dtype=torch.int64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: q_target(TARGET, COLUMN, DISCOUNTS),
        lambda: q_target(TARGET, RETURNS, COLUMN),
        lambda: q_target(TARGET[0], RETURNS, DISCOUNTS),
        lambda: double_q_target(ONLINE, TARGET, COLUMN, DISCOUNTS),
        lambda: double_q_target(ONLINE, TARGET, RETURNS, COLUMN),
        lambda: double_q_target(ONLINE[:, :3], TARGET, RETURNS, DISCOUNTS),
        lambda: double_q_target(ONLINE[:1], TARGET, RETURNS, DISCOUNTS),
        lambda: td_error(ONLINE, ACTIONS[:, None], RETURNS),
        lambda: td_error(ONLINE, ACTIONS, COLUMN),
        lambda: td_error(ONLINE, ACTIONS, RETURNS[:1]),
        lambda: weighted_loss(RETURNS, COLUMN),
        lambda: weighted_loss(COLUMN, COLUMN),
        lambda: weighted_loss(RETURNS, torch.tensor(1.0)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\[3"):
        call()
