"""A training from its start to its end in a run directory: what a run is given reaches the part that obeys it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from atari_dqn.config.live import Edit
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.training import start
from atari_dqn.training.start import Run
from tests.training.test_trainer import CARTPOLE

URL = "http://127.0.0.1:1"


def trained(run: Run, **settings: Any) -> str:
    """What the training said."""
    config = TrainConfig().replace(**(CARTPOLE | settings)).validate()
    console = Console(file=io.StringIO(), width=300)
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
