"""A session: one process's work on a run, from its start or resume to its end or stop.

Between two iterations of the trainer, where nothing is in flight, it applies live edits, evaluates, records clips, logs
and saves. None of that changes a number of the training.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atari_dqn.agent.finite import NotFiniteError, where_not_finite
from atari_dqn.cli.format import duration, plural
from atari_dqn.config.live import Edit, Request
from atari_dqn.evaluation.evaluation import Games, evaluate
from atari_dqn.evaluation.player import NOTE_AFTER, tell_of_endless_game
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.monitoring.views import Row, result_of
from atari_dqn.render.clips import LAST_DEADLINE, Clip, Recorder
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.edits import RECORD, EditDesk, discard_edits
from atari_dqn.system.machine import is_out_of_memory
from atari_dqn.training.clock import Every
from atari_dqn.training.metrics import human, row_of
from atari_dqn.training.parts import seeds_of
from atari_dqn.training.snapshot import NotSaved, Resumed, Saver
from atari_dqn.training.threads import ThreadChoice
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.pool import WorkerError

EVALUATION_ENVS = 8
"""Minimum number of environments in an evaluation. With fewer, training would wait about twice as long."""
SKIPPED_LIMIT = 100
"""Number of updates that may be skipped in a row, because of NaN or infinity, before the run ends"""
CHECK_INTERVAL = SKIPPED_LIMIT // 4
"""Updates between two checks of how many were skipped; each check waits for the device"""


Metrics = Callable[[Row, nn.Module], Mapping[str, float]]
"""Returns further metrics by name, such as `own/entropy`, of a row and the online network, which it must not change"""


class Stopped(Exception):
    """The user asked to stop during something that can be abandoned: a start, an evaluation, a hanging step."""


class Session:
    """Trains `trainer` in `run_dir` until it is done or `should_stop`."""

    def __init__(
        self,
        trainer: Trainer,
        run_dir: Path,
        monitor: Monitor,
        should_stop: Callable[[], bool],
        repeated: Sequence[Edit] = (),
        resumed: Resumed | None = None,
        threads: ThreadChoice | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Discard what the run's edit log has past the checkpoint of `resumed`. Raises `OSError` if that fails.

        `repeated` are another run's live edits, to be made at the same env steps.
        """
        resumed = resumed or Resumed()
        self.trainer, self.run_dir, self.monitor, self.should_stop = trainer, run_dir, monitor, should_stop
        for edit in discard_edits(run_dir, resumed.edit_lines):
            monitor.say(f"discarded (made after the checkpoint): {edit}")
        self._overruled, self._threads = resumed.overruled, threads
        self._desk = EditDesk(run_dir, repeated, trainer.env_steps, trainer.learner.updates)
        self._saver = Saver(trainer, CheckpointStore(run_dir, trainer.config.run.keep_checkpoints), monitor)
        self._seed = seeds_of(trainer.config.run.seed)["evaluation"]
        self._recorder = Recorder(run_dir, trainer.config, trainer.spec, self._seed)
        self._evaluating, self._recording, self._logging, self._saving = (Every(trainer.env_steps) for _ in range(4))
        self._checking = Every(trainer.learner.updates)
        self._began_at = self._logged = trainer.env_steps
        self._workers_replaced = 0
        self._told_of_endless_game = False
        self._skipped = trainer.learner.skipped().in_all
        """Number of skipped updates that the user knows of"""
        self._metrics, self._row = metrics, Row()
        """What is measured besides, and the newest row until it is yielded"""

    def run(self) -> bool:
        """Train as `rows`, which nobody reads."""
        return result_of(self.rows())

    def rows(self) -> Generator[Row, None, bool]:
        """Train until the trainer is done (True) or the user asks to stop (False), and yield every row of metrics.

        Saves at the end either way, and when the generator is closed. A save that fails before the end sounds an alarm,
        and training continues; `NotSaved` is for the last one. `WorkerError` comes with what was learned saved,
        `NotFiniteError` after `SKIPPED_LIMIT` skipped updates with the state saved, or for what must not be saved, and
        `InexactError` from an exact resume.
        """
        if self.should_stop():
            return False
        trainer = self.trainer
        try:
            self._start()
            while not (trainer.done or self.should_stop()):
                self._iterate()
                self._report()
                self._edit([*self._desk.asked(trainer.env_steps, trainer.learner.updates), *self.monitor.asked()])
                evaluation = self._evaluate_if_due()
                self._record_if_due()
                self._log_if_due(evaluation)
                self._save_if_due()
                self._check_updates()
                if self._row:
                    yield self._row
                    self._row = Row()
            done = self._finish()
            if self._row:
                yield self._row
            return done
        except FloatingPointError as error:
            raise NotFiniteError(f"stopped at env step {trainer.env_steps:,}, {error}") from None
        except Stopped:
            # A worker is silent, perhaps for good: the step in flight is abandoned.
            if trainer.env_steps > self._began_at and (problem := self._save()):
                raise NotSaved(problem) from None
            return False
        except GeneratorExit:
            if problem := self._save_and_log():
                raise NotSaved(problem) from None
            raise
        except Exception as error:
            resumable = isinstance(error, WorkerError) or is_out_of_memory(error)
            if resumable and trainer.env_steps > self._began_at:
                self._save_and_say()  # the step in flight is lost; what was learned is not
            raise
        finally:
            self._recorder.close()
            trainer.close()

    def _start(self) -> None:
        began = time.monotonic()

        def watch(done: int, total: int) -> None:
            left = duration((time.monotonic() - began) * (total - done) / done)
            self._wait(f"restoring the environments: {done:,} of {total:,} ticks, {left} left")

        self._wait(f"starting {plural(self.trainer.config.env.num_workers, 'worker')}")
        self.trainer.start(self._wait, watch)
        self._edit(self._overruled)

    def _iterate(self) -> None:
        learner, began = self.trainer.learner, time.monotonic()
        updates = learner.updates
        self.trainer.iterate()
        if self._threads and learner.updates:
            line = self._threads.took(time.monotonic() - began, learner.updates - updates)
            if line:
                self.monitor.say(f"env step {self.trainer.env_steps:,}: {line}")

    def _finish(self) -> bool:
        """Save, log the last row and wait for the last clip, which a stop abandons."""
        problem = self._save_and_log()
        self._recorder.shorten_deadline()
        while self._recorder.env_step is not None and not self.should_stop():
            self.monitor.tick(self.trainer.env_steps, f"finishing the clip, at most {LAST_DEADLINE:g} s")
            self._show_clip(seconds=0.25)
        if problem:
            raise NotSaved(problem)
        return self.trainer.done

    def _save_and_log(self) -> str:
        problem = self._save()
        if self.trainer.env_steps > self._logged:
            self._log()  # after the save: a resumed run continues the means
        return problem

    def _wait(self, note: str) -> None:
        """Show `note` during anything that takes long, and make it possible to stop."""
        self._name_replaced()
        self.monitor.tick(self.trainer.env_steps, note)
        if self.should_stop():
            raise Stopped

    def _report(self) -> None:
        """Keep the terminal alive, name workers that were replaced, and record the games that ended."""
        trainer, monitor = self.trainer, self.monitor
        monitor.tick(trainer.env_steps)
        self._name_replaced()
        steps_each = trainer.env_steps // trainer.config.num_envs
        if not (self._told_of_endless_game or trainer.episodes.finished) and steps_each >= NOTE_AFTER:
            self._told_of_endless_game = True
            tell_of_endless_game(trainer.spec, NOTE_AFTER, monitor.say)
        if trainer.ended:
            monitor.keep_episodes(trainer.env_steps, trainer.clock.elapsed(), trainer.ended)
            trainer.ended.clear()

    def _name_replaced(self) -> None:
        """Name workers that are being replaced, while their successors start or wait for a place, too."""
        for failure in self.trainer.workers.failures if self.trainer.workers else ():
            self._workers_replaced += 1
            self.monitor.say(
                f"env step {self.trainer.env_steps:,}: {failure.rstrip()}\n"
                "The worker is replaced; its unfinished episodes are cut, and training continues."
            )
        if self.trainer.workers:
            self.trainer.workers.failures.clear()

    def _edit(self, requests: Sequence[Request]) -> None:
        trainer, monitor = self.trainer, self.monitor
        for request in requests:
            edit = trainer.edit(request)
            try:
                self._desk.record(edit)
            except OSError as error:
                # An edit that is not recorded could never be repeated.
                if edit.taken:
                    trainer.edit(Request(edit.name, edit.old, edit.source))
                reason = f"{edit.name} not changed: cannot write {RECORD}: {error.strerror}"
                edit = dataclasses.replace(edit, taken=False, reason=reason)
            monitor.answer(trainer.env_steps, edit)
        if requests:
            monitor.show(trainer.live.values)  # after a refusal too: the page shows what was typed

    def _evaluate_if_due(self) -> dict[str, float]:
        """Scalars for the next row; empty when no evaluation was due or it failed."""
        trainer, config = self.trainer, self.trainer.config
        if not self._evaluating.passed(trainer.env_steps, config.run.eval_interval):
            return {}

        def watch(games: Games) -> None:
            self._wait(f"evaluating: {games.finished} of {games.episodes} games")

        num_envs = max(config.num_envs, EVALUATION_ENVS)
        try:
            result = evaluate(
                trainer.learner.online,
                trainer.spec,
                trainer.protocol,
                episodes=config.run.eval_episodes,
                num_envs=num_envs,
                # No more environments in a worker than in training: some allow only one instance per process.
                num_workers=math.ceil(num_envs / config.env.envs_per_worker),
                epsilon=config.run.eval_epsilon,
                seed=self._seed,
                device=trainer.device,
                deadline=config.env.worker_deadline,
                on_progress=watch,
                on_wait=self._wait,
                say=self.monitor.say,
            )
        except Stopped:
            return {}
        except WorkerError as error:
            self.monitor.say(f"no evaluation at {trainer.env_steps:,} env steps: {error}")
            return {}
        trainer.evaluated = result.mean
        self.monitor.keep_evaluation({"env_step": trainer.env_steps, **result.to_dict()})
        self.monitor.say(f"evaluation at {trainer.env_steps:,} env steps: {result.summary()}")
        return {
            "eval/episodic_return": result.mean,
            "eval/episodic_length": float(np.mean(result.lengths)),
            **human(trainer, "eval", result.mean),
        }

    def _record_if_due(self) -> None:
        """Start a clip, made by another process while training continues, and show the one that is finished."""
        env_step = self.trainer.env_steps
        if self._recording.passed(env_step, self.trainer.config.run.record_interval) and (
            reason := self._recorder.begin(env_step, self.trainer.learner.online)
        ):
            self.monitor.say(f"no clip at env step {env_step:,}: {reason}")
        self._show_clip()

    def _show_clip(self, seconds: float = 0.0) -> None:
        """Log the clip if it is finished; wait up to `seconds` for it."""
        env_step, made = self._recorder.env_step, self._recorder.poll(seconds)
        if isinstance(made, Clip):
            self.monitor.keep_clip(made)
            self.monitor.say(f"clip at env step {made.env_step:,}: {made}")
        elif made is not None:
            self.monitor.say(f"no clip at env step {env_step:,}: {made}")

    def _log_if_due(self, evaluation: dict[str, float]) -> None:
        if self._logging.passed(self.trainer.env_steps, self.trainer.config.run.log_interval) or evaluation:
            self._log(evaluation)

    def _log(self, evaluation: dict[str, float] | None = None) -> None:
        trainer = self.trainer
        row = row_of(trainer, self._workers_replaced, self._saver.failed)
        skipped = int(row.get("learner/skipped_updates", self._skipped))
        if skipped > self._skipped:
            self.monitor.say(
                f"env step {trainer.env_steps:,}: {skipped - self._skipped:,} updates skipped because of NaN or"
                f" infinity in loss or gradient; {skipped:,} in total"
            )
        self._skipped = skipped
        self._row = row | (evaluation or {})
        if self._metrics:
            try:
                with torch.no_grad():
                    own = self._metrics(self._row, trainer.learner.online)
                self._row |= {name if "/" in name else f"own/{name}": float(value) for name, value in own.items()}
            except Exception:  # whatever a user's function may do
                self._save_and_say()
                raise
        self.monitor.write(self._row)
        self._logged = trainer.env_steps

    def _save_if_due(self) -> None:
        due = self._saving.passed(self.trainer.env_steps, self.trainer.config.run.checkpoint_interval)
        if (due or self._saver.overdue()) and not self.trainer.done:
            self._save_and_say()

    def _save_and_say(self) -> None:
        if problem := self._save():
            self.monitor.say(problem)

    def _save(self) -> str:
        return self._saver.save(self._desk.lines)

    def _check_updates(self) -> None:
        learner = self.trainer.learner
        if self._checking.passed(learner.updates, CHECK_INTERVAL):
            in_a_row = learner.skipped().in_a_row
            if in_a_row >= SKIPPED_LIMIT:
                raise NotFiniteError(
                    f"{self._save_and_log() or 'state saved'}: {in_a_row:,} updates in a row were skipped;"
                    f" {where_not_finite(learner.evidence()) or 'a sum of finite numbers is infinite'}"
                )
