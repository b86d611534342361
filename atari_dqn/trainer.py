"""The loop. Flows in: a checked config and its env's spec. Flows out: a trained network in a run directory.

    actions = actor.act(replay.latest_observation(), epsilon)   # one batched forward for all envs
    workers.send(actions)                                       # envs start stepping, in other processes
    learner.update() as often as is due                         # ... while this process learns
    replay.append(actions, workers.recv())                      # then the step joins the replay

Stepping and learning overlap, yet nothing races: the updates see only what was in the replay before `send`. Between
two iterations all is quiet, and only there do logs, evaluations, checkpoints and stops happen. The trainer alone
counts env steps; env steps, frames (4 to a step) and updates are three units.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atari_dqn.actor import Actor
from atari_dqn.checkpoint import CheckpointStore, Snapshot, load_weights
from atari_dqn.config import Derived, TrainConfig, derive, updates_at
from atari_dqn.edits import RECORD, EditDesk
from atari_dqn.envs.make import PROTOCOLS, EnvSpec
from atari_dqn.envs.pool import StepResult, WorkerError, WorkerPool
from atari_dqn.episodes import EpisodeStatistics
from atari_dqn.evaluation import Progress, append_evaluation, evaluate
from atari_dqn.learner import Learner, resolve_device, resolve_precision
from atari_dqn.live import SCHEDULE, Edit, LiveValues, Request, Value
from atari_dqn.monitor import Monitor
from atari_dqn.network import make_network
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.replay.uniform import UniformReplay
from atari_dqn.schedules import Piecewise


class Stopped(Exception):
    """The user asked to stop while something that can be given up (an evaluation) was under way."""


class Trainer:
    """Owns the parts of one run and its counters.

    `iterate` is one turn of the loop and touches no file; `run` adds the monitor, evaluations, checkpoints and stops.
    """

    def __init__(self, config: TrainConfig, spec: EnvSpec) -> None:
        self.config, self.spec = config, spec
        self.protocol = PROTOCOLS[config.env.protocol]
        self.derived: Derived = derive(config, spec.frame_bytes, spec.stack)
        self.device = resolve_device(config.run.device)
        self.env_steps = 0
        self.epsilon = Piecewise(self.derived.epsilon_knots)
        self.beta = Piecewise(self.derived.beta_knots)
        self.live = LiveValues(config)
        self._overruled: list[Request] = []
        seeds = seeds_of(config.run.seed)
        self.replay = make_replay(config, spec, self.device, seeds["replay"])
        self.learner = Learner(
            lambda: make_network(spec, config.network),
            self.replay,
            config.learner,
            seed=seeds["network"],
            device=self.device,
            precision=resolve_precision(config.learner.precision, self.device, config.run.deterministic),
        )
        self.actor = Actor(self.learner.policy, spec.num_actions, seed=seeds["actor"])
        self.episodes = EpisodeStatistics(config.num_envs)
        self.workers: WorkerPool | None = None
        self._env_seed = seeds["envs"]
        self._rate_set_at = (0, 0)
        """env steps and updates"""
        self._elapsed = 0.0
        self._clock: _Clock | None = None

    # ------------------------------------------------------------------ the loop

    def start(self) -> None:
        """Start the workers and put the first observations into the replay."""
        self.workers = WorkerPool(
            self.spec,
            self.protocol,
            num_workers=self.config.env.num_workers,
            envs_per_worker=self.config.env.envs_per_worker,
            seed=self._env_seed,
            deadline=self.config.env.worker_deadline,
        )
        step = self.workers.reset()
        self.replay.append(step.frames, last=np.zeros(self.config.num_envs, dtype=bool))

    def iterate(self) -> None:
        """One decision of every env, and the updates that are due, overlapped."""
        assert self.workers is not None, "start() comes first"
        self.replay.beta.fill_(self.beta(self.env_steps))
        actions = self.actor.act(self.replay.latest_observation(), self.current_epsilon())
        self.workers.send(actions)
        for _ in range(self.updates_due()):
            self.learner.update()
        self.observe(actions, self.workers.recv())

    def current_epsilon(self) -> float:
        """The schedule's, and 1 before learning starts: an untrained network's moves are one action over and over."""
        return 1.0 if self.env_steps < self.config.learner.learning_starts else self.epsilon(self.env_steps)

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
        self.replay.append(step.frames, last=last, actions=actions, rewards=step.rewards, terminal=terminal)
        self.env_steps += int(np.count_nonzero(~step.is_reset))
        self.episodes.add(step)

    def edit(self, request: Request) -> Edit:
        """Take or refuse a live edit; only between two iterations, the next of which obeys. Never raises."""
        edit = self.live.decide(request, self.env_steps, self.learner.updates)
        if edit.taken:
            self._obey(edit.name, edit.new)
        return edit

    def _obey(self, name: str, value: Value) -> None:
        if name == "epsilon":
            self.epsilon = Piecewise(self.derived.epsilon_knots if value == SCHEDULE else ((0, float(value)),))
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

    # ------------------------------------------------------------------ a run

    def run(
        self, run_dir: Path, monitor: Monitor, should_stop: Callable[[], bool], repeated: Sequence[Edit] = ()
    ) -> bool:
        """Train to `total_env_steps`, or until `should_stop`. Saves at the end either way. True: all steps done.

        `repeated` are another run's live edits, taken at the same env steps again.
        """
        run, desk = self.config.run, EditDesk(run_dir, repeated, self.env_steps)
        store = CheckpointStore(run_dir, run.keep_checkpoints)
        clock = self._clock = _Clock(self.env_steps, self._elapsed)
        logged = self.env_steps
        if should_stop():
            return False
        try:
            self.start()
            self._edit(self._overruled, monitor, desk)
            while self.env_steps < run.total_env_steps and not should_stop():
                before = self.env_steps
                self.iterate()
                monitor.tick(self.env_steps)
                # Before the logs, evaluations and checkpoints of the same env step.
                self._edit([*desk.asked(self.env_steps, self.learner.updates), *monitor.asked()], monitor, desk)
                run = self.config.run
                row: dict[str, float] = {}
                if _crossed(before, self.env_steps, run.eval_interval):
                    row |= self._evaluate(run_dir, monitor, should_stop)
                if row or _crossed(before, self.env_steps, run.log_interval):
                    monitor.write(self._row(clock) | row)
                    logged = self.env_steps
                if _crossed(before, self.env_steps, run.checkpoint_interval) and self.env_steps < run.total_env_steps:
                    self.save(store)
            done = self.env_steps >= run.total_env_steps
            if self.env_steps > logged:
                monitor.write(self._row(clock))
            self.save(store)
            return done
        except WorkerError:
            # The step under way is lost; what was learned is not. (A resume cuts the games anyway.)
            self.save(store)
            raise
        finally:
            self.close()

    def _edit(self, requests: Sequence[Request], monitor: Monitor, desk: EditDesk) -> None:
        for request in requests:
            edit = self.edit(request)
            try:
                desk.record(edit)
            except OSError as error:
                # What is not remembered could never be repeated.
                if edit.taken:
                    self.edit(Request(edit.name, edit.old, edit.source))
                monitor.say(f"{edit.name} stays as it was: {RECORD} cannot be written: {error.strerror}")
                continue
            monitor.say(f"env step {self.env_steps:,}: {edit}")
        if requests:
            monitor.show(self.live.values)  # after a refusal too: the page believes what was typed

    def _row(self, clock: _Clock) -> dict[str, float]:
        learning = self.learner.pop_metrics()
        if not np.isfinite(list(learning.values())).all():
            raise FloatingPointError(f"the loss or a gradient is not finite at env step {self.env_steps:,}: {learning}")
        return {
            "env_step": self.env_steps,
            "update": self.learner.updates,
            "time": round(clock.elapsed(), 3),
            **self.episodes.metrics(),
            "charts/SPS": round(clock.steps_per_second(self.env_steps), 1),
            "charts/learning_rate": float(str(np.float32(self.learner.learning_rate.item()))),
            "charts/epsilon": self.current_epsilon(),
            "charts/beta": self.beta(self.env_steps),
            "charts/replay_ratio": self.config.learner.replay_ratio,
            "charts/target_update_interval": float(self.config.learner.target_update_interval),
            "charts/max_grad_norm": self.config.learner.max_grad_norm,
            "charts/replay_fill": self.replay.fill / (self.derived.rows * self.derived.num_envs),
            **learning,
        }

    def _evaluate(self, run_dir: Path, monitor: Monitor, should_stop: Callable[[], bool]) -> dict[str, float]:
        def watch(progress: Progress) -> None:
            monitor.tick(self.env_steps, f"evaluating: {progress.games} of {progress.episodes} games")
            if should_stop():
                raise Stopped

        run = self.config.run
        try:
            result = evaluate(
                self.learner.online,
                self.spec,
                self.protocol,
                episodes=run.eval_episodes,
                num_workers=min(self.config.env.num_workers, run.eval_episodes),
                epsilon=run.eval_epsilon,
                seed=seeds_of(run.seed)["evaluation"],
                device=self.device,
                deadline=self.config.env.worker_deadline,
                on_progress=watch,
            )
        except Stopped:
            return {}
        append_evaluation(run_dir, self.env_steps, result)
        monitor.say(f"evaluation at {self.env_steps:,} env steps: {result.summary()}")
        return {"eval/episodic_return": result.mean, "eval/episodic_length": float(np.mean(result.lengths))}

    # ------------------------------------------------------------------ saving and going on

    def save(self, store: CheckpointStore) -> Path:
        """Write a checkpoint of everything but the envs."""
        replay = self.replay.state()
        frames = replay.pop("frames")
        counters = {
            "env_steps": self.env_steps,
            "episodes": self.episodes.state(),
            "actor": self.actor.state(),
            "rate": self._rate(),
            "rate_set_at": self._rate_set_at,
            "live": self.live.state(),
            "time": self._clock.elapsed() if self._clock else self._elapsed,
        }
        score = self.episodes.metrics().get("charts/episodic_return")
        return store.save(self.env_steps, Snapshot(counters, self.learner.state(), replay, frames), score)

    def resume(self, store: CheckpointStore) -> list[str]:
        """Continue from the newest whole checkpoint, if there is one. Returns a line about each one skipped.

        Live edits hold on, except where a flag has changed since. The envs start new games, so the unfinished ones are
        cut as truncations: no transition joins the two.
        """
        snapshot, skipped = store.load_newest(self.device, self.replay.ring.frames)
        if snapshot is not None:
            self.env_steps = snapshot.counters["env_steps"]
            self.episodes.load(snapshot.counters["episodes"])
            self.episodes.abandon()
            self._elapsed = snapshot.counters["time"]
            self.actor.load(snapshot.counters["actor"])
            self.learner.load(snapshot.learner)
            self._overruled = self.live.load(snapshot.counters["live"])
            for name, value in self.live.values.items():
                self._obey(name, value)
            same_rate = snapshot.counters["rate"] == self._rate()
            env_steps, updates = snapshot.counters["rate_set_at"]
            self._rate_set_at = (env_steps, updates) if same_rate else (self.env_steps, self.learner.updates)
            self.replay.load(snapshot.replay | {"frames": snapshot.frames})
            self.replay.cut()
            # Other games than those already played, yet the same ones whenever this checkpoint is continued.
            self._env_seed = _derived_seed(self._env_seed, self.env_steps)
        return skipped

    def _rate(self) -> list[float]:
        """What decides how many updates are due: when it changes, they are counted anew, or a burst would be due."""
        learner = self.config.learner
        return [learner.replay_ratio, learner.batch_size, learner.learning_starts]

    def init_from(self, file: Path) -> None:
        """Take over the weights of another run's checkpoint. Raises `ConfigError` when they do not fit."""
        self.learner.load_weights(load_weights(file, self.device), file)


def make_replay(
    config: TrainConfig, spec: EnvSpec, device: torch.device, seed: int
) -> PrioritizedReplay | UniformReplay:
    """The replay the config asks for, empty."""
    shared: dict[str, Any] = {
        "n_step": config.replay.n_step,
        "gamma": config.replay.gamma,
        "clip_rewards": config.replay.clip_rewards,
        "seed": seed,
        "device": device,
    }
    size = (config.replay.replay_capacity, config.num_envs, spec.frame_shape, spec.frame_dtype, spec.stack)
    if config.replay.replay == "prioritized":
        return PrioritizedReplay(*size, alpha=config.replay.alpha, **shared)
    return UniformReplay(*size, **shared)


def seeds_of(root: int) -> dict[str, int]:
    """One independent seed for each consumer of randomness, so that none disturbs another."""
    return {
        name: _derived_seed(root, index)
        for index, name in enumerate(("network", "replay", "actor", "envs", "evaluation"))
    }


def _derived_seed(root: int, branch: int) -> int:
    return int(np.random.SeedSequence((root, branch)).generate_state(1)[0] >> 1)


def _crossed(before: int, after: int, interval: int) -> bool:
    """True when a multiple of `interval` lies in (before, after]; never for interval 0."""
    return bool(interval) and after // interval > before // interval


@dataclasses.dataclass
class _Clock:
    """Wall time of the run, its former parts included, and env steps a second since it was last asked."""

    env_steps: int
    before: float
    """seconds"""

    def __post_init__(self) -> None:
        self._start = self._asked = time.monotonic()

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self._start

    def steps_per_second(self, env_steps: int) -> float:
        now = time.monotonic()
        rate = (env_steps - self.env_steps) / max(now - self._asked, 1e-9)
        self.env_steps, self._asked = env_steps, now
        return rate
