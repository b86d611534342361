"""Reference scores: complete, for games that exist, and normalised to 0 and 1."""

from __future__ import annotations

import ale_py
import gymnasium as gym
import pytest

from atari_dqn.evaluation.references import RANDOM_AND_HUMAN, human_normalized, references, with_human

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
