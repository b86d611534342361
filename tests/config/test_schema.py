"""The schema: bounds, derived counts, round trips, and help that cannot disagree with the checks."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atari_dqn.agent.schedules import Exponential, Piecewise
from atari_dqn.config.derived import derive, updates_at
from atari_dqn.config.file import from_dict, load_config
from atari_dqn.config.schema import LearnerConfig, TrainConfig
from atari_dqn.config.setting import ConfigError, settings


def test_every_setting_has_help_and_its_default_is_in_bounds() -> None:
    config = TrainConfig().validate()
    assert set(settings(TrainConfig)) == set(config.to_dict())
    assert all(setting.help for setting in settings(TrainConfig).values())


def test_a_score_to_stop_at_may_be_stored_as_none_a_whole_number_or_a_fraction() -> None:
    for stored, meant in ((None, None), (200, 200.0), (-1.5, -1.5)):
        assert from_dict({"stop_score": stored}).run.stop_score == meant
    with pytest.raises(ConfigError, match="--stop-score is 'high'"):
        from_dict({"stop_score": "high"})


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    given = {
        "total_env_steps": np.int64(200_000),
        "learning_rate": np.float32(0.25),
        "dueling": np.bool_(False),
        "loss": np.str_("mse"),
        "mlp_hidden": np.array([16, 8]),
        "epsilon_values": [np.float64(1.0), torch.tensor(0.5)],
        "stop_score": np.float64(3.0),
    }
    kept = json.loads(json.dumps(from_dict(given).to_dict()))
    plain = [200_000, 0.25, False, "mse", [16, 8], [1.0, 0.5], 3.0]
    assert [kept[name] for name in given] == plain
    with pytest.raises(ConfigError, match=r"--n-step is 2\.5; it must be int"):
        from_dict({"n_step": np.float64(2.5)})


def test_exponential_decay_goes_to_1_over_e_of_the_way_in_one_decay() -> None:
    epsilon = Exponential(0.9, 0.05, 1000)
    assert (epsilon(0), epsilon(10**9)) == (0.9, 0.05)
    assert epsilon(1000) == pytest.approx(0.05 + 0.85 / math.e)
    TrainConfig().replace(epsilon_values=(0.9, 0.05), epsilon_decay=1000.0).validate()
    ladder = TrainConfig().replace(epsilon_values=(0.9, 0.05), epsilon_decay=1000.0, epsilon_ladder=True)
    with pytest.raises(ConfigError, match="give one of them"):
        ladder.validate()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", 0.0, "--learning-rate is 0; it must be above 0 to 1"),
        ("learning_rate", float("nan"), "--learning-rate is nan"),
        ("seed", 2**31, "--seed is 2147483648; it must be from 0 to 2147483647"),
        ("seed", 10**400, "--seed is a number of 39"),
        ("learning_rate", 1e9, "--learning-rate is 1e+09"),
        ("gamma", -0.1, "--gamma is -0.1"),
        ("num_workers", 0, "--num-workers is 0; it must be from 1"),
        ("epsilon_values", (1.0, 2.0, 0.0), "--epsilon-values is 2"),
        ("epsilon_values", (1.0, 0.1), "--epsilon-values has 2 numbers and --epsilon-at 3"),
        ("epsilon_at", (0.0, 0.5, 0.5), "--epsilon-at must increase"),
        ("epsilon_decay", 100.0, "--epsilon-values has 3 numbers; with --epsilon-decay it needs two"),
        ("stop_score", float("nan"), "--stop-score is nan; it must be finite"),
        ("replay_ratio", 1025.0, "--replay-ratio is 1025; it must be from 0 to 1024"),
        ("replay_capacity", 1_000_003, "power of two: 524288 or 1048576"),
        ("replay_capacity", 8, "it must be at least 96"),
        ("replay_capacity", 1, "--replay-capacity is 1; it must be from 2"),
        ("replay_capacity", -1, "--replay-capacity is -1; it must be from 2"),
        ("learning_starts", 0, "--learning-starts is 0; with 16 envs and --n-step 1"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig().replace(**{name: value}).validate()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ladder_needs_envs_to_stand_on() -> None:
    config = TrainConfig().replace(num_workers=1, envs_per_worker=1, epsilon_ladder=True)
    with pytest.raises(ConfigError, match="--epsilon-ladder gives each env its own epsilon"):
        config.validate()
    config.replace(envs_per_worker=2).validate()


def test_a_uniform_replay_may_have_any_size() -> None:
    TrainConfig().replace(replay="uniform", replay_capacity=10_000).validate()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rat"):
        TrainConfig().replace(learning_rat=1.0)


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    config = TrainConfig().replace(epsilon_values=(1.0, 0.5), epsilon_at=(0.0, 1.0), seed=7, run_dir=Path("a b/ü"))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"no_such": 1}', '{"seed": "one"}', '{"seed": 1.5}', '{"seed": true}', '{"gamma": 1e999}'),
        *('{"protocol": "foo"}', '{"device": "tpu"}', '{"mlp_hidden": ["a"]}', '{"mlp_hidden": [64.5]}'),
        *('{"epsilon_values": [1, null]}', '{"run_dir": 5}', "[" * 100_000, '{"gamma": 1' + "0" * 400 + "}"),
    ],
)
def test_a_broken_config_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.json").validate()
    assert "\n" not in str(caught.value)


def test_whole_numbers_stand_for_floats_in_a_file_and_the_other_way_round() -> None:
    assert from_dict({"gamma": 1}).replay.gamma == 1.0
    for config in (from_dict({"total_env_steps": 1e6}), TrainConfig().replace(total_env_steps=1e6)):
        assert repr(config.run.total_env_steps) == "1000000"


@given(st.integers(1, 10**6), st.integers(1, 512), st.sampled_from([0.25, 1.0, 8.0, 0.1, 3.3]), st.integers(0, 500))
def test_updates_follow_env_steps_without_drift_or_burst(steps: int, batch: int, ratio: float, starts: int) -> None:
    learner = LearnerConfig(batch_size=batch, replay_ratio=ratio, learning_starts=starts)
    due = updates_at(learner, starts + steps)
    assert updates_at(learner, starts) == 0
    assert due <= Fraction(str(ratio)) * steps / batch < due + 1
    assert updates_at(learner, starts + steps + 1) - due <= Fraction(str(ratio)) / batch + 1


@pytest.mark.parametrize(("ratio", "tenths"), [(0.1, 1), (0.3, 3), (0.7, 7), (1.1, 11), (2.3, 23)])
def test_a_ratio_is_the_decimal_that_was_written(ratio: float, tenths: int) -> None:
    """Its binary neighbour would be early or late by one update, 0.3 at ten steps."""
    for batch_size in (1, 3, 32):
        learner = LearnerConfig(batch_size=batch_size, replay_ratio=ratio, learning_starts=7)
        for steps in (*range(400), 10**9):
            assert updates_at(learner, 7 + steps) == tenths * steps // (10 * batch_size)


@pytest.mark.parametrize("workers", [1, 8, 32])
def test_units_do_not_change_with_the_number_of_workers(workers: int) -> None:
    derived = derive(TrainConfig().replace(num_workers=workers), frame_bytes=7056)
    assert derived.epsilon_knots == ((0, 1.0), (250_000, 0.1), (5_000_000, 0.01))
    assert derived.beta_knots == ((0, 0.4), (10_000_000, 1.0))
    assert derived.env_steps_per_update == 4
    assert derived.target_sync_env_steps == 8_000
    assert derived.total_updates == (10_000_000 - derived.num_envs - 20_000) // 4
    assert derived.bytes_per_transition < 7_200


def test_piecewise_is_straight_between_knots_and_constant_outside() -> None:
    schedule = Piecewise(((10, 1.0), (20, 0.5), (40, 0.0)))
    assert [schedule(step) for step in (0, 10, 15, 20, 30, 40, 99)] == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert Piecewise(((0, 0.3),))(123) == 0.3
