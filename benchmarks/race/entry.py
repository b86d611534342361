"""One entry of the race: a contestant on a game with a seed, trained up to a budget of CPU seconds.

Its directory holds the trainer's run directory (`run/`), the ledger of CPU seconds, the evaluated points, and the
output of the commands. Everything is driven by the trainer's command line, so an entry survives any kill: the same
call resumes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from atari_dqn.system.files import exclusive
from benchmarks.environments import DIRECTORY, InstallError, interpreter
from benchmarks.race.budget import HOUR, Ledger, append_line, family_seconds, read_lines
from benchmarks.race.contestants import CONTESTANTS, HARNESS, flags

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = DIRECTORY / "peers"
"""Where the environments of other people's trainers are; `benchmarks.peers` uses the same ones"""
MARKS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Core-hours at which a run is stopped and evaluated; after the last of them every whole core-hour."""
POLL_SECONDS = 1.0
EPISODES = 30
INTERRUPTED = (3, -signal.SIGTERM, -signal.SIGHUP)
"""Exit codes of a trainer that was stopped: with its state saved, or before there was any."""

Say = Callable[[str], None]


class EntryFailed(Exception):
    """A command of the entry failed; the message ends with the last lines of its output."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is trained; `name` is its directory's name."""

    contestant: str
    game: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.contestant}-{self.game}-{self.seed}"


def marks(budget: float) -> list[float]:
    """Core-hours at which a run with `budget` core-hours is evaluated, the budget itself last."""
    whole = (float(hour) for hour in range(2, int(budget) + 1))
    return [*(mark for mark in (*MARKS, *whole) if mark < budget), budget]


class Racer:
    """Trains and evaluates one entry in `directory`."""

    def __init__(self, entry: Entry, directory: Path, say: Say, episodes: int = EPISODES) -> None:
        self.entry, self.directory, self.run_dir = entry, directory / entry.name, directory / entry.name / "run"
        self._say, self._episodes = say, episodes
        self.directory.mkdir(parents=True, exist_ok=True)
        about = {**dataclasses.asdict(entry), "processor": _processor(), "cores": len(os.sched_getaffinity(0))}
        (self.directory / "entry.json").write_text(json.dumps(about) + "\n")
        self._points = self.directory / "points.jsonl"
        self._log = self.directory / "output.log"

    def race(self, budget: float) -> None:
        """Train to `budget` core-hours and evaluate at every mark on the way. Raises `EntryFailed`."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.directory / "lock", 0.0))
            except BlockingIOError:
                raise EntryFailed(f"{self.entry.name}: another race is at it") from None
            _wait_for_leftover(self.directory / "pid", self._say)
            self._ledger = Ledger(self.directory / "ledger.jsonl")
            self._race(budget)

    def _race(self, budget: float) -> None:
        for mark in marks(budget):
            points = read_lines(self._points)
            if any(point["mark"] >= mark or point["done"] for point in points):
                continue
            done = self._train(mark)
            self._evaluate(mark, done)
            if done:
                self._say(f"{self.entry.name}: trained to its end before the budget was spent")

    def _train(self, mark: float) -> bool:
        """Train until `mark` core-hours are spent in all. Returns True when the training has come to its own end."""
        if self._ledger.cpu >= mark * HOUR:
            return False
        try:
            command = self._training()
        except InstallError as error:
            raise EntryFailed(f"{self.entry.name}: {error}") from None
        ended_before = _children_seconds()
        self._ledger.open()
        began = self._ledger.cpu
        asked = False
        with self._command(*command) as process:
            while process.poll() is None:
                self._ledger.charge(family_seconds(process.pid))
                if self._ledger.cpu >= mark * HOUR and not asked:
                    process.send_signal(signal.SIGTERM)
                    asked = True
                rate = (self._ledger.cpu - began) / max(1.0, self._ledger.session_wall)
                self._say(self._progress(mark, rate))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        self._ledger.charge(_children_seconds() - ended_before, last=True)
        if process.returncode not in (0, *INTERRUPTED):
            raise self._failure("train", process.returncode)
        if process.returncode and not asked:
            raise self._failure("train was stopped by a signal; train", process.returncode)
        return process.returncode == 0

    def _training(self) -> list[str]:
        """The command that trains, or resumes."""
        contestant, entry = CONTESTANTS[self.entry.contestant], self.entry
        if contestant.peer:
            requirements = ROOT / "benchmarks" / "peers" / "requirements" / f"{contestant.peer}.txt"
            python = str(interpreter(requirements, ENVIRONMENTS, self._say))
            module = f"benchmarks.race.peers.{contestant.peer}"
            return [python, "-m", module, str(self.run_dir), entry.game, str(entry.seed)]
        settings = {**contestant.settings, **HARNESS}
        settings |= {"env_id": entry.game, "seed": entry.seed, "run_dir": self.run_dir}
        if len(os.sched_getaffinity(0)) == 1:
            settings["torch_threads"] = 1
        return [sys.executable, "-m", "atari_dqn.train", "--no-show-result", *flags(settings)]

    def _evaluate(self, mark: float, done: bool) -> None:
        """Play games with the newest checkpoint, and add the point. Not charged to the entry."""
        self._say(f"{self.entry.name}: evaluating after {self._ledger.cpu / HOUR:.3f} core-hours")
        rules = ["--protocol", "nature", "--epsilon", "0.01", "--episodes", str(self._episodes)]
        evaluated, command = self.run_dir, ["atari_dqn.evaluate", str(self.run_dir)]
        if CONTESTANTS[self.entry.contestant].peer:
            evaluated = self.run_dir / "as_ours"
            command = ["benchmarks.race.peers.evaluate", str(self.run_dir), self.entry.game]
        with self._command(sys.executable, "-m", *command, *rules) as process:
            while process.poll() is None:
                self._say(f"{self.entry.name}: evaluating, {self._episodes} games")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        if process.returncode:
            raise self._failure("evaluate", process.returncode)
        result = read_lines(evaluated / "evaluations.jsonl")[-1]
        rows = read_lines(self.run_dir / "metrics.jsonl")
        row = max((row for row in rows if row["env_step"] <= result["env_step"]), key=lambda row: row["env_step"])
        point = {
            "mark": mark,
            "cpu": round(self._ledger.cpu, 1),
            "wall": round(self._ledger.wall, 1),
            "done": done,
            "env_step": result["env_step"],
            "update": row["update"],
            **{name: result[name] for name in ("protocol", "epsilon", "episodes", "mean", "ci95", "median")},
        }
        append_line(self._points, point)
        low, high = point["ci95"]
        self._say(
            f"{self.entry.name}: {point['cpu'] / HOUR:.3f} core-hours, {point['env_step']:,} env steps,"
            f" {point['update']:,} updates: {point['mean']:.1f} ({low:.1f} to {high:.1f})"
        )

    def _progress(self, mark: float, rate: float) -> str:
        left = max(0.0, mark * HOUR - self._ledger.cpu) / rate if rate > 0 else 0.0
        rows = _last_row(self.run_dir / "metrics.jsonl")
        steps = f", {rows['env_step']:,} env steps" if rows else ""
        score = rows.get("charts/episodic_return") if rows else None
        scored = f", training score {score:.1f}" if score is not None else ""
        when = f"; {left / 60:.0f} min to the next evaluation" if rate > 0 else ""
        return f"{self.entry.name}: {self._ledger.cpu / HOUR:.3f} of {mark:g} core-hours{steps}{scored}{when}"

    @contextlib.contextmanager
    def _command(self, *arguments: str) -> Any:
        """Run a command; leaving the context ends it, and so does the end of this process."""
        with self._log.open("a") as log:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
                start_new_session=True,  # Ctrl-C is for the race, which then stops it
                preexec_fn=_hang_up_with_parent(),
            )
        (self.directory / "pid").write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}")
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()

    def _failure(self, what: str, code: int | None) -> EntryFailed:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return EntryFailed("\n".join([f"{self.entry.name}: {what} ended with exit code {code}", *lines[-4:]]))


def _hang_up_with_parent() -> Callable[[], None]:
    """A `preexec_fn` after which the kernel sends SIGHUP when the parent dies, however that happens (Linux)."""
    prctl = ctypes.CDLL(None).prctl
    pdeathsig = 1

    def before_exec() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored under nohup, and the trainer would ignore it too
        prctl(pdeathsig, signal.SIGHUP)

    return before_exec


def _processor() -> str:
    """Name of the processor, with the family that tells two of one name apart."""
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    return f"{facts.get('model name', 'unknown')} (family {facts.get('cpu family')}, model {facts.get('model')})"


def _children_seconds() -> float:
    """CPU seconds of all processes that this one started, waited for, and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _last_row(file: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines, without reading all of it."""
    try:
        with file.open("rb") as rows:
            rows.seek(max(0, file.stat().st_size - 4096))
            lines = rows.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def _wait_for_leftover(file: Path, say: Say) -> None:
    """Wait until the process that a killed race left behind has saved its state and exited."""
    if not file.exists() or not re.fullmatch(r"\d+ [\d.]+", file.read_text()):
        return
    pid, created = file.read_text().split()
    while psutil.pid_exists(int(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if abs(psutil.Process(int(pid)).create_time() - float(created)) > 1:
                return  # another process has its number by now
        say(f"waiting for process {pid} of a former race to save its state")
        time.sleep(POLL_SECONDS)
