"""How torch is set up for a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atari_dqn.agent.device import set_up_torch
from atari_dqn.config.schema import TrainConfig


def test_denormal_numbers_are_flushed_to_zero() -> None:
    """Arithmetic on them is slow."""
    smallest = torch.full((64,), torch.finfo(torch.float32).tiny)
    assert (smallest * 0.5 > 0).all(), "torch keeps them by default"
    set_up_torch(TrainConfig().replace(torch_threads=1))
    assert (smallest * 0.5 == 0).all()


@pytest.mark.parametrize(
    ("settings", "rounded"),
    [({}, True), ({"precision": "bf16"}, True), ({"precision": "fp32"}, False), ({"deterministic": True}, False)],
)
def test_where_fp32_is_asked_for_a_gpus_convolutions_do_not_round_it(settings: dict[str, Any], rounded: bool) -> None:
    torch.backends.cudnn.allow_tf32 = not rounded  # as a run before it in the same process may have left it
    assert set_up_torch(TrainConfig().replace(torch_threads=1, **settings)) == 1
    assert torch.backends.cudnn.allow_tf32 == rounded
    assert torch.are_deterministic_algorithms_enabled() == settings.get("deterministic", False)
