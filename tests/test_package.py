"""The wheel, installed alone in an environment of its own and used from another directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path
from typing import Any

import pytest

import atari_dqn
from atari_dqn.runs.records import read_rows

pytestmark = pytest.mark.long  # building, and mypy without its cache
CHECKOUT = Path(__file__).parents[1]


def run(words: list[Any], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that does not find the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with `python` and `atari-dqn` of an environment in which the package is not the checkout's."""
    root = tmp_path_factory.mktemp("package")
    shutil.copytree(CHECKOUT / "atari_dqn", root / "source/atari_dqn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(CHECKOUT / name, root / "source")
    venv.create(root / "venv", symlinks=True)
    python = root / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    for words in (
        [*pip, "wheel", "--no-deps", "--wheel-dir", ".", "./source"],
        [*pip, "--python", python, "install", "--no-deps", "--no-index", "--find-links", ".", "atari_dqn"],
    ):
        result = run(words, root)
        assert result.returncode == 0, result.stderr
    (site,) = root.glob("venv/lib/python*/site-packages")
    # The libraries are ours; a .pth in them, such as our editable install's, is not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def test_a_training_from_any_directory_finds_the_modules_in_it(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            import gymnasium as gym
            import atari_dqn
            print("imported from", atari_dqn.__file__)
            gym.register("Mine-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50)
        """)
    )
    flags = "--num-workers 1 --envs-per-worker 2 --replay-capacity 1024 --learning-starts 100 --total-env-steps 400"
    words = [programs / "atari-dqn", "train", "--env-id", "mine:Mine-v0", *flags.split(), "--run-dir", "run"]
    result = run(words, tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"imported from {programs.parent}" in result.stdout
    assert read_rows(tmp_path / "run/metrics.jsonl")[-1]["env_step"] >= 400
    assert run([programs / "atari-dqn", "--version"], tmp_path).stdout == f"atari_dqn {atari_dqn.__version__}\n"


def test_the_examples_agree_with_the_installed_types(programs: Path, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples")
    ours = ["--strict", "--config-file", CHECKOUT / "pyproject.toml"]
    result = run(
        [sys.executable, "-m", "mypy", *ours, "--python-executable", programs / "python", "examples"], tmp_path
    )
    assert result.returncode == 0, result.stdout
