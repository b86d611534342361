"""How torch is set up for a training."""

from __future__ import annotations

import torch

from atari_dqn.agent.device import set_up_torch
from atari_dqn.config.schema import TrainConfig


def test_denormal_numbers_are_flushed_to_zero() -> None:
    """Arithmetic on them is slow."""
    smallest = torch.full((64,), torch.finfo(torch.float32).tiny)
    assert (smallest * 0.5 > 0).all(), "torch keeps them by default"
    set_up_torch(TrainConfig().replace(torch_threads=1))
    assert (smallest * 0.5 == 0).all()
