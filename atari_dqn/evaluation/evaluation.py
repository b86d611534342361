"""Evaluation of a network: whole games under a named protocol, in worker processes.

Each environment plays a number of games that is fixed before the first begins, so that short games are not favoured. A
game ends when the environment says so or at its time limit, never with a lost life. An evaluation has its own workers,
player and random generators: it does not change a single bit of a training under way.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from atari_dqn.envs.protocol import GAME_LIMIT, EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.evaluation.episodes import EpisodeStatistics
from atari_dqn.evaluation.intervals import Statistic, interval, iqm, mean
from atari_dqn.evaluation.player import Player, tell_of_endless_game
from atari_dqn.evaluation.result import Evaluation
from atari_dqn.workers.pool import WorkerPool

BRANCH = 0xE7A1
"""Keeps an evaluation's random streams distinct from those of a training with the same seed."""


def evaluate(
    network: torch.nn.Module,
    spec: EnvSpec,
    protocol: Protocol,
    *,
    episodes: int,
    num_envs: int,
    epsilon: float,
    seed: int,
    device: torch.device,
    num_workers: int = 1,
    deadline: float = 60.0,
    on_progress: Callable[[Games], None] = lambda games: None,
    on_wait: Callable[[str], None] | None = None,
    say: Callable[[str], None] = lambda note: None,
) -> Evaluation:
    """Play `episodes` whole games epsilon-greedily. Raises `WorkerError` if a worker failed.

    The same arguments give the same games, whatever `num_workers` is. Where the environment has no time limit, a game
    is cut after `GAME_LIMIT` steps, for the policy may stand still. `network` maps observations [N, stack,
    *frame_shape] on `device` to Q values, float32 [N, A]. `deadline` and `on_wait` are those of `WorkerPool`; what
    `on_progress`, called after every tick, raises ends the evaluation; `say` is told if no game ends for a long time.
    """
    started = time.monotonic()
    num_envs = min(num_envs, episodes)
    envs_per_worker = math.ceil(num_envs / num_workers)
    spare = -num_envs % envs_per_worker  # every worker has as many envs, so the last one may have too many
    env_seed, actor_seed, bootstrap_seed = (int(s) for s in np.random.SeedSequence((seed, BRANCH)).generate_state(3))
    player = Player(network, spec, num_envs, epsilon=epsilon, seed=actor_seed, device=device)
    games = Games(quotas(episodes, num_envs))
    with WorkerPool(
        dataclasses.replace(spec, game_limit=GAME_LIMIT),
        protocol,
        num_workers=(num_envs + spare) // envs_per_worker,
        envs_per_worker=envs_per_worker,
        seed=env_seed,
        deadline=deadline,
        on_wait=on_wait,
    ) as workers:
        played = slice(num_envs)
        step = workers.reset().of(played)
        while not games.over:
            actions = player.act(step.frames, step.terminated | step.truncated)
            workers.send(np.pad(actions, (0, spare)))
            step = workers.recv().of(played)
            games.add(step)
            on_progress(games)
            if not games.finished:
                tell_of_endless_game(spec, games.ticks, say)
    returns = np.array([score for env in games.played for score, _ in env])

    def ci95(statistic: Statistic) -> tuple[float, float]:
        low, high = interval(statistic, returns, seed=bootstrap_seed)
        return float(low), float(high)

    return Evaluation(
        env_id=spec.env_id,
        protocol=protocol,
        epsilon=epsilon,
        seed=seed,
        returns=returns,
        lengths=np.array([length for env in games.played for _, length in env]),
        cut=games.cut,
        ci95=ci95(mean),
        iqm_ci95=ci95(iqm),
        seconds=time.monotonic() - started,
    )


def quotas(episodes: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Number of games for each environment, [num_envs], as even as possible: 10 games on 4 are 3, 3, 2, 2."""
    return episodes // num_envs + (np.arange(num_envs) < episodes % num_envs).astype(np.int64)


class Games:
    """The games within each environment's quota, [num_envs], out of all that are played."""

    def __init__(self, quota: npt.NDArray[np.int64]) -> None:
        self.played: list[list[tuple[float, int]]] = [[] for _ in quota]
        """(raw score, env steps) of the finished games of each environment, at most its quota."""
        self.cut = 0
        """How many of them a time limit ended."""
        self.finished, self.episodes = 0, int(quota.sum())
        """Number of games played, and to play."""
        self.ticks = 0
        """Steps of each environment so far, resets included."""
        self._quota, self._counter, self._total = quota, EpisodeStatistics(len(quota)), 0.0

    @property
    def over(self) -> bool:
        return self.finished == self.episodes

    @property
    def mean(self) -> float:
        """Mean score of the finished games, biased towards short ones until the last is over; NaN before the first."""
        return self._total / self.finished if self.finished else math.nan

    def add(self, step: StepResult) -> None:
        """Count one tick of all environments."""
        self.ticks += 1
        for _, env, score, length in self._counter.add(step):
            if len(self.played[env]) < self._quota[env]:
                self.played[env].append((score, length))
                self.cut += int(step.truncated[env] and not step.terminated[env])
                self.finished += 1
                self._total += score
