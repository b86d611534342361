"""Running the members of a sweep on a Ray cluster: the command's side of driver.py."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atari_dqn.cli.command import BAD_INPUT, CommandFailed
from atari_dqn.cli.format import duration
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.runs.directory import checkpoints_in
from atari_dqn.sweeps.members import Progress, is_done, memory_for
from atari_dqn.sweeps.plan import HIDDEN, Plan
from atari_dqn.sweeps.table import Board, Line
from atari_dqn.system.ray_cluster import check_address
from atari_dqn.system.signals import StopRequest

LOOK_SECONDS = 0.2
"""Seconds to wait for an event between two looks at the request to stop."""
SILENCE_SECONDS = 10.0
"""Seconds without news before the user is told what is waited for; then twice as many, and so on."""
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",
}
"""No result files and no signal handlers of Tune's own; trials stay in their working directory; on a cluster that is
started here runs have the priority of other programs"""


def check_options(plan: Plan) -> None:
    """Raise `ConfigError` where the options of a sweep on Ray do not fit its plan, or there is no cluster."""
    assert plan.on_ray
    games = {member.config.env.env_id for member in plan.members}
    if plan.on_ray.stop_early and len(games) > 1:
        raise ConfigError(f"--stop-early compares scores of one game, and there are {len(games)}; sweep each by itself")
    if plan.on_ray.stop_early and len({member.config.run.seed for member in plan.members}) > 1:
        raise ConfigError("--stop-early would stop seeds of one setting for their luck; sweep with one seed, then more")
    if bool(plan.ranges) != bool(plan.on_ray.search):
        raise ConfigError("--search optuna and the ranges of [search] in --file need each other")
    if plan.on_ray.search and (not plan.on_ray.trials or len(plan.members) > 1):
        raise ConfigError("--search draws settings for one game and seed; give one of each, and the number of --trials")
    if plan.on_ray.trials and not plan.on_ray.search:
        raise ConfigError("--trials is the number of runs of a search; add --search optuna")
    if plan.on_ray.search and not importlib.util.find_spec("optuna"):
        raise ConfigError('--search optuna needs Optuna; install it with: pip install "atari_dqn[cluster]"')
    check_address(plan.on_ray.cluster)


def run_on_ray(plan: Plan, specs: Mapping[str, EnvSpec], root: Path, stop: StopRequest, board: Board) -> None:
    """Run the unfinished members of `plan` on its cluster, showing them on `board`, until all have ended or `stop`.

    Raises `ConfigError` where the cluster cannot be used, and `CommandFailed` if it is lost.
    """
    assert plan.on_ray
    on_gpu = plan.on_ray.gpus_per_run > 0
    log = root / HIDDEN / "ray.log"
    request = {
        "root": os.path.abspath(root),
        "cwd": os.getcwd(),
        "pending": [each.name for each in plan.members if not is_done(each, root)],
        "pixels": [name for name, spec in specs.items() if spec.kind == "pixels"],
        "memory": {each.name: memory_for(each, specs[each.name], on_gpu=on_gpu) for each in plan.members},
    }
    if not request["pending"]:
        return
    # Not `-m`: what Tune keeps in its files names classes by their module.
    words = [sys.executable, "-c", "from atari_dqn.sweeps.driver import main; main()"]
    with log.open("a") as chatter:
        driver = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=chatter,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
    assert driver.stdin
    with contextlib.suppress(BrokenPipeError):  # it ended already: said below
        driver.stdin.write((json.dumps(request) + "\n").encode())
        driver.stdin.flush()
    board.say("starting Ray" if plan.on_ray.cluster == "local" else "connecting to the cluster")
    ended = asked = False
    heard, silence = time.monotonic(), SILENCE_SECONDS
    try:
        for event in _events(driver):
            if stop.asked() and not asked:
                asked = True
                if all(line.state in ("waiting", "done") for line in board.lines.values()):
                    ended = True  # nothing to save, and Ray may take a minute to connect
                    driver.kill()
                    break
                board.say("stopping as soon as every run has saved its state")
                driver.stdin.close()
            if event:
                heard, silence = time.monotonic(), SILENCE_SECONDS
                ended |= "end" in event
                _show(event, plan, board)
            elif time.monotonic() > heard + silence:
                board.say(f"waiting for the cluster: no news for {duration(silence)}")
                silence *= 2
            board.show()
    finally:
        driver.stdin.close()  # it stops, too, if this process is killed
    code = driver.wait()
    if not ended:
        raise CommandFailed(
            f"the cluster's head was lost, or Ray failed (exit code {code}, see {log}); runs that can save their state;"
            " the same command resumes them"
        )
    for line in board.lines.values():
        line.state = "stopped" if line.state in ("running", "saving") else line.state
    believe_checkpoints(board, root)


def believe_checkpoints(board: Board, root: Path) -> None:
    """Count as failed what is done by a node's report and has no checkpoint in `root`."""
    for name, line in board.lines.items():
        if line.state == "done" and not checkpoints_in(root / name):
            line.state = "failed"
            board.say(f"{line.label} failed: nothing of it is in {root / name}")


def _events(driver: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Events of the driver until it ends; an empty one whenever there is none for a moment."""
    assert driver.stdout
    rest = b""
    while True:
        if not select.select([driver.stdout], [], [], LOOK_SECONDS)[0]:
            yield {}
            continue
        read = os.read(driver.stdout.fileno(), 65_536)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _show(event: dict[str, Any], plan: Plan, board: Board) -> None:
    """Show an event. Raises `ConfigError` or `CommandFailed` if it is an error."""
    if "error" in event:
        raise (ConfigError if event["code"] == BAD_INPUT else CommandFailed)(event["error"])
    if "info" in event:
        board.say(event["info"])
    if "name" not in event:
        return
    name = event["name"]
    if name not in board.lines:  # a run of a search
        board.lines[name] = Line(name.replace("/seed-", " seed "), plan.members[0].config.run.total_env_steps)
    line = board.lines[name]
    if event.get("final") and line.state != "waiting":
        return
    line.state = event["state"]
    if "env_step" in event:
        score = None if math.isnan(event["score"]) else event["score"]
        line.progress = Progress(event["env_step"], score, event["steps_per_second"])
        line.where = event["where"]
    if "say" in event:
        board.say(f"{line.label} {event['say']}")
