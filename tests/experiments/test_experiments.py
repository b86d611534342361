"""The experiments: their settings are those of their sources, each of them runs, and the list describes them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.train import main
from benchmarks.race.contestants import CONTESTANTS
from experiments.__main__ import all_experiments
from experiments.shaped_cartpole import SIZES, shaped_reward

ROOT = Path(__file__).parents[2]
EXPERIMENTS = all_experiments()

PLAIN: dict[str, Any] = {
    "num_workers": 1,
    "envs_per_worker": 1,
    "n_step": 1,
    "clip_rewards": False,
    "double_q": False,
    "dueling": False,
    "max_grad_norm": 1e9,
}
"""What the CartPole sources have in common: one env and plain DQN."""
NOTE: dict[str, Any] = PLAIN | {
    "env_id": "experiments.shaped_cartpole:CartPoleShaped-v0",
    "envs_per_worker": 32,  # ours
    "mlp_hidden": [32, 32],
    "activation": "silu",
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "gamma": 0.95,
    "batch_size": 128,
    "loss": "huber",
    "max_grad_value": 1.0,
    "epsilon_values": [1.0, 0.0],
    "epsilon_at": [0.0, 1.0],
    "epsilon_decay": 0.0,
    "target_update_interval": 1,
    "target_tau": 1.0,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "breakout_labml": {
        "env_id": "ALE/Breakout-v5",
        "num_workers": 8,
        "envs_per_worker": 1,
        "total_env_steps": 1_000_000 * 8 * 4,
        "batch_size": 32,
        "replay_ratio": 8 * 32 / 32,  # 8 updates of 32 for an iteration's 32 env steps
        "replay": "prioritized",
        "replay_capacity": 2**14,
        "learning_starts": 2**14,
        "alpha": 0.6,
        "beta_values": [0.4, 1.0],
        "beta_at": [0.0, 1.0],
        "epsilon_values": [1.0, 0.1, 0.01],
        "epsilon_at": [0.0, 0.025, 0.5],
        "target_update_interval": 250 * 8,
        "target_tau": 1.0,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "gamma": 0.99,
        "max_grad_norm": 0.5,
        "max_grad_value": 0.0,
        "dueling": True,
        "head": "shared",
        "double_q": True,
        "n_step": 1,
        "loss": "huber",
    },
    "cartpole_pytorch_tutorial": PLAIN
    | {
        "env_id": "CartPole-v1",
        "mlp_hidden": [128, 128],
        "activation": "relu",
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "batch_size": 128,
        "replay": "uniform",
        "replay_capacity": 10_000,
        "gamma": 0.99,
        "epsilon_values": [0.9, 0.05],
        "epsilon_decay": 1_000.0,
        "target_update_interval": 1,
        "target_tau": 0.005,
        "loss": "huber",
        "max_grad_value": 100.0,
        "replay_ratio": 128.0,
    },
    "cartpole_lightning": PLAIN
    | {
        "env_id": "CartPole-v1",
        "mlp_hidden": [128],
        "activation": "relu",
        "loss": "mse",
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "batch_size": 16,
        "replay": "uniform",
        "replay_capacity": 1_000,
        "learning_starts": 1_000,
        "target_update_interval": 10,
        "target_tau": 1.0,
        "gamma": 0.99,
        "epsilon_values": [1.0, 0.01],
        "epsilon_decay": 0.0,
        "replay_ratio": 16.0,
        "max_grad_value": 0.0,
    },
    "cartpole_no_replay": NOTE | {"replay": "newest", "replay_ratio": 1.0},
    "cartpole_replay": NOTE | {"replay": "uniform", "replay_capacity": 1_280, "replay_ratio": 128 / 32},
    "lunarlander_di_engine": {
        "env_id": "LunarLander-v3",
        "num_workers": 8,
        "envs_per_worker": 1,
        "eval_episodes": 5,
        "eval_epsilon": 0.0,
        "stop_score": 200.0,
        "dueling": True,
        "double_q": True,
        "head": "two_stream",
        "mlp_hidden": [512, 64, 64],
        "n_step": 3,
        "gamma": 0.99,
        "batch_size": 64,
        "replay_ratio": 10 * 64 / 64,
        "learning_starts": 64,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "target_update_interval": 100,
        "target_tau": 1.0,
        "replay": "uniform",
        "replay_capacity": 100_000,
        "epsilon_values": [0.95, 0.1],
        "epsilon_decay": 50_000.0,
        "loss": "mse",
        "clip_rewards": False,
        "max_grad_norm": 1e9,
        "max_grad_value": 0.0,
    },
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_are_valid(name: str) -> None:
    EXPERIMENTS[name].CONFIG.validate()


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_of_the_source(name: str) -> None:
    found = EXPERIMENTS[name].CONFIG.to_dict()
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_updates_and_schedules_are_counted_as_the_sources_do() -> None:
    """The sources count updates, epochs and iterations, the settings env steps and fractions of the run."""

    def config(name: str) -> TrainConfig:
        found: TrainConfig = EXPERIMENTS[name].CONFIG
        return found

    assert derive(config("cartpole_no_replay"), 16).total_updates == 5_000
    assert derive(config("cartpole_replay"), 16).total_updates == 5_000
    assert derive(config("cartpole_replay"), 16).env_steps_per_update == 32
    assert derive(config("cartpole_lightning"), 16).epsilon_knots == ((1_000, 1.0), (2_000, 0.01))
    assert derive(config("cartpole_pytorch_tutorial"), 16).env_steps_per_update == 1
    assert derive(config("lunarlander_di_engine"), 32).env_steps_per_update * 10 == 64
    labml = derive(config("breakout_labml"), 7_056)
    assert labml.target_sync_env_steps == 250 * 32
    assert labml.epsilon_knots[1] == (25_000 * 32, 0.1)
    assert derive(config("atari100k"), 7_056).epsilon_knots == ((1_600, 1.0), (6_600, 0.01))


def test_the_fast_breakout_has_the_figures_of_its_description() -> None:
    derived = derive(EXPERIMENTS["breakout_fast"].CONFIG, 7_056)
    assert derived.target_sync_env_steps == 16_000
    assert derived.env_steps_per_update == 64
    assert derived.replay_bytes < 8e9


@pytest.mark.parametrize(("name", "contestant"), [("breakout_cpu", "64-narrow-slower"), ("pong", "32-ratio-8")])
def test_the_measured_settings_are_those_of_the_race(name: str, contestant: str) -> None:
    config, raced = EXPERIMENTS[name].CONFIG, TrainConfig().replace(**CONTESTANTS[contestant].settings)
    assert knots(config) == knots(raced)
    assert config.num_envs == raced.num_envs
    changed = {field for field, value in config.to_dict().items() if raced.to_dict()[field] != value}
    in_steps = {"epsilon_at", "learning_rate_at", "schedule_env_steps", "total_env_steps"}
    how_it_is_watched = {
        *("checkpoint_interval", "log_interval", "record_interval"),
        *("eval_interval", "eval_episodes", "eval_epsilon"),
    }
    assert changed <= in_steps | how_it_is_watched | {"env_id", "num_workers", "envs_per_worker"}


def knots(config: TrainConfig) -> list[tuple[int, float]]:
    """(env step, value) of the knots of epsilon, then (env step, factor) of the learning rate's."""
    flat = config.to_dict()
    pairs = [
        *zip(flat["epsilon_at"], flat["epsilon_values"], strict=True),
        *zip(flat["learning_rate_at"], flat["learning_rate_factors"], strict=True),
    ]
    return [(round(position * config.schedule_length), value) for position, value in pairs]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_file_describes_its_experiment_and_contains_only_settings(name: str) -> None:
    code = (ROOT / "experiments" / f"{name}.py").read_text()
    tree = ast.parse(code)
    description = ast.get_docstring(tree) or ""
    for words in ("Source: ", "Expected: ", "Measured: ", f"python -m experiments.{name}"):
        assert words in description
    assert EXPERIMENTS[name].EXPECTED
    assert EXPERIMENTS[name].TAKES
    assert f'main(default=CONFIG, prog="python -m experiments.{name}")' in code
    assert not [part for part in ast.walk(tree) if isinstance(part, ast.For | ast.While | ast.FunctionDef)]


# ---------------------------------------------------------------------- each of them runs

SHORT = {"total_env_steps": 300, "learning_starts": 150, "log_interval": 100, "eval_interval": 0, "torch_threads": 1}
ATARI = SHORT | {"num_workers": 1, "envs_per_worker": 2, "replay_capacity": 1_024}
ATARI_NAMES = [name for name in EXPERIMENTS if EXPERIMENTS[name].CONFIG.env.env_id.startswith("ALE/")]


def flags(changes: dict[str, Any]) -> list[str]:
    return [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ATARI_NAMES else name for name in EXPERIMENTS],
)
def test_each_one_starts_and_learns_with_any_setting_overridden(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default: TrainConfig = EXPERIMENTS[name].CONFIG
    if default.env.env_id.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    changes = ATARI if name in ATARI_NAMES else SHORT
    assert main(["--run-dir", str(tmp_path / "run"), *flags(changes)], default=default) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["env_step"] >= changes["total_env_steps"]
    assert rows[-1]["update"] > 0
    assert np.isfinite(rows[-1]["losses/td_loss"])
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    others = {key: value for key, value in default.to_dict().items() if key not in {*changes, "run_dir"}}
    assert {key: stored[key] for key in others} == others


def test_one_runs_as_a_command_and_its_scores_are_of_the_raw_reward(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.cartpole_replay", "--run-dir", str(run_dir)]
    command += flags(SHORT | {"total_env_steps": 1_600})
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Overriding" not in result.stderr
    games = [json.loads(line) for line in (run_dir / "episodes.jsonl").read_text().splitlines()]
    assert len(games) >= 3
    assert all(game["return"] == game["length"] for game in games), (
        "CartPole pays 1 a step; the shaped reward is not it"
    )


# ---------------------------------------------------------------------- the list


def listing(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_list_has_every_file() -> None:
    result = listing()
    assert result.returncode == 0
    with_settings = {path.stem for path in (ROOT / "experiments").glob("*.py") if "\nCONFIG = " in path.read_text()}
    assert set(EXPERIMENTS) == with_settings
    assert len(with_settings) == 12
    for name in with_settings:
        assert f" {name} " in result.stdout


def test_the_list_needs_no_torch() -> None:
    probe = "import sys; from experiments.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, timeout=300).returncode == 0


def test_one_experiment_is_described_in_full() -> None:
    result = listing("cartpole_lightning")
    assert result.stdout.strip() == (EXPERIMENTS["cartpole_lightning"].__doc__ or "").strip()


@pytest.mark.parametrize(("name", "hint"), [("cartpol", "did you mean cartpole?"), ("nosuch", "lists all")])
def test_an_unknown_name_gets_one_line(name: str, hint: str) -> None:
    result = listing(name)
    assert (result.returncode, result.stdout) == (2, "")
    assert hint in result.stderr
    assert len(result.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- the envs


@pytest.mark.parametrize(
    ("position", "angle", "terminated", "reward"),
    [
        (0.0, 0.0, False, 1.0),
        (0.3, 0.1, False, 1.0),
        (-0.31, 0.0, False, -2.0),
        (0.0, -0.11, False, -1.0),
        (0.31, 0.11, False, -1.0),
        (0.0, 0.21, True, -20.0),
    ],
)
def test_the_shaped_reward(position: float, angle: float, terminated: bool, reward: float) -> None:
    assert shaped_reward(position, angle, terminated) == reward


def test_the_shaped_cartpole_differs_from_cartpole_in_observations_and_rewards_only() -> None:
    shaped, plain = gym.make("experiments.shaped_cartpole:CartPoleShaped-v0"), gym.make("CartPole-v1")
    assert list(SIZES) == pytest.approx([0.5, 1.0, 0.21, 0.5])
    seen, raw = shaped.reset(seed=3)[0], plain.reset(seed=3)[0]
    over = False
    while not over:
        np.testing.assert_allclose(seen * SIZES, raw, rtol=1e-6)
        assert shaped.observation_space.contains(seen)
        seen, reward, over, _, info = shaped.step(0)
        raw, raw_reward, raw_over, _, _ = plain.step(0)
        assert (over, info["raw_reward"]) == (raw_over, raw_reward)
        assert reward == shaped_reward(raw[0], raw[2], over)
    assert reward == -20


def test_the_shaped_cartpole_ends_after_500_steps_without_a_fall() -> None:
    env = gym.make("experiments.shaped_cartpole:CartPoleShaped-v0")
    env.reset(seed=1)
    for step in range(500):
        env.unwrapped.state = np.zeros(4)  # type: ignore[attr-defined]
        _, reward, terminated, truncated, _ = env.step(step % 2)
        assert (reward, terminated, truncated) == (1.0, False, step == 499)


def test_a_missing_box2d_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(ConfigError) as refused:
        env_spec("LunarLander-v3", PROTOCOLS["nature"], 4)
    assert "atari_dqn[box2d]" in str(refused.value)
    assert "\n" not in str(refused.value)
