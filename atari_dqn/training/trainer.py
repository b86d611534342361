"""The training loop.

    actions = actor.act(replay.latest_observation(), epsilon)   # one batched forward pass for all environments
    pool.send(actions)                                          # environments step, in other processes
    learner.update() as often as is due                         # ... while this process learns
    replay.append(actions, pool.recv())                         # then the step joins the replay

Stepping and learning overlap, yet nothing races: the updates see only what was in the replay before `send`. Between
two iterations nothing is in flight, and only there may anything else happen (see session.py). The trainer alone counts
env steps. Env steps, frames (4 per step) and updates are three units.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from atari_dqn.agent.schedules import Piecewise, epsilon_schedule
from atari_dqn.config.derived import Derived, derive, updates_at
from atari_dqn.config.live import SCHEDULE, Edit, LiveValues, Request
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.envs.step import StepResult
from atari_dqn.evaluation.episodes import WINDOW, Episode, EpisodeStatistics
from atari_dqn.training.clock import Clock
from atari_dqn.training.parts import EnvPool, OnWait, Parts, seeds_of


class InexactError(RuntimeError):
    """A deterministic run cannot be resumed exactly; the message says why."""


class Trainer:
    """Drives the parts of one run and counts. `iterate` is one turn of the loop; no method touches a file."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, parts: Parts) -> None:
        self.spec = spec
        self.live = LiveValues(config)
        self.protocol = PROTOCOLS[config.env.protocol]
        self.derived: Derived = derive(config, spec.frame_bytes)
        self.replay, self.learner, self.actor = parts.replay, parts.learner, parts.actor
        self._make_pool = parts.make_pool
        self.workers: EnvPool | None = None
        """The environments; None before `start`"""
        self.env_steps = 0
        self._scheduled_epsilon = epsilon_schedule(config.exploration, self.derived)
        self.epsilon = self._scheduled_epsilon
        self.beta = Piecewise(self.derived.beta_knots)
        self._rate_factor = Piecewise(self.derived.learning_rate_knots)
        self.episodes = EpisodeStatistics(config.num_envs)
        self.ended: list[Episode] = []
        """Games that ended since this list was last emptied"""
        self.evaluated: float | None = None
        """Mean score of the last evaluation"""
        self.env_seed = seeds_of(config.run.seed)["envs"]
        self.envs_before: dict[str, torch.Tensor] = {}
        """State from which `start` restores the environments; empty: they start new episodes"""
        self.rate_set_at = (0, 0)
        """Env steps and updates at the time the replay ratio was last set"""
        self.clock = Clock()
        self._set_learning_rate()

    @property
    def config(self) -> TrainConfig:
        """The settings, with live edits applied."""
        return self.live.config

    @property
    def device(self) -> torch.device:
        return self.learner.device

    def start(
        self, on_wait: OnWait | None = None, on_tick: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Start the environments and give the replay their first observations, or restore them to its newest ones.

        `on_wait` is told, now and later, of workers that keep the loop waiting; `on_tick` how many ticks of a restore
        are done of how many; what they raise ends it. Raises `WorkerError` and `InexactError`.
        """
        self.clock.start(self.env_steps)
        self.workers = self._make_pool(self.env_seed, on_wait)
        if not self.envs_before:
            self.replay.append(self.workers.reset().frames, last=np.zeros(self.config.num_envs, dtype=bool))
            return
        step = self.workers.restore({name: value.numpy() for name, value in self.envs_before.items()}, on_tick)
        ring = self.replay.ring
        before, over = ring.frames[ring.newest % ring.rows].cpu().numpy(), step.terminated | step.truncated
        same = (step.frames == before).reshape(len(over), -1).all(axis=1) & (over == ring.ended)
        if not same.all():
            raise InexactError(
                f"{self.spec.env_id} (environment {int(np.argmin(same))}) is not deterministic: replaying its seed and"
                " actions gave a different state; resume with --no-deterministic, which cuts unfinished episodes"
            )

    def iterate(self) -> None:
        """Make one decision in every environment and, meanwhile, the updates that are due.

        When it raises, updates may have been made but the decision was not: the next call makes the same one.
        """
        assert self.workers is not None, "start() comes first"
        self.replay.beta.fill_(self.beta(self.env_steps))
        if len(self._rate_factor.knots) > 1:
            self._set_learning_rate()
        undecided = self.actor.state()
        try:
            actions = self.actor.act(self.replay.latest_observation(), self.epsilons())
            self.workers.send(actions)
            for _ in range(self.updates_due()):
                self.learner.update()
            step = self.workers.recv()
        except BaseException:
            self.actor.load(undecided)
            raise
        self.observe(actions, step)

    def observe(self, actions: npt.NDArray[np.int64], step: StepResult) -> None:
        """Add one tick of all environments to the replay, the counters and the scores."""
        terminal = step.terminated
        if self.protocol.life_loss_terminal:
            terminal = terminal | step.life_lost
        last = step.terminated | step.truncated
        lost = step.is_reset & ~self.replay.ring.ended
        if lost.any():
            # Their worker was replaced, and its last result is unknown: no transition may join the two episodes.
            self.replay.cut(lost)
            self.episodes.abandon(lost)
        self.replay.append(step.frames, last=last, actions=actions, rewards=step.rewards, terminal=terminal)
        self.env_steps += int(np.count_nonzero(~step.is_reset))
        self.ended += self.episodes.add(step)

    def updates_due(self) -> int:
        """Number of updates to make now, by integer arithmetic from where the replay ratio was last set."""
        env_steps, updates = self.rate_set_at
        learner = self.config.learner
        return updates + updates_at(learner, self.env_steps) - updates_at(learner, env_steps) - self.learner.updates

    def epsilons(self) -> float | npt.NDArray[np.float64]:
        """Probability of a random action: one number, or one per environment [num_envs] with a ladder.

        It is 1 until learning starts, because an untrained network repeats one action.
        """
        return 1.0 if self.env_steps < self.config.learner.learning_starts else self.epsilon(self.env_steps)

    def current_epsilon(self) -> float:
        """Mean of `epsilons` over the environments."""
        return float(np.mean(self.epsilons()))

    @property
    def done(self) -> bool:
        """Whether all env steps are made or `stop_score` is reached."""
        run = self.config.run
        if self.env_steps >= run.total_env_steps:
            return True
        if run.stop_score is None:
            return False
        score = self.evaluated
        if not run.eval_interval and len(self.episodes.returns) == WINDOW:
            score = float(np.mean(self.episodes.returns))
        return score is not None and score >= run.stop_score

    def edit(self, request: Request) -> Edit:
        """Apply or refuse a live edit; to be called between two iterations, the next of which obeys. Never raises."""
        # What was due under the previous ratio stays due; only later env steps count by the new one.
        owed = self.learner.updates + self.updates_due()
        edit = self.live.decide(request, self.env_steps, self.learner.updates)
        if edit.taken:
            if edit.name == "replay_ratio":
                self.rate_set_at = (self.env_steps, owed)
            self.apply_live_values()
        return edit

    def apply_live_values(self) -> None:
        """Give the schedules and the learner the present live values."""
        values = self.live.values
        epsilon, beta = values["epsilon"], values["beta"]
        self.epsilon = self._scheduled_epsilon if epsilon == SCHEDULE else Piecewise(((0, float(epsilon)),))
        self.beta = Piecewise(self.derived.beta_knots if beta == SCHEDULE else ((0, float(beta)),))
        self._set_learning_rate()
        self.learner.max_grad_norm.fill_(self.config.learner.max_grad_norm)
        self.learner.target_update_interval = self.config.learner.target_update_interval

    def _set_learning_rate(self) -> None:
        self.learner.learning_rate.fill_(self.config.learner.learning_rate * self._rate_factor(self.env_steps))

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
