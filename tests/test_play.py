"""`atari-dqn play` on run directories made by hand."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from atari_dqn import play
from atari_dqn.cli.command import FAILED, INTERRUPTED, CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS, protocol_for
from atari_dqn.evaluation.player import play as play_game
from atari_dqn.policy.trained import load_policy
from tests.run_dirs import make_run, python
from tests.stubs import OnlyOne


def frames_of(file: Path) -> int:
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_play_films_a_whole_game_of_breakout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5")
    assert play.main([str(run_dir), "--epsilon", "1", "--seed", "3"]) == 0
    (file,) = (run_dir / "videos").iterdir()
    assert file.name == "5000-nature-seed3.mp4"
    ending, film = capsys.readouterr().out.splitlines()[-2:]
    assert "(human-normalised " in ending
    env_steps = int(ending.split()[-3].replace(",", ""))
    # One picture of the reset, up to 29 of no-ops, 4 a step, and fewer in the last one.
    assert 4 * env_steps - 2 <= frames_of(file) <= 4 * env_steps + 30
    assert film.startswith(f"{file}: {frames_of(file) / 60:.1f} s")


def test_a_film_is_the_game_of_its_network_epsilon_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    trained = load_policy(run_dir)
    env = FilmedEnv(trained.spec, PROTOCOLS["nature"], None)
    ends = {
        (epsilon, seed): [*play_game(trained.network, env, epsilon, seed)][-1]
        for epsilon, seed in ((0.6, 5), (0.6, 0), (0.01, 5))
    }
    assert len(set(ends.values())) == 3
    score, env_steps = ends[0.6, 5]
    assert play.main([str(run_dir), "--epsilon", "0.6", "--seed", "5"]) == 0
    assert f"game over: score {score:g} after {env_steps:,} env steps" in capsys.readouterr().out
    assert frames_of(run_dir / "videos" / "5000-seed5.mp4") == env_steps + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_film_that_is_interrupted_is_kept(number: signal.Signals, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Pong-v5")
    command = [sys.executable, "-m", "atari_dqn.play", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as films:
        partial = run_dir / "videos" / ".5000-nature-seed0.mp4.partial"
        deadline = time.monotonic() + 300
        while not (partial.exists() and partial.stat().st_size > 10_000):  # more than how a film begins
            assert films.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        films.send_signal(number)
        said, _ = films.communicate(timeout=300)
    assert films.returncode == INTERRUPTED
    assert said.splitlines()[-2].startswith("interrupted: score ")
    (file,) = (run_dir / "videos").iterdir()
    assert file.name == "5000-nature-seed0.mp4"
    assert frames_of(file) > 8


def test_play_uses_one_thread(tmp_path: Path) -> None:
    """Two threads halved the pace on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        play.main([str(make_run(tmp_path / "run", "CartPole-v1"))])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_network_sees_stacked_frames_oldest_first_and_the_score_is_raw() -> None:
    seen: list[torch.Tensor] = []

    class Fires(torch.nn.Linear):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            seen.append(observations.clone())
            return torch.eye(4)[[1]]

    spec = env_spec("ALE/Breakout-v5", PROTOCOLS["nature"], 4)
    env = FilmedEnv(spec, protocol_for("machado", "nature"), lambda picture: None)
    steps = list(play_game(Fires(1, 1), env, epsilon=0.0, seed=0))
    env.close()
    assert [env_step for _, env_step in steps] == list(range(1, len(steps) + 1))
    assert [score for score, _ in steps] == sorted(score for score, _ in steps)
    assert len(seen) == len(steps)
    first, *_ = seen
    assert (first == first[:, :1]).all(), "a game's first frame is repeated"
    for before, after in itertools.pairwise(seen):
        assert torch.equal(after[:, :3], before[:, 1:])


def test_a_game_without_end_is_cut_and_an_env_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atari_dqn.envs.film.GAME_LIMIT", 4)
    monkeypatch.setattr("atari_dqn.evaluation.player.NOTE_AFTER", 3)
    monkeypatch.setattr("atari_dqn.cli.output.FIRST_LINE_SECONDS", 0)
    run_dir = make_run(tmp_path / "run", "tests.stubs:OnlyOne-v0")
    assert play.main([str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "no game has ended in 3 steps" in shown
    assert re.search(r"score 1  1 of at most 4 env steps  \d s of film\n", shown)
    assert "time limit: score 4 after 4 env steps" in shown
    assert frames_of(run_dir / "videos" / "5000-seed0.mp4") == 1 + 4
    assert play.main([str(run_dir), "--best", "--episodes", "2"]) == 0
    before_film, _, _ = capsys.readouterr().out.partition("seed 1: score 4")
    assert before_film.count("no game has ended") == 1
    assert re.search(r"game 1 of 2  score 1  1 of at most 4 env steps\n", before_film)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ((np.zeros(4), 1.0, True, False, {"raw_reward": None}), "raw_reward is None, not a number"),
        ((np.zeros(5), 1.0, True, False, {}), r"ValueError: cannot reshape [^\n]+"),
        ((), r"ValueError: not enough values [^\n]+"),
        (None, "TypeError: [^\n]+"),
    ],
)
def test_an_error_in_a_step_is_one_line(
    step: tuple[Any, ...] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "run", "tests.stubs:OnlyOne-v0")
    monkeypatch.setattr(OnlyOne, "step", lambda self, action: step)
    with pytest.raises(ConfigError, match=f"^cannot play tests.stubs:OnlyOne-v0: {words}$"):
        play.main([str(run_dir)])


def test_a_picture_that_cannot_be_encoded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run(tmp_path / "run", "tests.stubs:OnlyOne-v0")
    monkeypatch.setattr(OnlyOne, "render", lambda self: np.zeros((8, 40_000), np.uint8))
    with pytest.raises(CommandFailed, match=r"^cannot write \S+/5000-seed0-plain\.mp4: [^\n]+$"):
        play.main([str(run_dir), "--no-overlay"])
    assert not list((run_dir / "videos").iterdir())


def test_what_cannot_be_filmed_is_told_before_the_games_to_pick_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    (run_dir / "videos").write_text("no directory")
    with pytest.raises(ConfigError, match=r"^cannot write to \S+/videos: File exists$"):
        play.main([str(run_dir), "--best"])
    monkeypatch.setattr(OnlyOne, "render", lambda self: None)
    with pytest.raises(ConfigError, match=r"render\(\) returned None"):
        play.main([str(make_run(tmp_path / "undrawn", "tests.stubs:OnlyOne-v0")), "--best"])
    assert capsys.readouterr().out == ""


def test_a_video_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """An encoder that is used again after its disk was full crashes the process."""
    blocked = make_run(tmp_path / "blocked", "CartPole-v1")
    (blocked / "videos").write_text("no directory")
    with pytest.raises(CommandFailed, match=r"cannot write \S+/videos/5000-seed0\.mp4: File exists"):
        play.main([str(blocked)])
    full = make_run(tmp_path / "full", "CartPole-v1")
    limited = (
        "import resource, signal; from atari_dqn import play; from atari_dqn.cli.command import run_command;"
        " signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20));"
        " run_command(play.main)"
    )
    result = python("-c", limited, str(full), "--epsilon", "1")
    assert result.returncode == FAILED, result.stderr
    assert result.stderr.endswith("5000-seed0.mp4: File too large\n")
    assert "Traceback" not in result.stderr
    assert not list((full / "videos").iterdir())
