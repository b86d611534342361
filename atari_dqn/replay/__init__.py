"""The replay: flows in, the newest frame of every env; flow out, batches of transitions. It knows no network."""

from __future__ import annotations

from atari_dqn.replay.base import Batch, Replay
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.replay.ring import FrameRing
from atari_dqn.replay.sum_tree import SumTree
from atari_dqn.replay.uniform import NewestReplay, UniformReplay

__all__ = ["Batch", "FrameRing", "NewestReplay", "PrioritizedReplay", "Replay", "SumTree", "UniformReplay"]
