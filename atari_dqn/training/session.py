"""A run of a trainer. Flow in: a trainer, made or resumed, and live edits asked for. Flow out: a run directory's rows,
evaluations and checkpoints.

All of it happens between two iterations, where all is quiet, and none of it changes a number of the training.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from atari_dqn.agent.finite import NotFiniteError, where_not_finite, write_dump
from atari_dqn.cli.format import duration
from atari_dqn.config.live import Edit, Request
from atari_dqn.evaluation.evaluation import Progress, evaluate
from atari_dqn.evaluation.references import human_normalized
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.render.clips import LAST_DEADLINE, Clip, Recorder
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.edits import RECORD, EditDesk, forget_edits
from atari_dqn.system.machine import is_out_of_memory
from atari_dqn.training.trainer import Trainer, seeds_of
from atari_dqn.workers.pool import WorkerError

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on the disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "see to the permissions"),
}
"""What to do where a save fails, so that it goes with "of" a directory."""
EVALUATION_ENVS = 8
"""An evaluation plays in as many envs as the training, and in these at least: one alone takes twice the time."""
SKIPPED_LIMIT = 100
"""Updates in a row that may be skipped, for their numbers were not finite, before a run gives up."""
LOOK_INTERVAL = SKIPPED_LIMIT // 4
"""Updates between two looks at how many those are; each look waits for the device."""


class Stopped(Exception):
    """The user asked to stop while something that can be given up (a start, an evaluation, a hanging worker's step) was
    under way."""


class NotSaved(Exception):
    """The state at the end of a run could not be saved; the message, one line, says what is left and what to do."""


class Training:
    """One run of `trainer` in `run_dir`.

    `repeated` are another run's live edits, taken at the same env steps again. Making one cuts the run's own record
    of edits back to the checkpoint that the trainer resumed from; raises `OSError` when that fails.
    """

    def __init__(
        self,
        trainer: Trainer,
        run_dir: Path,
        monitor: Monitor,
        should_stop: Callable[[], bool],
        repeated: Sequence[Edit] = (),
    ) -> None:
        self.trainer, self.run_dir, self.monitor, self.should_stop = trainer, run_dir, monitor, should_stop
        self._store = CheckpointStore(run_dir, trainer.config.run.keep_checkpoints)
        self._failed_saves = 0
        """in a row"""
        self._saved: tuple[int, ...] = ()
        """which state was saved last"""
        for edit in forget_edits(run_dir, trainer.edit_lines):
            monitor.say(f"forgotten, for it came after the checkpoint: {edit}")
        self._desk = EditDesk(run_dir, repeated, trainer.env_steps, trainer.learner.updates)
        self._began = self._tried = time.monotonic()
        self._replaced = 0
        """workers"""
        self._skipped = trainer.learner.skipped().in_all
        """updates that the user knows of"""
        film_seed = seeds_of(trainer.config.run.seed)["evaluation"]
        self._recorder = Recorder(run_dir, trainer.config, trainer.spec, film_seed)

    def run(self) -> bool:
        """Train until the trainer is done, or `should_stop`. Saves at the end either way. True: it is done.

        A save that fails before the end is an alarm, and training goes on. Raises `NotSaved` when the last one fails,
        and `NotFiniteError` after `SKIPPED_LIMIT` skipped updates in a row, with the state saved if it is sound, or
        where there is NaN or infinity in what was to be saved; both leave a dump.
        """
        trainer, learner, monitor, desk = self.trainer, self.trainer.learner, self.monitor, self._desk
        run = trainer.config.run
        began = trainer.env_steps
        logged = began
        if self.should_stop():
            return False
        try:
            trainer.start(self._wait, self._watch_start)
            self._edit(trainer.overruled)
            stuck = False
            while not trainer.done and not stuck and not self.should_stop():
                before, updates = trainer.env_steps, learner.updates
                trainer.iterate()
                now = trainer.env_steps
                monitor.tick(now)
                self._tell_failures()
                if trainer.ended:
                    monitor.keep_episodes(now, trainer.clock.elapsed(), trainer.ended)
                    trainer.ended.clear()
                # Before the logs, evaluations and checkpoints of the same env step.
                self._edit([*desk.asked(now, learner.updates), *monitor.asked()])
                run = trainer.config.run
                row: dict[str, float] = {}
                if _crossed(before, now, run.eval_interval):
                    row |= self._evaluate()
                if _crossed(before, now, run.record_interval):
                    self._record()
                self._show_clip()
                if row or _crossed(before, now, run.log_interval):
                    monitor.write(self._row() | row)
                    logged = now
                if (_crossed(before, now, run.checkpoint_interval) or self._overdue()) and not trainer.done:
                    self._save()
                if _crossed(updates, learner.updates, LOOK_INTERVAL):
                    stuck = learner.skipped().in_a_row >= SKIPPED_LIMIT
            problem = self._save(last=True)
            if trainer.env_steps > logged:
                monitor.write(self._row())  # after the save: the means go on in a run that is continued
            self._await_clip()
            if stuck:
                raise NotFiniteError(
                    f"{problem or 'state saved'}: {learner.skipped().in_a_row:,} updates in a row had to be skipped;"
                    f" {where_not_finite(learner.evidence()) or 'a sum of finite numbers is infinite'}"
                )
            if problem:
                raise NotSaved(problem)
            return trainer.done
        except FloatingPointError as error:
            file = self.run_dir / "dumps" / f"{learner.updates}.pt"
            dump = write_dump(file, learner.evidence(), trainer.config.to_dict())
            raise NotFiniteError(f"stopped at env step {trainer.env_steps:,}, {error}; {dump}") from None
        except Stopped:
            # A worker is silent, perhaps for good: the step under way is given up.
            problem = self._save(last=True) if trainer.env_steps > began else ""
            if problem:
                raise NotSaved(problem) from None
            return False
        except Exception as error:
            if not isinstance(error, WorkerError) and not is_out_of_memory(error):
                raise
            if trainer.env_steps > began:
                self._save()  # the step under way is lost; what was learned is not
            raise
        finally:
            self._recorder.close()
            trainer.close()

    def _wait(self, note: str) -> None:
        """Called in the course of what takes long, to say so and to be able to give it up."""
        self.monitor.tick(self.trainer.env_steps, note)
        if self.should_stop():
            raise Stopped

    def _watch_start(self, done: int, of: int) -> None:
        eta = duration((time.monotonic() - self._began) * (of - done) / done)
        self._wait(f"bringing the games back: {done:,} of {of:,} ticks, {eta} left")

    def _tell_failures(self) -> None:
        """Say which workers had to be replaced, and why."""
        workers = self.trainer.workers
        assert workers is not None
        for failure in workers.failures:
            self._replaced += 1
            self.monitor.say(
                f"env step {self.trainer.env_steps:,}: {failure.rstrip()}\n"
                "The worker was replaced; its unfinished episodes are cut, and the training goes on."
            )
        workers.failures.clear()

    def _overdue(self) -> bool:
        """It is long since a checkpoint was saved, or tried to be."""
        minutes = self.trainer.config.run.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._tried > 60 * minutes

    def _save(self, last: bool = False) -> str:
        """Save, and say how long it took; or sound the alarm. Returns the problem, one line, if there is one; of the
        `last` save it is not said here, for the run ends with it.
        """
        trainer, monitor = self.trainer, self.monitor
        state = trainer.replay.newest, trainer.learner.updates, self._desk.lines
        self._tried = began = time.monotonic()
        if state == self._saved:
            return ""
        monitor.tick(trainer.env_steps, "saving")
        try:
            path = trainer.save(self._store, self._desk.lines)
            size = sum(file.stat().st_size for file in path.iterdir())
        except OSError as error:
            self._failed_saves += 1
            left = None
            with contextlib.suppress(OSError):
                left, _ = self._store.newest_whole()
            problem = (
                f"NOT SAVED at env step {trainer.env_steps:,}: {error.strerror or error};"
                f" {f'the last whole checkpoint is {left}' if left else 'there is no whole checkpoint'};"
                f" {ADVICE.get(error.errno or 0, 'see to the disk')} of {self._store.directory}"
            )
            monitor.alarm(f"NOT SAVED since env step {left.name if left else 0}")
            if not last:
                monitor.say(problem)
            return problem
        self._saved, self._failed_saves = state, 0
        monitor.alarm("")
        monitor.say(f"env step {trainer.env_steps:,} saved: {size / 1e6:,.1f} MB in {time.monotonic() - began:.2f} s")
        return ""

    def _edit(self, requests: Sequence[Request]) -> None:
        trainer, monitor = self.trainer, self.monitor
        for request in requests:
            edit = trainer.edit(request)
            try:
                self._desk.record(edit)
            except OSError as error:
                # What is not remembered could never be repeated.
                if edit.taken:
                    trainer.edit(Request(edit.name, edit.old, edit.source))
                monitor.say(f"{edit.name} stays as it was: {RECORD} cannot be written: {error.strerror}")
                continue
            monitor.say(f"env step {trainer.env_steps:,}: {edit}")
        if requests:
            monitor.show(trainer.live.values)  # after a refusal too: the page believes what was typed

    def _row(self) -> dict[str, float]:
        trainer, learner = self.trainer, self.trainer.learner
        scores = trainer.episodes.metrics()
        learning = learner.pop_metrics()
        if learner.updates:
            learning["learner/skipped_updates"] = skipped = learner.skipped().in_all
            if skipped > self._skipped:
                self.monitor.say(
                    f"env step {trainer.env_steps:,}: updates skipped for a loss or gradient that is not finite:"
                    f" {skipped - self._skipped:,} more, {skipped:,} in all"
                )
            self._skipped = skipped
        return {
            "env_step": trainer.env_steps,
            "update": learner.updates,
            "time": round(trainer.clock.elapsed(), 3),
            **scores,
            **self._human("charts", scores.get("charts/episodic_return")),
            "charts/SPS": round(trainer.clock.steps_per_second(trainer.env_steps), 1),
            "charts/learning_rate": float(str(np.float32(learner.learning_rate.item()))),
            "charts/epsilon": trainer.current_epsilon(),
            "charts/beta": trainer.beta(trainer.env_steps),
            "charts/replay_ratio": trainer.config.learner.replay_ratio,
            "charts/target_update_interval": float(trainer.config.learner.target_update_interval),
            "charts/max_grad_norm": trainer.config.learner.max_grad_norm,
            "charts/workers_replaced": float(self._replaced),
            "charts/replay_fill": trainer.replay.fill / (trainer.derived.rows * trainer.derived.num_envs),
            "charts/failed_saves": float(self._failed_saves),
            **learning,
        }

    def _evaluate(self) -> dict[str, float]:
        trainer, config = self.trainer, self.trainer.config

        def watch(progress: Progress) -> None:
            self._wait(f"evaluating: {progress.games} of {progress.episodes} games")

        try:
            result = evaluate(
                trainer.learner.online,
                trainer.spec,
                trainer.protocol,
                episodes=config.run.eval_episodes,
                num_envs=max(config.num_envs, EVALUATION_ENVS),
                num_workers=config.env.num_workers,
                epsilon=config.run.eval_epsilon,
                seed=seeds_of(config.run.seed)["evaluation"],
                device=trainer.device,
                # A worker may have more envs to step than in training, where those are few.
                deadline=config.env.worker_deadline * math.ceil(EVALUATION_ENVS / config.num_envs),
                on_progress=watch,
                on_wait=self._wait,
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
            **self._human("eval", result.mean),
        }

    def _human(self, group: str, score: float | None) -> dict[str, float]:
        """The score, where there is one, human-normalised, where references are known."""
        human = None if score is None else human_normalized(self.trainer.spec.env_id, score)
        return {} if human is None else {f"{group}/human_normalized": human}

    def _record(self) -> None:
        """Let a clip be made, while the training goes on."""
        env_step = self.trainer.env_steps
        if reason := self._recorder.begin(env_step, self.trainer.learner.online):
            self.monitor.say(f"no clip at env step {env_step:,}: {reason}")

    def _show_clip(self, seconds: float = 0.0) -> None:
        """Say and keep what has become of the clip that is being made, if by now, or within `seconds`, it is known."""
        env_step, made = self._recorder.env_step, self._recorder.poll(seconds)
        if isinstance(made, Clip):
            self.monitor.keep_clip(made)
            self.monitor.say(f"clip at env step {made.env_step:,}: {made}")
        elif made is not None:
            self.monitor.say(f"no clip at env step {env_step:,}: {made}")

    def _await_clip(self) -> None:
        """At the end of a run; a stop gives it up."""
        self._recorder.hurry()
        while self._recorder.env_step is not None and not self.should_stop():
            self.monitor.tick(self.trainer.env_steps, f"finishing the clip, for {LAST_DEADLINE:g} s at most")
            self._show_clip(seconds=0.25)


def _crossed(before: int, after: int, interval: int) -> bool:
    """True when a multiple of `interval` lies in (before, after]; never for interval 0."""
    return bool(interval) and after // interval > before // interval
