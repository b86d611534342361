"""It learns: problems whose optimum is known, from scratch, through the same workers, replay and networks as Atari.

An env-step limit decides, not a clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.evaluation.evaluation import evaluate
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.trainer import Trainer
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
    "epsilon_at": (0.0, 0.1),
    "total_env_steps": 42_000,
    "device": "cpu",
}


def games(trainer: Trainer, episodes: int, seed: int) -> np.ndarray:
    """Returns of fresh games, played by the network as it stands."""
    result = evaluate(
        trainer.learner.online,
        trainer.spec,
        trainer.protocol,
        episodes=episodes,
        num_envs=4,
        epsilon=0.0,
        seed=seed,
        device=trainer.device,
    )
    return result.returns


def best_of_training(config: TrainConfig, *, mark: float, every: int, episodes: int) -> float:
    """Train until a trial of 20 games reaches `mark`, tried `every` env steps, and `episodes` other games confirm it.

    Returns the mean of the games that confirmed it, or of the last ones when the env steps of `config` are used up.
    """
    spec = spec_of(config.env)
    trainer = local_trainer(config.validate(), spec)
    try:
        trainer.start()
        for limit in range(every, config.run.total_env_steps + 1, every):
            while trainer.env_steps < limit:
                trainer.iterate()
            if games(trainer, 20, seed=limit).mean() >= mark:
                mean = float(games(trainer, episodes, seed=12345).mean())
                if mean >= mark:
                    return mean
        return float(games(trainer, episodes, seed=12345).mean())
    finally:
        trainer.close()


@pytest.mark.long
@pytest.mark.parametrize("replay", ["prioritized", "uniform"])
def test_a_pixel_env_is_learned_to_its_optimum(replay: str) -> None:
    """Catching every ball needs the motion in the stacked frames to come through ring and convolutions unharmed."""
    config = TrainConfig().replace(**CATCH, replay=replay)
    assert best_of_training(config, mark=0.9, every=3_500, episodes=50) >= 0.9, (
        "1 is the optimum, and chance is far below"
    )


@pytest.mark.long
def test_cartpole_is_solved() -> None:
    """A mean of 475 over 100 games is gymnasium's own mark for CartPole-v1; 500 is the most there is."""
    config = cartpole.CONFIG.replace(device="cpu", total_env_steps=120_000, epsilon_at=(0.0, 0.1))
    assert best_of_training(config, mark=475, every=10_000, episodes=100) >= 475
