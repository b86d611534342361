"""A session of a sweep: checks before the start, the lock and the end; the same on this machine and on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed, typed
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.derived import derive
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.runs.directory import is_run_dir
from atari_dqn.runs.lock import locked
from atari_dqn.sweeps import local
from atari_dqn.sweeps.members import Member, check, check_known_elsewhere, is_done
from atari_dqn.sweeps.plan import Plan, kept, plan_file
from atari_dqn.sweeps.table import Board
from atari_dqn.system.machine import available_memory, cores
from atari_dqn.system.signals import StopRequest
from atari_dqn.training.summary import exploration_warning


@dataclasses.dataclass(frozen=True)
class Session:
    """A plan and where it is carried out."""

    plan: Plan
    specs: Mapping[str, EnvSpec]
    """The environment of each member by its name"""
    root: Path
    stop: StopRequest
    what: str
    """One line that says what the plan is"""
    resume: str
    """The flags that resume it"""
    flag: str = "sweep"
    """What asked for several runs, for messages"""

    def pending(self) -> list[Member]:
        """Members that are not done."""
        return [member for member in self.plan.members if not is_done(member, self.root)]

    def here(self) -> int:
        """Train on this machine. Returns the exit code.

        Raises `ConfigError` before anything starts, and `CommandFailed` at the end, naming the members that failed.
        """
        self._check()
        pending = [(member, self.specs[member.name]) for member in self.pending()]
        beside = min(local.at_once(pending) if pending else 1, self.plan.at_most or len(self.plan.members))
        how = f"{beside} at a time" if beside > 1 else "one at a time"

        def run(board: Board) -> None:
            local.run(pending, self.root, self.stop, board, self.plan.flags, beside)

        return self._run(run, f"{how} ({cores()} cores, {available_memory() / 1e9:.1f} GB free)")

    def on_ray(self) -> int:
        """Train on the cluster of the plan through Ray Tune. Returns the exit code; raises as `here`."""
        from atari_dqn.sweeps.on_ray import run_on_ray

        self._check()
        assert self.plan.on_ray
        run = lambda board: run_on_ray(self.plan, self.specs, self.root, self.stop, board)  # noqa: E731
        return self._run(run, f"on Ray, --cluster {self.plan.on_ray.cluster}")

    def _check(self) -> None:
        check_known_elsewhere([member.config.env.env_id for member in self.plan.members], self.stop, self.flag)
        check(self.plan.members, self.root)
        self.stop.check()

    def _run(self, run: Callable[[Board], None], how: str) -> int:
        console, members = open_console(), self.plan.members
        keep = kept(self.plan, self.root) if self.flag == "sweep" else contextlib.nullcontext()
        with locked(self.root), keep:
            say(console, f"{self.what}, {how}")
            pending = self.pending()
            if len(pending) < len(members):
                say(console, f"{len(members) - len(pending)} of {len(members)} runs are done already")
            warnings = [
                line
                for member in pending
                for line in exploration_warning(
                    member.config, derive(member.config, self.specs[member.name].frame_bytes)
                )
            ]
            for line in dict.fromkeys(warnings):
                say(console, line)
            self.stop.check()
            board = Board(console, [] if self.plan.ranges else members)
            for name in {member.name for member in members} - {member.name for member in pending}:
                board.lines[name].state = "done"
            with board:
                run(board)
        trials = self.plan.on_ray.trials if self.plan.on_ray else 0
        unstarted = self.stop.asked() and len(board.lines) < trials
        return end(board, self.root, lambda text: say(console, text), self.resume, unstarted)


def end(board: Board, root: Path, tell: Callable[[str], None], resume: str, unstarted: bool = False) -> int:
    """Tell the user how to continue. Returns the exit code. `unstarted` runs of a search are not on the board.

    Raises `CommandFailed` if a member failed and none was stopped.
    """
    lines = board.lines
    if unstarted or any(line.state in ("stopped", "waiting") for line in lines.values()):
        started = any(is_run_dir(root / name) for name in lines)
        # A resume takes its settings from the plan, or from a run that has started.
        how = f"resume with {resume}" if started or plan_file(root).exists() else "run the same command again"
        tell(f"stopped, {'state saved' if started else 'nothing to save'}; {how}")
        return INTERRUPTED
    seeds = all(name.startswith("seed-") for name in lines)
    tell(f"to compare: {typed()} -m atari_dqn.compare {shlex.quote(str(root))}/{'seed-*' if seeds else '*'}")
    if failed := [line.label.removeprefix("seed ") for line in lines.values() if line.state == "failed"]:
        what = "seeds" if seeds else "runs"
        raise CommandFailed(
            f"of {len(lines)} {what} these failed: {', '.join(failed)}; the same command tries them again"
        )
    return DONE


def train_seeds(
    members: Sequence[Member], specs: Mapping[str, EnvSpec], run_dir: Path, stop: StopRequest, flags: Mapping[str, str]
) -> int:
    """Train one configuration with several seeds, in `run_dir`/seed-K each. Returns the exit code.

    `members` are in order of their seeds; `flags` are further flags of `train`. Raises `ConfigError` before anything
    starts, and `CommandFailed` at the end, naming the seeds that failed.
    """
    first, last = members[0].config.run.seed, members[-1].config.run.seed
    if is_run_dir(run_dir):
        raise ConfigError(f"--run-dir {run_dir} is a single run; name an empty or new directory for several seeds")
    of = f"{members[0].config.env.env_id}, seeds {first} to {last}"
    what = f"{of}, each in {run_dir}/seed-K, output in output-K.txt"
    resume = f"--run-dir {shlex.quote(str(run_dir))} --seed {first} --seeds {len(members)}"
    return Session(Plan(list(members), dict(flags)), specs, run_dir, stop, what, resume, flag="--seeds").here()
