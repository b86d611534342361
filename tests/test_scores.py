"""Reference scores: complete, of games that exist, and 0 and 1 where they should be."""

from __future__ import annotations

import ale_py
import gymnasium as gym
import pytest

from atari_dqn.scores import RANDOM_AND_HUMAN, human_normalized, references

gym.register_envs(ale_py)


def test_all_57_games_are_there_under_the_names_of_their_ids() -> None:
    assert len(RANDOM_AND_HUMAN) == 57
    assert [game for game in RANDOM_AND_HUMAN if f"ALE/{game}-v5" not in gym.registry] == []


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
def test_no_reference_no_number(env_id: str) -> None:
    assert references(env_id) is None
    assert human_normalized(env_id, 1.0) is None
