"""`python -m experiments.claims`: run the CartPole and LunarLander experiments with several seeds and compare their
results with the claims of their sources, in a table, a picture and `claims.json`.

Each run is `python -m experiments.NAME`, then an evaluation of 100 games. Runs whose claim is a number of seconds come
first, one at a time; then as many at once as there are cores. Finished runs are not repeated, interrupted ones are
resumed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console
from atari_dqn.config.derived import updates_at
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, flag, help_from_settings
from atari_dqn.runs.directory import is_run_dir, read_config
from atari_dqn.runs.records import read_rows
from atari_dqn.system.machine import cores
from atari_dqn.system.processes import hang_up_after_parent
from atari_dqn.system.signals import StopRequest
from experiments.__main__ import all_experiments
from experiments.claims.measure import CLAIMS, GAMES, finished, measure

LOOK_SECONDS = 5.0
"""Seconds between two readings of the runs' metrics, for the progress."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimsCommand:
    """Run the CartPole and LunarLander experiments with several seeds and compare them with their sources' claims."""

    only: Annotated[tuple[str, ...], Setting("experiments to run; all if omitted")] = ()
    seeds: Annotated[tuple[int, ...], Setting("seeds of the runs of each experiment", "", 0, 2**31 - 1)] = tuple(
        range(1, 6)
    )
    runs: Annotated[Path, Setting("directory of the run directories")] = Path("runs/claims")
    out: Annotated[Path, Setting("directory for the results of all finished runs")] = Path("experiments/results/claims")
    at_once: Annotated[
        int,
        Setting("runs at once, except those with claims of seconds; 0: one per core", "runs", 0, 1024),
    ] = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """One run and the evaluation after it."""

    name: str
    seed: int
    run_dir: Path
    config: TrainConfig

    @property
    def work(self) -> float:
        """Total number of ticks and updates; each costs about the same."""
        total = self.config.run.total_env_steps
        return total / self.config.num_envs + updates_at(self.config.learner, total)

    def check(self, overridden: Sequence[str]) -> None:
        """Raise `ConfigError` if its directory holds a run whose settings differ from the experiment's."""
        if not is_run_dir(self.run_dir):
            return
        stored = read_config(self.run_dir).to_dict()
        for name, value in self.config.to_dict().items():
            if stored[name] != value and name not in ("seed", "run_dir", "torch_threads", *overridden):
                raise ConfigError(
                    f"{self.run_dir} is a run with {flag(name)} {stored[name]}, but experiments.{self.name} now has"
                    f" {value}; remove it, or choose other --runs"
                )

    def share_done(self) -> float:
        rows = read_rows(self.run_dir / "metrics.jsonl")
        return min(1.0, rows[-1]["env_step"] / self.config.run.total_env_steps) if rows else 0.0


def main(
    argv: Sequence[str] | None = None, flags: Sequence[str] = (), prog: str = "python -m experiments.claims"
) -> int:
    """Run every job that is not finished, with these extra `flags`, and write the results.

    Returns:
        The exit code.

    Raises:
        ConfigError: A flag is wrong.
        CommandFailed: A run failed; the others have been finished.
    """
    command = parse_flags(ClaimsCommand, argv, prog=prog)
    for name in command.only:
        if name not in CLAIMS:
            raise ConfigError(f"--only {name}: no experiment with a claim; choose from {', '.join(CLAIMS)}")
    # Seed by seed, so that experiments that are compared run in the same hour.
    modules = all_experiments()
    asked = [(seed, name) for seed in command.seeds for name in command.only or CLAIMS]
    there = [
        (int(seed), name)
        for name in CLAIMS
        for path in command.runs.glob(f"{name}-*")
        if (seed := path.name.removeprefix(f"{name}-")).isdecimal()
    ]
    jobs = {
        (seed, name): Job(name, seed, command.runs / f"{name}-{seed}", modules[name].CONFIG)
        for seed, name in (*asked, *sorted(there))
    }
    for job in jobs.values():
        job.check([word[2:].replace("-", "_") for word in flags])
    for directory in (command.runs, command.out):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {directory}: {error.strerror}") from None
    wanted = [jobs[key] for key in dict.fromkeys(asked)]
    failed = Runs(wanted, command.at_once or cores(), flags).run()
    outcomes = {
        name: [measure(job.run_dir, claim) for job in jobs.values() if job.name == name and finished(job.run_dir)]
        for name, claim in CLAIMS.items()
    }
    if any(outcomes.values()):
        from experiments.claims.report import write

        for file in write(outcomes, command.runs, command.out):
            print(file)
    if failed:
        raise CommandFailed("; ".join(failed))
    return DONE


class Runs:
    """Runs the unfinished jobs in processes of their own: the timed ones one at a time, then several at once."""

    def __init__(self, jobs: Sequence[Job], at_once: int, flags: Sequence[str]) -> None:
        unfinished = [job for job in jobs if not finished(job.run_dir)]
        self._turns = [
            (beside, [job for job in unfinished if CLAIMS[job.name].is_timed == timed])
            for timed, beside in ((True, 1), (False, at_once))
        ]
        self._cost = {job: job.work / min(beside, len(turn), cores()) for beside, turn in self._turns for job in turn}
        """Share of each job in the total duration, in arbitrary units."""
        self._left = set(unfinished)
        self._flags = flags
        self._failed: list[str] = []
        self._alive: dict[Job, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def run(self) -> list[str]:
        """Run all jobs. Returns a line for each that failed. An interrupt makes the running ones save their state."""
        from atari_dqn.cli.output import StatusLine

        began, before = time.monotonic(), {job: job.share_done() for job in self._cost}
        pools = []
        with StatusLine(open_console(), f"{len(self._cost)} runs") as status, StopRequest() as stop:
            try:
                for beside, turn in self._turns:
                    stop.check()
                    pools.append(pool := concurrent.futures.ThreadPoolExecutor(beside))
                    waiting = [pool.submit(self._see_through, job) for job in turn]
                    while not all(future.done() for future in waiting):
                        status.update(self._progress(before, time.monotonic() - began))
                        with stop.breaking():
                            concurrent.futures.wait(waiting, LOOK_SECONDS)
            finally:
                self._stop()
                for pool in pools:
                    pool.shutdown(cancel_futures=True)
        return self._failed

    def _progress(self, before: dict[Job, float], seconds: float) -> str:
        """One line of progress, `seconds` after the start, when the jobs had done these shares (`before`)."""
        from atari_dqn.cli.format import duration

        with self._lock:
            left, alive = list(self._left), set(self._alive)
        shares = {job: job.share_done() if job in alive else before[job] for job in left}
        to_do = sum(self._cost[job] * (1 - share) for job, share in shares.items())
        done = sum(cost * (shares.get(job, 1.0) - before[job]) for job, cost in self._cost.items())
        eta = duration(seconds * to_do / done) if done else "..."
        total = len(self._cost)
        return f"{total - len(left)} of {total} runs finished, {len(self._failed)} failed  ETA {eta}"

    def _see_through(self, job: Job) -> None:
        reason = None
        try:
            reason = self._run_one(job)
        except Exception as error:  # would be lost in a thread
            reason = f"cannot start: {error}"
        with self._lock:
            self._left.discard(job)
            if reason and not self._stopped:
                self._failed.append(f"{job.name} with seed {job.seed} {reason}")

    def _run_one(self, job: Job) -> str | None:
        """Why it failed; None if it did not or was stopped."""
        train = [f"experiments.{job.name}", "--seed", str(job.seed), "--run-dir", str(job.run_dir), *self._flags]
        # Several evaluations at once, with a thread per core each, would be very slow.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        games = ["--epsilon", "0", "--episodes", str(GAMES), "--num-workers", "2"]
        log = job.run_dir.with_suffix(".log")
        for arguments in ([*train, "--torch-threads", "1"], ["atari_dqn.evaluate", str(job.run_dir), *games]):
            with self._lock, log.open("ab") as output:
                if self._stopped:
                    return None
                # In a session of its own: otherwise Ctrl-C reaches it twice, and the second one kills it.
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    stdout=output,
                    stderr=output,
                    env=one_thread,
                    start_new_session=True,
                    preexec_fn=hang_up_after_parent(),
                )
                self._alive[job] = process
            code = process.wait()
            with self._lock:
                del self._alive[job]
            if code:
                return f"ended with exit code {code}: see {log}"
        return None

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._alive.values():
                process.terminate()  # like Ctrl-C, it saves its state


if __name__ == "__main__":
    run_command(main)
