"""How torch is set up for a run, and what is recorded about the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atari_dqn.agent.device import set_up_torch
from atari_dqn.config.schema import TrainConfig
from atari_dqn.system import machine


@pytest.mark.parametrize(
    ("settings", "rounded"),
    [({}, True), ({"precision": "bf16"}, True), ({"precision": "fp32"}, False), ({"deterministic": True}, False)],
)
def test_where_fp32_is_asked_for_a_gpus_convolutions_do_not_round_it(settings: dict[str, Any], rounded: bool) -> None:
    torch.backends.cudnn.allow_tf32 = not rounded  # as a run before it in the same process may have left it
    assert set_up_torch(TrainConfig().replace(torch_threads=1, **settings)) == 1
    assert torch.backends.cudnn.allow_tf32 == rounded
    assert torch.are_deterministic_algorithms_enabled() == settings.get("deterministic", False)


def test_a_distribution_without_the_expected_name_is_null_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """As opencv-python is where opencv-python-headless or a build from source takes its place."""
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-distribution"))
    packages = machine.describe_system()["packages"]
    assert packages["torch"]
    assert packages["no-such-distribution"] is None
