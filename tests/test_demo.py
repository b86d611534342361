"""The demo: it learns what it says it learns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atari_dqn.demo import CARTPOLE
from tests.test_train import run


@pytest.mark.long
def test_the_demo_learns_to_play_games_of_500_steps(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "atari_dqn.train", *CARTPOLE.split(), "--torch-threads", "1", "--no-show-result"]
    result = run(command, tmp_path, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "done: a mean score of 475 or more reached" in result.stdout
