"""A training from its start to its end in a run directory: what a run is given reaches the part that obeys it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from atari_dqn.cli.command import INTERRUPTED
from atari_dqn.config.derived import derive
from atari_dqn.config.live import Edit, Request
from atari_dqn.config.presets import cpu
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import spec_of
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.monitoring.views import Row, result_of
from atari_dqn.runs.checkpoints import load_weights
from atari_dqn.runs.edits import Inbox
from atari_dqn.runs.lock import is_training
from atari_dqn.sweeps import session
from atari_dqn.sweeps.members import Member
from atari_dqn.train import main
from atari_dqn.training import start
from atari_dqn.training.start import Run
from atari_dqn.training.summary import above_random, exploration_warning
from tests.training.test_trainer import CARTPOLE

URL = "http://127.0.0.1:1"


def configured(**settings: Any) -> TrainConfig:
    return TrainConfig().replace(**(CARTPOLE | settings)).validate()


def trained(run: Run, **settings: Any) -> str:
    """What the training said."""
    run.run_dir.mkdir(exist_ok=True)
    config, console = configured(**settings), Console(file=io.StringIO(), width=300)
    assert result_of(start.rows(config, spec_of(config.env), run, console, lambda: False)) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_stopped_run_says_what_resumes_it(tmp_path: Path) -> None:
    config, console = configured(), Console(file=io.StringIO(), width=300)
    run = Run(tmp_path, cluster="10.0.0.1:6379")
    assert result_of(start.rows(config, spec_of(config.env), run, console, lambda: True)) == INTERRUPTED
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith(f"resume with --run-dir {tmp_path} --cluster 10.0.0.1:6379\n")


def test_the_page_gets_the_settings_of_the_start_and_present_live_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, float]] = []
    answers: list[float] = []
    typed = [("learning_rate", 5.0), ("learning_rate", 9e-4)]

    class Page:
        """Keeps the learning rate among the settings, and the slider's."""

        uuid, dropped = "1", 0

        def __init__(self, url: str, *, config: dict[str, Any], live: dict[Any, float], **_: Any) -> None:
            sliders = {live.name: value for live, value in live.items()}
            shown.append((config["learning_rate"], sliders["learning_rate"]))

        def write(self, row: Any) -> None: ...
        def show(self, values: dict[str, float]) -> None:
            answers.append(values["learning_rate"])

        def poll(self) -> list[Any]:
            return [typed.pop()] if typed else []

        def answer(self, name: str, text: str) -> None: ...
        def problem(self) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(start, "LabmlLink", Page)
    trained(Run(tmp_path, labml_url=URL), total_env_steps=200)
    trained(Run(tmp_path, labml_url=URL), total_env_steps=300)
    assert shown == [(1e-4, 1e-4), (1e-4, 9e-4)]
    assert answers == [9e-4, 9e-4], "what was taken is shown, and after a refusal what holds"


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
    warnings = exploration_warning(config, derive(config, 7_056))
    assert len(warnings) == (epsilon is not None)
    assert all(f"epsilon is down to {epsilon} when learning starts at env step 20,000" in line for line in warnings)


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({}, None),
        ({"epsilon_values": (1.0, 0.01), "epsilon_at": (0.0, 1.0)}, "2,000,000"),
        ({"epsilon_values": (1.0, 0.01), "epsilon_at": (0.0, 0.25)}, None),
        ({"epsilon_values": (1.0, 0.01), "epsilon_at": (0.0, 1.0), "schedule_env_steps": 0}, None),
        ({"epsilon_values": (1.0, 0.01), "epsilon_at": (0.0, 1.0), "epsilon_ladder": True}, None),
    ],
)
def test_knots_of_ones_own_that_a_run_does_not_reach_are_warned_of(settings: dict[str, Any], last: str | None) -> None:
    config = cpu(1, 500_000).replace(**settings).validate()
    warnings = exploration_warning(config, derive(config, 7_056))
    assert len(warnings) == (last is not None)
    assert all(f"epsilon reaches its last value at env step {last}, after the end of the run" in it for it in warnings)


@pytest.mark.parametrize(
    ("total", "settings", "expected"),
    [
        (10_000_000, {}, (100_000, 100_000)),
        (50_000, {}, None),
        (10_000_000, {"schedule_env_steps": 10**9}, None),
        (10_000_000, {"learning_rate": 1e-4}, None),
        (10_000_000, {"env_id": "ALE/Seaquest-v5"}, (100_000, 450_000)),
    ],
)
def test_what_is_expected_of_the_preset_cpu(
    total: int, settings: dict[str, Any], expected: tuple[int, int] | None
) -> None:
    assert above_random(cpu(2, total).replace(**settings)) == expected


FLAGS = ["--env-id", "CartPole-v1", "--num-workers", "2", "--total-env-steps", "30000", "--gamma", "0.5"]


def test_what_the_command_is_given_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    edits = [Edit(0.0, 100, 1, "learning_rate", 1e-4, 9e-4, True, "tune")]
    Path("edits.jsonl").write_text(json.dumps(dataclasses.asdict(edits[0])) + "\n")
    Path("weights.safetensors").touch()
    given = ["--init-from", "weights.safetensors", "--labml-url", URL, "--replay-edits", "edits.jsonl"]
    Path("run").mkdir()
    Inbox(Path("run")).put(Request("gamma", 0.1, "tune", id="early"))
    seen: list[tuple[TrainConfig, Run]] = []

    def trained(
        config: TrainConfig, spec: EnvSpec, run: Run, console: Console, should_stop: Any
    ) -> Generator[Row, None, int]:
        yield Row()
        assert not list(Path("run/edits_asked").iterdir()), "who asked before was told that nobody listens"
        assert is_training(Path("run"))
        assert spec.env_id == config.env.env_id
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        seen.append((config, run))
        return 3

    monkeypatch.setattr(start, "rows", trained)
    Path("run/config.json").write_text(json.dumps(TrainConfig().replace(env_id="CartPole-v1", num_workers=2).to_dict()))
    assert main([*FLAGS, *given, "--run-dir", "run"]) == 3
    ((config, run),) = seen
    assert (config.env.env_id, config.replay.gamma, config.run.total_env_steps) == ("CartPole-v1", 0.5, 30_000)
    assert (run.run_dir, run.init_from) == (Path("run"), Path("weights.safetensors"))
    assert (run.labml_url, run.repeated) == (f"{URL}/api/v1", edits)
    assert not is_training(Path("run"))

    passed: list[Any] = []

    def train_seeds(*given: Any) -> int:
        passed.extend(given)
        return 0

    monkeypatch.setattr(session, "train_seeds", train_seeds)
    assert main([*FLAGS, *given, "--run-dir", "several", "--seeds", "3"]) == 0
    members, specs, run_dir, _, flags = passed
    assert flags == {"init_from": "weights.safetensors", "labml_url": URL, "replay_edits": "edits.jsonl"}
    of_seeds = [Member(f"seed-{seed}", members[0].config.replace(seed=seed)) for seed in (1, 2, 3)]
    assert members == of_seeds
    assert (members[0].config.replay.gamma, members[0].config.env.env_id) == (0.5, "CartPole-v1")
    assert (run_dir, specs.keys()) == (Path("several"), {"seed-1", "seed-2", "seed-3"})


def test_a_resume_does_not_need_the_source_of_its_first_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "rows", lambda *_: iter(()))
    command = [*FLAGS, "--run-dir", str(tmp_path), "--init-from", str(tmp_path / "gone")]
    with pytest.raises(ConfigError, match="gone does not exist"):
        main(command)
    (tmp_path / "config.json").write_text(json.dumps(TrainConfig().replace(env_id="CartPole-v1").to_dict()))
    main([*command, "--num-workers", "8"])
