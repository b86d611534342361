"""A run's directory: its name, and the settings that a path stands for."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.directory import new_run_dir
from atari_dqn.train import TrainCommand
from atari_dqn.training.beginning import parse_training


@pytest.fixture(autouse=True)
def _one_second_in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")


@pytest.mark.parametrize("seeds", [1, 3])
def test_runs_of_the_same_second_get_directories_of_their_own(seeds: int) -> None:
    with contextlib.ExitStack() as stack:

        def made(_: int) -> str:
            return stack.enter_context(new_run_dir(TrainConfig(), seeds)).name

        with ThreadPoolExecutor(8) as pool:
            names = set(pool.map(made, range(8)))
    first = f"Breakout-v5-{'1to3' if seeds > 1 else '1'}-20260102-030405"
    assert names == {first, *(f"{first}-{number}" for number in range(2, 9))}


def test_a_directory_is_left_behind_only_with_a_run_in_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_run_dir(TrainConfig()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_run_dir(TrainConfig()) as run_dir:
        (run_dir / "config.json").touch()
    assert [file.name for file in run_dir.iterdir()] == ["config.json"]
    (tmp_path / "runs").rename("elsewhere")
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigError, match="choose a writable directory"), new_run_dir(TrainConfig()):
        pass


@pytest.mark.parametrize("place", ["runs/one", "runs/several/seed-2"])
def test_a_run_is_taken_for_its_settings(place: str) -> None:
    Path(place).mkdir(parents=True)
    Path(place, "config.json").write_text(json.dumps(TrainConfig().replace(gamma=0.5, run_dir=place).to_dict()))
    for path in ("/".join(place.split("/")[:2]), f"{place}/config.json"):
        config = parse_training(TrainCommand, ["--config", path, "--seed", "7"], "train", TrainConfig()).settings()
        assert (config.replay.gamma, config.run.seed, config.run.run_dir) == (0.5, 7, None)
    for path in ("runs", "nowhere"):
        with pytest.raises(ConfigError, match=f"--config {path}") as caught:
            parse_training(TrainCommand, ["--config", path], "train", TrainConfig())
        assert "\n" not in str(caught.value)
