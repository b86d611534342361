"""Construction of the replay that the settings ask for."""

from typing import Any

import numpy as np
import torch

from atari_dqn.config.schema import ReplayConfig
from atari_dqn.replay.base import Replay
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.replay.uniform import NewestReplay, UniformReplay


def make_replay(
    config: ReplayConfig,
    *,
    num_envs: int,
    frame_shape: tuple[int, ...],
    frame_dtype: np.dtype[Any],
    stack: int,
    seed: int,
    device: torch.device,
) -> Replay:
    """An empty replay for `num_envs` environments, with stacks of `stack` frames of `frame_shape` and `frame_dtype`."""
    shared: dict[str, Any] = {
        "n_step": config.n_step,
        "gamma": config.gamma,
        "clip_rewards": config.clip_rewards,
        "seed": seed,
        "device": device,
    }
    size = (config.replay_capacity, num_envs, frame_shape, frame_dtype, stack)
    if config.replay == "prioritized":
        return PrioritizedReplay(*size, alpha=config.alpha, **shared)
    return (UniformReplay if config.replay == "uniform" else NewestReplay)(*size, **shared)
