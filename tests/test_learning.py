"""It learns: problems whose optimum is known, from scratch, through the same workers, replay and networks as Atari.

An env-step limit decides, not a clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from atari_dqn.config import TrainConfig
from atari_dqn.envs.make import PROTOCOLS, env_spec
from atari_dqn.evaluation import evaluate
from atari_dqn.trainer import Trainer
from experiments import cartpole

CATCH: dict[str, Any] = {
    "env_id": "tests.stubs:Catch-v0",
    "num_workers": 2,
    "envs_per_worker": 4,
    "replay_capacity": 4096,
    "learning_rate": 5e-4,
    "learning_starts": 500,
    "replay_ratio": 4.0,
    "target_update_interval": 50,
    "epsilon_values": (1.0, 0.05),
    "epsilon_at": (0.0, 0.3),
    "total_env_steps": 14_000,
    "device": "cpu",
}


def train_and_evaluate(config: TrainConfig, episodes: int) -> np.ndarray:
    """Returns of fresh games, played by the network as it stands at the end of training."""
    spec = env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)
    trainer = Trainer(config.validate(), spec)
    try:
        trainer.start()
        while trainer.env_steps < config.run.total_env_steps:
            trainer.iterate()
    finally:
        trainer.close()
    result = evaluate(
        trainer.learner.online,
        spec,
        PROTOCOLS[config.env.protocol],
        episodes=episodes,
        num_workers=2,
        epsilon=0.0,
        seed=12345,
        device=torch.device("cpu"),
    )
    return result.returns


@pytest.mark.parametrize("replay", ["prioritized", "uniform"])
def test_a_pixel_env_is_learned_to_its_optimum(replay: str) -> None:
    """Catching every ball needs the motion in the stacked frames to come through ring and convolutions unharmed."""
    returns = train_and_evaluate(TrainConfig().replace(**CATCH, replay=replay), episodes=50)
    assert returns.mean() >= 0.9, "1 is the optimum, and chance is far below"


def test_cartpole_is_solved() -> None:
    """A mean of 475 over 100 games is gymnasium's own mark for CartPole-v1; 500 is the most there is."""
    returns = train_and_evaluate(cartpole.CONFIG.replace(device="cpu"), episodes=100)
    assert returns.mean() >= 475
