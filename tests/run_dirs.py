"""Run directories made by hand, for the tests of the commands that read them, and a Python to run these in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from atari_dqn.agent.network import make_network
from atari_dqn.comparison.runs import GAMES, SCORE
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore


def make_run(run_dir: Path, env_id: str, env_step: int = 5000, **settings: Any) -> Path:
    """A run directory with one checkpoint of an untrained network."""
    config = make_settings(run_dir, env_id, **settings)
    spec = spec_of(config.env)
    learner = {"online": make_network(spec, config.network).state_dict()}
    CheckpointStore(run_dir).save(env_step, Snapshot({}, learner, {}, torch.zeros(1, 1)), score=None)
    return run_dir


def make_settings(run_dir: Path, env_id: str, **settings: Any) -> TrainConfig:
    """A run directory with nothing but settings."""
    config = TrainConfig().replace(env_id=env_id, **settings)
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(config.to_dict()))
    return config


def log(
    run_dir: Path, scores: dict[int, float], evaluations: dict[int, tuple[float, float, float]] | None = None
) -> None:
    """Scores of training by env step, with a game for each 5 steps and a second for each 100; and evaluations, (low,
    mean, high) by env step.
    """
    rows: list[dict[str, Any]] = [{"env_step": 0, "update": 0}]
    rows += [{"env_step": s, SCORE: score, GAMES: s // 5, "time": s / 100} for s, score in scores.items()]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = [
        {"env_step": step, "protocol": "nature", "epsilon": 0.01, "mean": mean, "ci95": [low, high]}
        for step, (low, mean, high) in (evaluations or {}).items()
    ]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False)


def refusals(mistakes: list[list[str]], without: set[str]) -> list[str]:
    """The one line that each mistaken command is refused with, in a process of their own; then which of the modules
    `without` they have loaded, as a list.
    """
    program = (
        "import sys\n"
        "from atari_dqn.__main__ import run\n"
        "from atari_dqn.config.setting import ConfigError\n"
        f"for argv in {mistakes!r}:\n"
        "    try:\n"
        "        run(argv)\n"
        "    except ConfigError as error:\n"
        "        assert '\\n' not in str(error)\n"
        "        print(error)\n"
        f"print(sorted({without!r} & set(sys.modules)))\n"
    )
    result = python("-c", program)
    assert result.stderr == ""
    return result.stdout.splitlines()
