"""The loop. Flows in: a checked config and its env's spec. Flows out: a trained network, and checkpoints of it.

    actions = actor.act(replay.latest_observation(), epsilon)   # one batched forward for all envs
    workers.send(actions)                                       # envs start stepping, in other processes
    learner.update() as often as is due                         # ... while this process learns
    replay.append(actions, workers.recv())                      # then the step joins the replay

Stepping and learning overlap, yet nothing races: the updates see only what was in the replay before `send`. Between
two iterations all is quiet, and only there may anything else happen (see training.py). The trainer alone counts env
steps; env steps, frames (4 to a step) and updates are three units.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from atari_dqn.agent.actor import Actor
from atari_dqn.agent.cuda_graph import CapturedLearner, CapturedNetwork
from atari_dqn.agent.device import resolve_device, resolve_precision
from atari_dqn.agent.finite import refuse_not_finite, where_not_finite
from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.agent.schedules import Exponential, Ladder, Piecewise
from atari_dqn.config.derived import Derived, derive, updates_at
from atari_dqn.config.live import SCHEDULE, Edit, LiveValues, Request, Value
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.evaluation.episodes import WINDOW, Episode, EpisodeStatistics
from atari_dqn.replay.make import make_replay
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights
from atari_dqn.workers.pool import StepResult, WorkerPool


class InexactError(RuntimeError):
    """An exact run cannot go on exactly; the message says why."""


class Trainer:
    """Owns the parts of one run and its counters. `iterate` is one turn of the loop; it touches no file."""

    def __init__(self, config: TrainConfig, spec: EnvSpec) -> None:
        self.config, self.spec = config, spec
        self.protocol = PROTOCOLS[config.env.protocol]
        self.derived: Derived = derive(config, spec.frame_bytes, spec.stack)
        self.device = resolve_device(config.run.device)
        self.env_steps = 0
        self.epsilon = self._scheduled_epsilon()
        self.beta = Piecewise(self.derived.beta_knots)
        self.live = LiveValues(config)
        self.overruled: list[Request] = []
        """edits that a resume found undone by a flag given since; to be made before anything else"""
        self.edit_lines = 0
        """of the record of live edits, at the time of the checkpoint that was resumed from"""
        seeds = seeds_of(config.run.seed)
        self.replay = make_replay(
            config.replay,
            num_envs=config.num_envs,
            frame_shape=spec.frame_shape,
            frame_dtype=spec.frame_dtype,
            stack=spec.stack,
            seed=seeds["replay"],
            device=self.device,
        )
        captured = self.device.type == "cuda" and config.learner.cuda_graph
        self.learner: Learner = (CapturedLearner if captured else Learner)(
            lambda: make_network(spec, config.network),
            self.replay,
            config.learner,
            seed=seeds["network"],
            device=self.device,
            precision=resolve_precision(config.learner.precision, self.device, config.run.deterministic),
        )
        # It plays on the learner's stream and with its weights: what it is to play with must be learned by then, so a
        # stream and weights of its own would have to wait for the same.
        policy = self.learner.policy
        self.actor = Actor(
            CapturedNetwork(policy, self.device) if captured else policy, spec.num_actions, seed=seeds["actor"]
        )
        self.episodes = EpisodeStatistics(config.num_envs)
        self.ended: list[Episode] = []
        """games that ended since this was last emptied"""
        self.evaluated: float | None = None
        """mean score of the last evaluation"""
        self.workers: WorkerPool | None = None
        self._env_seed = seeds["envs"]
        self._envs_before: dict[str, torch.Tensor] = {}
        """what brings back the envs of the checkpoint that is continued; empty: they begin anew"""
        self._rate_set_at = (0, 0)
        """env steps and updates"""
        self.clock = Clock()

    # ------------------------------------------------------------------ the loop

    def start(
        self,
        on_wait: Callable[[str], None] | None = None,
        on_tick: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """Start the workers; put the first observations into the replay, or bring the envs back to its newest ones.

        The latter takes as many ticks once more as `on_tick` is told (done, of). `on_wait` is told, now and later, of
        workers that keep the loop waiting. What either raises ends the wait. Raises `WorkerError` for a worker that
        fails, and `InexactError` when the envs do not come back as they were.
        """
        self.clock.start(self.env_steps)
        self.workers = WorkerPool(
            self.spec,
            self.protocol,
            num_workers=self.config.env.num_workers,
            envs_per_worker=self.config.env.envs_per_worker,
            seed=self._env_seed,
            deadline=self.config.env.worker_deadline,
            restarts=self.config.env.worker_restarts,
            exact=self.config.run.deterministic,
            on_wait=on_wait,
        )
        if not self._envs_before:
            step = self.workers.reset()
            self.replay.append(step.frames, last=np.zeros(self.config.num_envs, dtype=bool))
            return
        step = self.workers.restore({name: value.numpy() for name, value in self._envs_before.items()}, on_tick)
        ring = self.replay.ring
        before, over = ring.frames[ring.newest % ring.rows].cpu().numpy(), step.terminated | step.truncated
        same = (step.frames == before).reshape(len(over), -1).all(axis=1) & (over == ring.ended)
        if not same.all():
            raise InexactError(
                f"env {int(np.argmin(same))} of {self.spec.env_id} did not come back as it was: it is no function of"
                " its seed and its actions; with --no-deterministic the run goes on, its unfinished episodes cut"
            )

    def iterate(self) -> None:
        """One decision of every env, and the updates that are due, overlapped.

        When it raises, updates may have been made and the decision was not: the same one is to be made again.
        """
        assert self.workers is not None, "start() comes first"
        self.replay.beta.fill_(self.beta(self.env_steps))
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

    def epsilons(self) -> float | npt.NDArray[np.float64]:
        """Of all envs, or of each: 1 before learning starts, since an untrained network's moves are one action over and
        over; then the schedule's or the ladder's, or the number that was asked for live."""
        return 1.0 if self.env_steps < self.config.learner.learning_starts else self.epsilon(self.env_steps)

    def current_epsilon(self) -> float:
        """The mean over the envs."""
        return float(np.mean(self.epsilons()))

    def _scheduled_epsilon(self) -> Piecewise | Exponential | Ladder:
        exploration = self.config.exploration
        if exploration.epsilon_ladder:
            return Ladder(self.config.num_envs)
        if exploration.epsilon_decay:
            first, last = exploration.epsilon_values
            return Exponential(first, last, exploration.epsilon_decay)
        return Piecewise(self.derived.epsilon_knots)

    @property
    def done(self) -> bool:
        """All env steps are made, or the score that was to be reached is."""
        run = self.config.run
        if self.env_steps >= run.total_env_steps:
            return True
        if run.stop_score is None:
            return False
        score = self.evaluated
        if not run.eval_interval and len(self.episodes.returns) == WINDOW:
            score = float(np.mean(self.episodes.returns))
        return score is not None and score >= run.stop_score

    def updates_due(self) -> int:
        """Updates to be made now, by integer arithmetic since the rate was set: at the start, or by a resume."""
        env_steps, updates = self._rate_set_at
        learner = self.config.learner
        return updates + updates_at(learner, self.env_steps) - updates_at(learner, env_steps) - self.learner.updates

    def observe(self, actions: np.ndarray, step: StepResult) -> None:
        """Let one tick of all envs join the replay, the counters and the scores."""
        terminal = step.terminated
        if self.protocol.life_loss_terminal:
            terminal = terminal | step.life_lost
        last = step.terminated | step.truncated
        lost = step.is_reset & ~self.replay.ring.ended
        if lost.any():
            # Their worker was replaced, and what it did last is not known: no transition joins the two games.
            self.replay.cut(lost)
            self.episodes.abandon(lost)
        self.replay.append(step.frames, last=last, actions=actions, rewards=step.rewards, terminal=terminal)
        self.env_steps += int(np.count_nonzero(~step.is_reset))
        self.ended += self.episodes.add(step)

    def edit(self, request: Request) -> Edit:
        """Take or refuse a live edit; only between two iterations, the next of which obeys. Never raises."""
        edit = self.live.decide(request, self.env_steps, self.learner.updates)
        if edit.taken:
            self._obey(edit.name, edit.new)
        return edit

    def _obey(self, name: str, value: Value) -> None:
        if name == "epsilon":
            self.epsilon = self._scheduled_epsilon() if value == SCHEDULE else Piecewise(((0, float(value)),))
        elif name == "beta":
            self.beta = Piecewise(self.derived.beta_knots if value == SCHEDULE else ((0, float(value)),))
        else:
            # What is due by the former ratio stays due; only later env steps count by the new one.
            owed = self.learner.updates + self.updates_due()
            self.config = self.config.replace(**{name: value})
            if name == "replay_ratio":
                self._rate_set_at = (self.env_steps, owed)
            self.learner.learning_rate.fill_(self.config.learner.learning_rate)
            self.learner.max_grad_norm.fill_(self.config.learner.max_grad_norm)
            self.learner.target_update_interval = self.config.learner.target_update_interval

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()

    # ------------------------------------------------------------------ saving and going on

    def save(self, store: CheckpointStore, edit_lines: int = 0) -> Path:
        """Write a checkpoint of everything; of the envs, in an exact run, what brings them back.

        `edit_lines`: of the record of live edits, by now. Raises `OSError`; then what was stored before is still there;
        and `NotFiniteError` rather than save NaN or infinity.
        """
        learner, replay = self.learner.state(), self.replay.state()
        refuse_not_finite({**learner, "priorities": replay["leaves"], "largest_priority": replay["largest"]})
        frames = replay.pop("frames")[: self.replay.newest + 1]
        counters = {
            "env_steps": self.env_steps,
            "episodes": self.episodes.state(),
            "evaluated": self.evaluated,
            "actor": self.actor.state(),
            "rate": self._rate(),
            "rate_set_at": self._rate_set_at,
            "live": self.live.state(),
            "edit_lines": edit_lines,
            "time": self.clock.elapsed(),
        }
        score = self.episodes.metrics().get("charts/episodic_return")
        history = self.workers.state() if self.workers is not None else {}
        envs = {name: torch.from_numpy(array) for name, array in history.items()}
        return store.save(self.env_steps, Snapshot(counters, learner, replay, frames, envs), score)

    def resume(self, store: CheckpointStore) -> list[str]:
        """Continue from the newest whole checkpoint, if there is one. Returns lines: which were skipped, what is cut.

        Live edits hold on, except where a flag has changed since. In an exact run the unfinished games go on. Otherwise
        the envs start new ones, and the unfinished are cut as truncations: no transition joins the two.
        """
        snapshot, skipped = store.load_newest(self.device, self.replay.ring.frames)
        if snapshot is not None:
            self.env_steps = snapshot.counters["env_steps"]
            self.episodes.load(snapshot.counters["episodes"])
            self.evaluated = snapshot.counters.get("evaluated")  # a checkpoint of an older version has none
            self.clock.before = snapshot.counters["time"]
            self.actor.load(snapshot.counters["actor"])
            self.learner.load(snapshot.learner)
            self.edit_lines = snapshot.counters["edit_lines"]
            self.overruled = self.live.load(snapshot.counters["live"])
            for name, value in self.live.values.items():
                self._obey(name, value)
            same_rate = snapshot.counters["rate"] == self._rate()
            env_steps, updates = snapshot.counters["rate_set_at"]
            self._rate_set_at = (env_steps, updates) if same_rate else (self.env_steps, self.learner.updates)
            self.replay.load(snapshot.replay | {"frames": snapshot.frames})
            if self.config.run.deterministic:
                self._envs_before = snapshot.envs
            if not self._envs_before:
                if self.config.run.deterministic:
                    skipped.append("the games under way are cut: the checkpoint is of a run without --deterministic")
                self.replay.cut()
                self.episodes.abandon(np.ones(self.config.num_envs, dtype=bool))
                # Other games than those already played, yet the same ones whenever this checkpoint is continued.
                self._env_seed = _derived_seed(self._env_seed, self.env_steps)
        return skipped

    def _rate(self) -> list[float]:
        """What decides how many updates are due: when it changes, they are counted anew, or a burst would be due."""
        learner = self.config.learner
        return [learner.replay_ratio, learner.batch_size, learner.learning_starts]

    def init_from(self, file: Path) -> None:
        """Take over the weights of another run's checkpoint. Raises `ConfigError` when they do not fit or are NaN."""
        self.learner.load_weights(load_weights(file, self.device), file)
        if where := where_not_finite(self.learner.online.state_dict()):
            raise ConfigError(f"--init-from {file}: {where}")


def seeds_of(root: int) -> dict[str, int]:
    """One independent seed for each consumer of randomness, so that none disturbs another."""
    return {
        name: _derived_seed(root, index)
        for index, name in enumerate(("network", "replay", "actor", "envs", "evaluation"))
    }


def _derived_seed(root: int, branch: int) -> int:
    return int(np.random.SeedSequence((root, branch)).generate_state(1)[0] >> 1)


class Clock:
    """Wall time of the run, its former parts included, and env steps a second since it was last asked."""

    def __init__(self) -> None:
        self.before = 0.0
        """seconds, of the run's former parts"""
        self._start: float | None = None

    def start(self, env_steps: int) -> None:
        self._start = self._asked = time.monotonic()
        self._env_steps = env_steps

    def elapsed(self) -> float:
        return self.before + (0.0 if self._start is None else time.monotonic() - self._start)

    def steps_per_second(self, env_steps: int) -> float:
        now = time.monotonic()
        rate = (env_steps - self._env_steps) / max(now - self._asked, 1e-9)
        self._env_steps, self._asked = env_steps, now
        return rate
