"""A training from its start to its end in a run directory: what a run is given reaches the part that obeys it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from atari_dqn.config.derived import derive
from atari_dqn.config.live import Edit
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.runs.checkpoints import load_weights
from atari_dqn.training import start
from atari_dqn.training.start import Run
from atari_dqn.training.summary import exploration_warning
from tests.training.test_trainer import CARTPOLE

URL = "http://127.0.0.1:1"


def configured(**settings: Any) -> TrainConfig:
    return TrainConfig().replace(**(CARTPOLE | settings)).validate()


def trained(run: Run, **settings: Any) -> str:
    """What the training said."""
    run.run_dir.mkdir(exist_ok=True)
    config, console = configured(**settings), Console(file=io.StringIO(), width=300)
    assert start.train(config, spec_of(config.env), run, console, lambda: False) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_page_gets_the_settings_of_the_start_and_present_live_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, float]] = []

    class Page:
        """Keeps the learning rate among the settings, and the slider's."""

        uuid, dropped = "1", 0

        def __init__(self, url: str, *, config: dict[str, Any], live: dict[Any, float], **_: Any) -> None:
            sliders = {live.name: value for live, value in live.items()}
            shown.append((config["learning_rate"], sliders["learning_rate"]))

        def write(self, row: Any) -> None: ...
        def show(self, values: Any) -> None: ...
        def poll(self) -> list[Any]:
            return []

        def problem(self) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(start, "LabmlLink", Page)
    edit = Edit(0.0, 100, 1, "learning_rate", 1e-4, 9e-4, True, "tune")
    trained(Run(tmp_path, repeated=[edit], labml_url=URL), total_env_steps=200)
    trained(Run(tmp_path, labml_url=URL), total_env_steps=300)
    assert shown == [(1e-4, 1e-4), (1e-4, 9e-4)]


def test_first_weights_come_from_another_run_and_a_resume_by_the_same_command_keeps_its_own(tmp_path: Path) -> None:
    other, run = tmp_path / "other", Run(tmp_path / "run", init_from=tmp_path / "other")
    trained(Run(other), total_env_steps=200)

    run.run_dir.mkdir()

    def opened() -> tuple[dict[str, torch.Tensor], str]:
        config, console = configured(total_env_steps=200), Console(file=io.StringIO(), width=300)
        trainer, _ = start.open_run(config, spec_of(config.env), run, console)
        assert isinstance(console.file, io.StringIO)
        return trainer.learner.online.state_dict(), console.file.getvalue()

    weights, said = opened()
    torch.testing.assert_close(weights, load_weights(other), rtol=0, atol=0)
    assert "ignored" not in said
    trained(run, total_env_steps=200, learning_rate=1e-2)
    weights, said = opened()
    torch.testing.assert_close(weights, load_weights(run.run_dir), rtol=0, atol=0)
    assert "--init-from ignored: this run already has weights" in said
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weights, load_weights(other), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "epsilon"),
    [
        ({}, None),
        ({"total_env_steps": 200_000}, "0.086"),
        ({"total_env_steps": 1_000_000}, "0.28"),
        ({"total_env_steps": 2_000_000}, None),
        ({"total_env_steps": 200_000, "learning_starts": 1_000}, None),
        ({"total_env_steps": 20_000}, None),  # learns nothing, and is told so
        ({"epsilon_values": (1.0, 0.0), "epsilon_decay": 10_000.0}, "0.14"),
        ({"epsilon_values": (1.0, 0.0), "epsilon_decay": 100_000.0}, None),
        ({"epsilon_values": (0.05,), "epsilon_at": (0.0,)}, None),
        ({"epsilon_values": (0.1, 1.0), "epsilon_at": (0.0, 0.001)}, None),
        ({"total_env_steps": 200_000, "epsilon_ladder": True}, None),
    ],
)
def test_a_schedule_that_is_over_before_learning_starts_is_warned_of(
    settings: dict[str, Any], epsilon: str | None
) -> None:
    config = TrainConfig().replace(**settings).validate()
    warnings = exploration_warning(config, derive(config, 7_056, 4))
    assert len(warnings) == (epsilon is not None)
    assert all(f"epsilon is down to {epsilon} when learning starts at env step 20,000" in line for line in warnings)
