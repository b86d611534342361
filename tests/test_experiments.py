"""The experiments' settings hold together, and are what their files say."""

from __future__ import annotations

import pytest

from atari_dqn.config import TrainConfig, derive
from experiments import breakout_cpu, breakout_fast, cartpole


@pytest.mark.parametrize("config", [breakout_cpu.CONFIG, breakout_fast.CONFIG, cartpole.CONFIG])
def test_settings_are_valid(config: TrainConfig) -> None:
    config.validate()


def test_the_fast_breakout_counts_as_it_says() -> None:
    derived = derive(breakout_fast.CONFIG, 7_056, 4)
    assert derived.target_sync_env_steps == 16_000
    assert derived.env_steps_per_update == 64
    assert derived.replay_bytes < 8e9
