"""The standard suites: games that exist, and settings that train takes."""

from __future__ import annotations

import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import resolve_env_id
from atari_dqn.evaluation.references import references
from atari_dqn.sweeps.suites import SUITES, Suite


def test_each_suite_has_the_number_of_games_in_its_name_and_the_small_ones_are_parts_of_the_large() -> None:
    for name, suite in SUITES.items():
        assert suite.name == name == f"atari-{len(set(suite.games))}" == f"atari-{len(suite.games)}"
        assert set(suite.games) <= set(SUITES["atari-57"].games)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_every_game_exists_and_has_a_humans_score(suite: Suite) -> None:
    assert [game for game in suite.games if resolve_env_id(game) != game or references(game) is None] == []


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_the_protocol_is_valid_as_settings_of_train(suite: Suite) -> None:
    config = TrainConfig().replace(**suite.settings).validate()
    assert config.run.total_env_steps * 4 in (400_000, 200_000_000), "frames"
    assert config.env.protocol == "nature", "human scores are of games without sticky actions"
