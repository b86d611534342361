"""A trial of Ray Tune: one member, trained as a subprocess on the node where the trial's actor lives."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from atari_dqn.cli.command import DONE
from atari_dqn.config.file import from_dict
from atari_dqn.envs.versions import LEARNING, difference, versions
from atari_dqn.runs.lock import is_training
from atari_dqn.sweeps.members import STOPPED, Member, command, last_line, progress, start
from atari_dqn.sweeps.plan import HIDDEN

LOOK_SECONDS = 2.0
"""Seconds from one report to the next: Tune can stop a trial only between two."""
POLL_SECONDS = 0.1
"""Seconds between two looks at the process."""
FORMER_SECONDS = 300.0
"""Seconds that a former process of the same run has to save its state, after its node or its actor was lost."""

TOKEN = "shared"
"""File in the sweep's folder whose content shows a node that it sees this folder"""
NOTHING: dict[str, Any] = {}


class Subprocess:
    """The process of one member, started as soon as no former one trains in its directory."""

    def __init__(self, member: Member, root: Path, words: list[str], cwd: Path | None) -> None:
        self._member, self._root, self._words, self._cwd = member, root, words, cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = time.monotonic() + FORMER_SECONDS
        self._stopping = False

    def look(self, stopping: bool, seconds: float = LOOK_SECONDS) -> tuple[str, bool]:
        """The state of the run, after at most `seconds`, and whether it is done. Asks it to stop if `stopping`.

        Raises `RuntimeError` if the process failed, or a former one does not end.
        """
        if self._process is None and not stopping:
            if not self._free(seconds):
                return "waiting", False
            self._process = start(self._words, self._member.log(self._root), self._cwd)
        if self._process is None:
            time.sleep(seconds)
            return "stopped", False
        if stopping:
            self._ask_to_stop()
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "saving" if stopping else "running", False
        if code == DONE:
            return "done", True
        if code in STOPPED and stopping:
            time.sleep(POLL_SECONDS)
            return "stopped", False
        log = self._member.log(self._root)
        raise RuntimeError(f"exit code {code}: {last_line(log)} (see {log})")

    def _free(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while is_training(self._member.run_dir(self._root)):
            if time.monotonic() > self._deadline:
                raise RuntimeError(f"another process still trains in {self._member.run_dir(self._root)}")
            if time.monotonic() > until:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def stop(self) -> None:
        """Ask the process to stop, and wait until its state is saved."""
        if self._process is not None:
            self._ask_to_stop()
            self._process.wait()

    def _ask_to_stop(self) -> None:
        if self._process is not None and not self._stopping:  # a second signal would end it at once
            self._stopping = True
            self._process.terminate()


class Trial(tune.Trainable):  # type: ignore[misc, unused-ignore]
    """Reports env steps and score of its member, and stops it when Tune, or the sweep, says so."""

    def setup(self, config: dict[str, Any], request: dict[str, Any] = NOTHING, stop: Any = None) -> None:
        """Prepare the command of the member that `config` names, with the settings that a search has drawn.

        Raises `RuntimeError` on a node that joined late and could not have been taken at the start.
        """
        if fault := node_fault(request["shared"]):
            raise RuntimeError(f"node {platform.node()} {fault}")
        if not request["gpu"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from what has reserved none
        self._root = Path(request["shared"]["root"])
        drawn = {name: value for name, value in config.items() if name != "run"}
        settings = request["members"][config["run"]] | drawn
        name = trial_name(config["run"], self.trial_id) if request["search"] else config["run"]
        member = Member(name, from_dict(settings).validate())
        cwd = Path(request["cwd"]) if Path(request["cwd"]).is_dir() else None
        words = command(member, self._root, request["flags"], request["threads"][config["run"]])
        self._stop, self._member = stop, member
        self._process = Subprocess(member, self._root, words, cwd)

    def step(self) -> dict[str, Any]:
        """One report. Raises `RuntimeError` if the member failed."""
        state, done = self._process.look(ray.get(self._stop.is_asked.remote()))
        found = progress(self._member.run_dir(self._root))
        return {
            "done": done,
            "state": state,
            "name": self._member.name,
            "env_step": found.env_step,
            "score": float("nan") if found.score is None else found.score,
            "steps_per_second": found.steps_per_second,
            "where": platform.node(),
        }

    def cleanup(self) -> None:
        """Stop the member; its state is saved."""
        self._process.stop()


def trial_name(run: str, trial_id: str) -> str:
    """Name of a run of a search: `Breakout/seed-1` -> `Breakout-trial-1a2b3c/seed-1`."""
    group, _, seed = run.rpartition("/")
    return f"{group}-trial-{trial_id}/{seed}"


def node_fault(shared: dict[str, Any]) -> str:
    """What keeps the node of this process from taking a run, as the end of a sentence, or nothing.

    `shared` is what `driver.share` made.
    """
    token = Path(shared["root"]) / HIDDEN / TOKEN
    if not token.exists() or token.read_text() != shared["token"]:
        return f"sees another folder as --sweep-dir {shared['root']}; choose one that all nodes share"
    if other := difference(versions(shared["games"], LEARNING), shared["versions"]):
        return f"has {other}; install the same on all nodes"
    return ""
