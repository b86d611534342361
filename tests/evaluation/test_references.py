"""Reference scores: complete, for games that exist, and normalised to 0 and 1."""

from __future__ import annotations

import ale_py
import gymnasium as gym
import numpy as np
import pytest

from atari_dqn.evaluation.intervals import estimate
from atari_dqn.evaluation.references import (
    ATARI_5,
    RANDOM_AND_HUMAN,
    human_normalized,
    predicted_median,
    references,
    with_human,
)

gym.register_envs(ale_py)


def test_all_57_games_are_listed_under_the_names_in_their_ids() -> None:
    assert len(RANDOM_AND_HUMAN) == 57
    assert [game for game in RANDOM_AND_HUMAN if f"ALE/{game}-v5" not in gym.registry] == []


def test_every_number_is_that_of_the_published_table() -> None:
    """Its columns' sums: dqn_zoo/atari_data.py of github.com/google-deepmind/dqn_zoo, compared game by game."""
    assert sum(random for random, _ in RANDOM_AND_HUMAN.values()) == pytest.approx(50_864.9)
    assert sum(human for _, human in RANDOM_AND_HUMAN.values()) == pytest.approx(606_494.2)


@pytest.mark.parametrize(
    ("env_id", "score", "normalized"),
    [
        ("ALE/Breakout-v5", 1.7, 0.0),
        ("ALE/Breakout-v5", 30.5, 1.0),
        ("ALE/Breakout-v5", 401.2, 13.871527),
        ("ALE/Pong-v5", -20.7, 0.0),
        ("ALE/Pong-v5", 14.6, 1.0),
        ("ALE/Seaquest-v5", 42054.7, 1.0),
        ("ALE/Skiing-v5", -17098.1, 0.0),
    ],
)
def test_random_play_is_0_and_a_human_1(env_id: str, score: float, normalized: float) -> None:
    assert human_normalized(env_id, score) == pytest.approx(normalized)


def test_a_human_beats_random_play_in_every_game() -> None:
    assert all(human > random for random, human in RANDOM_AND_HUMAN.values())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Breakout-v5", "ALE/Tetris-v5", "tests.stubs:Catch-v0"])
def test_without_a_reference_there_is_no_normalized_score(env_id: str) -> None:
    assert references(env_id) is None
    assert human_normalized(env_id, 1.0) is None


def test_a_score_is_shown_with_its_human_normalised_value() -> None:
    assert with_human("ALE/Breakout-v5", 31.0) == "31 (human-normalised 1.02)"
    assert with_human("CartPole-v1", 200.0) == "200"


@pytest.mark.parametrize(
    ("scores", "median"),
    [
        ((1.7127, 8.4884, 1.8837, 16.6277, 2.5320), 2.2705),  # Rainbow
        ((24.2987, 19.7628, 26.9055, 147.2514, 5.4256), 20.4112),  # MuZero
    ],
)
def test_the_median_of_57_games_is_predicted_to_ten_percent(scores: tuple[float, ...], median: float) -> None:
    """Published scores, from dataset.csv of github.com/maitchison/Atari-5, and their median over the 57 games."""
    assert estimate(predicted_median, *np.array(scores)[:, None]) == pytest.approx(median, rel=0.1)


def test_the_prediction_is_a_power_law_of_means_over_runs_and_0_for_random_play() -> None:
    means = estimate(predicted_median, *np.array([[0.5, 1.5]] * 5))
    assert float(means) == pytest.approx((101 ** sum(ATARI_5.values()) - 1) / 100)
    assert estimate(predicted_median, *np.full((5, 1), -3.0)) == 0, "below random play counts as random play"
