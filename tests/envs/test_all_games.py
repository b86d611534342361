"""Short trainings of every ALE game, under both protocols, through workers, replay, network and updates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py import roms

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import resolve_env_id, spec_of
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.evaluation.references import RANDOM_AND_HUMAN
from atari_dqn.training.assembly import local_trainer

gym.register_envs(ale_py)

SEVERAL_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}
"""Games whose ROMs come with ALE but which need two or more players, so they are not registered under any id."""

NOTHING_FIRES = {"ALE/LostLuggage-v5", "ALE/Skiing-v5"}
"""Games whose full action set lacks the nine actions that press the button."""

GAMES = sorted(env_id for env_id in gym.registry if env_id.startswith("ALE/") and "-ram" not in env_id)
A_DOZEN = [
    "ALE/Pong-v5",
    "ALE/MontezumaRevenge-v5",  # the full action set under both protocols
    "ALE/Freeway-v5",  # three actions, no lives
    "ALE/Skiing-v5",  # negative scores
    "ALE/Enduro-v5",
    "ALE/VideoPinball-v5",
    "ALE/Surround-v5",
    "ALE/SpaceWar-v5",
    "ALE/Tetris-v5",
    "ALE/TicTacToe3D-v5",
    "ALE/Othello-v5",  # hardly a pixel moves
    "ALE/Et-v5",
]
ITERATIONS, NUM_ENVS, LEARNING_STARTS, BATCH = 24, 2, 16, 8


def fault(env_id: str, protocol: str) -> str:
    """The first problem after a short training; empty if there is none."""
    config = TrainConfig().replace(
        env_id=env_id, protocol=protocol, num_workers=1, envs_per_worker=NUM_ENVS, replay_capacity=64,
        learning_starts=LEARNING_STARTS, batch_size=BATCH, replay_ratio=1.0, precision="fp32", device="cpu",
    ).validate()  # fmt: skip
    spec = spec_of(config.env)
    trainer = local_trainer(config, spec)
    try:
        trainer.start()
        for _ in range(ITERATIONS):
            trainer.iterate()
        observation = trainer.replay.latest_observation()
        values = trainer.learner.online(observation)
    finally:
        trainer.close()
    most = 9 if env_id in NOTHING_FIRES else 18
    if spec.num_actions > most or (protocol == "machado" and spec.num_actions < most):
        return f"{spec.num_actions} actions of {most}"
    if observation.shape != (NUM_ENVS, 4, 84, 84) or observation.dtype != torch.uint8:
        return f"observations {tuple(observation.shape)}, {observation.dtype}"
    if int(trainer.replay.ring.frames.max()) == 0:
        return "all frames are black"
    if values.shape != (NUM_ENVS, spec.num_actions) or not bool(values.isfinite().all()):
        return f"values {tuple(values.shape)}, {values}"
    # Updates due before the last iteration; a reset tick is not an environment step.
    due = (trainer.env_steps - NUM_ENVS - LEARNING_STARTS) // BATCH
    if not 0 < due <= trainer.learner.updates <= due + 1:
        return f"{trainer.learner.updates} updates after {trainer.env_steps} env steps"
    if not np.isfinite([float(value) for value in trainer.learner.pop_metrics().values()]).all():
        return "a loss is not finite"
    return ""


def faults(trainings: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    return {(env_id, protocol): text for env_id, protocol in trainings if (text := fault(env_id, protocol))}


def test_every_single_player_rom_resolves_by_its_bare_name() -> None:
    assert len(GAMES) == 104
    assert {f"ALE/{game}-v5" for game in RANDOM_AND_HUMAN} < set(GAMES)
    played = set(roms.get_all_rom_ids()) - SEVERAL_PLAYERS
    assert sorted(resolve_env_id(rom) for rom in played) == GAMES
    for rom in SEVERAL_PLAYERS:
        with pytest.raises(ConfigError, match="unknown environment"):
            resolve_env_id(rom)


def test_a_dozen_games_train_under_one_protocol_or_the_other() -> None:
    assert faults(zip(A_DOZEN, itertools.cycle(PROTOCOLS), strict=False)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("group", range(8))
def test_every_game_trains_under_both_protocols(group: int) -> None:
    assert faults(itertools.product(GAMES[group::8], PROTOCOLS)) == {}
