"""Presets: valid for any number of cores and any length, with knots at the same env steps."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from atari_dqn.config.derived import derive
from atari_dqn.config.presets import ABOUT, PRESETS
from atari_dqn.config.schema import TrainConfig


@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 300), st.integers(1, 10**9))
def test_every_preset_is_valid_on_any_machine_for_any_length(name: str, cores: int, total: int) -> None:
    config = PRESETS[name](cores, total).validate()
    assert config.run.total_env_steps == total
    assert name == "paper" or config.env.num_workers <= max(1, cores)


@given(st.integers(200_000, 10**9))
def test_knots_are_at_the_same_env_steps_in_a_run_of_any_length(total: int) -> None:
    knots = derive(PRESETS["cpu"](2, total), 7056)
    assert knots.epsilon_knots == ((0, 1.0), (200_000, 0.1), (1_000_000, 0.01))
    assert knots.learning_rate_knots == ((900_000, 1.0), (1_100_000, 0.4))


@given(st.integers(1, 200_000))
def test_a_short_run_explores_down_to_a_tenth(total: int) -> None:
    assert derive(PRESETS["cpu"](2, total), 7056).epsilon_knots[1] == (total, 0.1)


def test_results_do_not_depend_on_the_number_of_cores() -> None:
    one, many = PRESETS["cpu"](1, 10**6), PRESETS["cpu"](64, 10**6)
    assert one.num_envs == many.num_envs
    assert dataclasses.replace(one, env=many.env) == many


def test_paper_is_the_settings_reference() -> None:
    assert PRESETS["paper"](8, TrainConfig().run.total_env_steps) == TrainConfig()
    assert list(ABOUT) == list(PRESETS)
