"""Numbers that follow from the settings: rows, bytes, knots, and the updates due after a number of env steps."""

import dataclasses
import functools
from fractions import Fraction

from atari_dqn.config.schema import LearnerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Derived:
    """Counts that follow from the settings."""

    num_envs: int
    rows: int
    """Rows of the frame ring; a row holds one frame of every env"""
    bytes_per_transition: float
    replay_bytes: int
    env_steps_per_update: Fraction
    total_updates: int
    target_sync_env_steps: Fraction
    epsilon_knots: tuple[tuple[float, float], ...]
    """(env step, epsilon); empty with an exponential decay"""
    beta_knots: tuple[tuple[float, float], ...]
    """(env step, beta)"""
    learning_rate_knots: tuple[tuple[float, float], ...]
    """(env step, factor of the learning rate)"""


RUN_BYTES = 1.2e9
"""Memory of one run without its replay, in bytes: 0.7 GB were measured with 8 workers, and saving takes some more"""
RING_BYTES = 4 + 8 + 4 + 1 + 1
"""Bytes per transition in the ring besides its frame: age, action, reward, terminal, last"""
TREE_BYTES = 8 + 8 / 63
"""Bytes per leaf in the sum tree: its priority and its share of the nodes above"""


def derive(config: TrainConfig, frame_bytes: int) -> Derived:
    """`frame_bytes` is the size of a frame: 7,056 for an Atari game."""
    rows = config.replay.replay_capacity // config.num_envs
    slots = rows * config.num_envs
    replay_bytes = round(slots * (frame_bytes + RING_BYTES) + config.replay.replay_capacity * TREE_BYTES)
    ratio = _exactly(config.learner.replay_ratio)
    per_update = Fraction(config.learner.batch_size) / ratio if ratio else Fraction(0)
    total, scheduled = config.run.total_env_steps, config.schedule_length
    return Derived(
        num_envs=config.num_envs,
        rows=rows,
        bytes_per_transition=replay_bytes / slots,
        replay_bytes=replay_bytes,
        env_steps_per_update=per_update,
        total_updates=updates_at(config.learner, total - config.num_envs),  # the last tick is followed by no update
        target_sync_env_steps=per_update * config.learner.target_update_interval,
        epsilon_knots=()
        if config.exploration.epsilon_decay
        else _knots(config.exploration.epsilon_values, config.exploration.epsilon_at, scheduled),
        beta_knots=_knots(config.replay.beta_values, config.replay.beta_at, scheduled),
        learning_rate_knots=_knots(config.learner.learning_rate_factors, config.learner.learning_rate_at, scheduled),
    )


def updates_at(learner: LearnerConfig, env_steps: int) -> int:
    """Number of updates due after `env_steps`: integer arithmetic, so no drift and no burst when learning starts."""
    learning = max(0, env_steps - learner.learning_starts)
    ratio = _exactly(learner.replay_ratio)
    return learning * ratio.numerator // (ratio.denominator * learner.batch_size)


@functools.cache  # called at every tick, and as slow as a small network's forward pass
def _exactly(ratio: float) -> Fraction:
    """The decimal that was written: 0.1 is exactly a tenth."""
    return Fraction(str(ratio))


def _knots(values: tuple[float, ...], at: tuple[float, ...], length: int) -> tuple[tuple[float, float], ...]:
    return tuple((fraction * length, value) for fraction, value in zip(at, values, strict=True))
