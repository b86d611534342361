"""Finding and reporting NaN and infinity; tests/faults/test_numbers.py has the runs that they end."""

from __future__ import annotations

import math

import torch

from atari_dqn.agent.finite import not_finite, where_not_finite


def test_a_few_tensors_are_named_and_the_rest_counted() -> None:
    good, bad = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
    tensors = {"a": good, "b": {"c": bad, "d": {"e": -math.inf * torch.ones(())}}, "f": 7, "g": torch.arange(3)}
    assert not_finite(tensors) == ["b.c", "b.d.e"]
    assert where_not_finite(tensors) == "NaN or infinity is in b.c, b.d.e"
    assert where_not_finite({str(i): bad for i in range(6)}) == "NaN or infinity is in 0, 1, 2, 3 and 2 more"
    assert where_not_finite({"a": good}) == ""
