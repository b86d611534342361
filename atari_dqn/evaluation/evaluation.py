"""Whole games under a named protocol: a network flows in, raw scores with a confidence interval flow out.

Each env plays a number of games that was fixed before the first began, so that short games are not favoured. A game
ends when the env says so or at its time limit, never with a life. Workers, frame ring, actor and generators are its
own: an evaluation changes no bit of a training that goes on around it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atari_dqn.agent.actor import Actor
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.evaluation.intervals import Statistic, estimate, interval, iqm, mean
from atari_dqn.evaluation.references import human_normalized
from atari_dqn.replay.ring import FrameRing
from atari_dqn.runs.records import line
from atari_dqn.system.files import append
from atari_dqn.workers.pool import StepResult, WorkerPool

BRANCH = 0xE7A1
"""Sets an evaluation's random streams apart from those of a training with the same seed."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of whole games, those of env 0 first, each env's in the order played."""

    env_id: str
    protocol: Protocol
    epsilon: float
    seed: int
    returns: npt.NDArray[np.float64]
    """raw scores, [episodes]"""
    lengths: npt.NDArray[np.int64]
    """env steps, [episodes]"""
    cut: int
    """games that a time limit ended"""
    ci95: tuple[float, float]
    """95% percentile-bootstrap interval of the mean, `intervals.RESAMPLES` samples"""
    iqm_ci95: tuple[float, float]
    """the same of the interquartile mean"""
    seconds: float

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

    @property
    def iqm(self) -> float:
        """Interquartile mean: of the middle half of the games."""
        return float(estimate(iqm, self.returns))

    @property
    def human_normalized(self) -> float | None:
        """0 for random play, 1 for a human's; None where no reference is known."""
        return human_normalized(self.env_id, self.mean)

    @property
    def conditions(self) -> str:
        """`, nature, epsilon 0.01`; a protocol says nothing of an env that is no Atari game."""
        protocol = f", {self.protocol.name}" if is_atari(self.env_id) else ""
        return f"{protocol}, epsilon {self.epsilon:g}"

    def summary(self) -> str:
        """One line for the user."""
        low, high = self.ci95
        human = "" if self.human_normalized is None else f", human-normalised {self.human_normalized:.3f}"
        return (
            f"mean {self.mean:.2f} (95% interval {low:.2f} to {high:.2f}), median {self.median:g}{human};"
            f" {len(self.returns)} games{self.conditions}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: all of a line of `evaluations.jsonl` but `env_step`. `time` is the seconds it took."""
        return {
            "env_id": self.env_id,
            "protocol": self.protocol.name,
            "full_action_space": self.protocol.full_action_space,
            "epsilon": self.epsilon,
            "episodes": len(self.returns),
            "mean": self.mean,
            "median": self.median,
            "ci95": list(self.ci95),
            "iqm": self.iqm,
            "iqm_ci95": list(self.iqm_ci95),
            "human_normalized": self.human_normalized,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "truncated": self.cut,
            "seed": self.seed,
            "time": round(self.seconds, 3),
        }


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an evaluation is, after each tick of its envs."""

    games: int
    episodes: int
    ticks: int
    """decisions of each env so far"""
    mean: float | None
    """of the scores so far; it leans towards short games until the last one is over"""
    ticks_left: float | None
    """expected from the mean length so far; before a game is over the most there can be, None where that is unknown"""


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
    on_progress: Callable[[Progress], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Evaluation:
    """Play `episodes` whole games with `network` (on `device`), epsilon-greedily, in `num_envs` envs at a time.

    The same arguments give the same games, and so does any other `num_workers`, the most workers there may be.
    `deadline` (seconds) and `on_wait` are the `WorkerPool`'s. `on_progress` is called after every tick; what it raises
    ends the evaluation. Raises `WorkerError` when a worker fails.
    """
    started = time.monotonic()
    num_envs = min(num_envs, episodes)
    envs_per_worker = math.ceil(num_envs / num_workers)
    spare = -num_envs % envs_per_worker  # every worker has as many envs, so the last one's may be too many
    env_seed, actor_seed, bootstrap_seed = (int(s) for s in np.random.SeedSequence((seed, BRANCH)).generate_state(3))
    actor = Actor(network, spec.num_actions, seed=actor_seed)
    dtype = torch.from_numpy(np.empty(0, dtype=spec.frame_dtype)).dtype
    ring = FrameRing(spec.stack + 2, num_envs, spec.frame_shape, dtype, spec.stack, 1, device)
    games = Games(quotas(episodes, num_envs), protocol.max_episode_frames // 4 if spec.is_atari else None)
    with WorkerPool(
        spec,
        protocol,
        num_workers=(num_envs + spare) // envs_per_worker,
        envs_per_worker=envs_per_worker,
        seed=env_seed,
        deadline=deadline,
        on_wait=on_wait,
    ) as workers:
        played = slice(num_envs)
        ring.append(workers.reset().of(played).frames, last=np.zeros(num_envs, dtype=bool))
        while not games.over:
            actions = actor.act(ring.latest_observation(), epsilon)
            workers.send(np.pad(actions, (0, spare)))
            step = workers.recv().of(played)
            last = step.terminated | step.truncated
            ring.append(step.frames, last=last, actions=actions, rewards=step.rewards, terminal=step.terminated)
            games.add(step)
            if on_progress is not None:
                on_progress(games.progress())
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


def append_evaluation(run_dir: Path, env_step: int, result: Evaluation) -> None:
    """Add one line to `evaluations.jsonl`. Raises `OSError`; then nothing is added."""
    append(run_dir / "evaluations.jsonl", line({"env_step": env_step, **result.to_dict()}))


def quotas(episodes: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Games for each env, [num_envs], as even as can be: 10 games on 4 envs are 3, 3, 2, 2."""
    return episodes // num_envs + (np.arange(num_envs) < episodes % num_envs).astype(np.int64)


class Games:
    """Adds up raw rewards and env steps of every env, and keeps the games within each env's quota.

    `longest` is the time limit of a game in env steps, where there is one.
    """

    def __init__(self, quota: npt.NDArray[np.int64], longest: int | None = None) -> None:
        self.played: list[list[tuple[float, int]]] = [[] for _ in quota]
        """(raw score, env steps) of the finished games of each env, at most its quota"""
        self.cut = 0
        """how many of them a time limit ended"""
        self._quota, self._longest = quota, longest
        self._left = quota.copy()
        self._return = np.zeros(len(quota))
        self._length = np.zeros(len(quota), dtype=np.int64)
        self._ticks = self._finished = 0
        self._totals = np.zeros(2)

    @property
    def over(self) -> bool:
        return not self._left.any()

    def add(self, step: StepResult) -> None:
        """Count one tick of all envs; the tick of a reset is no env step."""
        self._ticks += 1
        self._return += step.raw_rewards
        self._length += ~step.is_reset
        for env in np.flatnonzero(step.terminated | step.truncated):
            if self._left[env]:
                game = float(self._return[env]), int(self._length[env])
                self.played[env].append(game)
                self.cut += int(step.truncated[env] and not step.terminated[env])
                self._left[env] -= 1
                self._finished += 1
                self._totals += game
            self._return[env] = self._length[env] = 0

    def progress(self) -> Progress:
        mean, length = (self._totals / self._finished).tolist() if self._finished else (None, self._longest)
        ticks_left = None
        if length is not None:
            # A game that already outlasts the mean is taken to end soon.
            per_env = self._left * length - np.minimum(self._length, length) * (self._left > 0)
            ticks_left = float(per_env.max())
        return Progress(self._finished, int(self._quota.sum()), self._ticks, mean, ticks_left)
