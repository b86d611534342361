"""The table of all games together, on run directories made by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atari_dqn import compare
from atari_dqn.comparison.all_games import all_games
from atari_dqn.comparison.runs import configurations, read_run
from atari_dqn.comparison.tables import Table
from atari_dqn.evaluation.intervals import estimate, interval, iqm, mean, median_of_means
from atari_dqn.evaluation.references import ATARI_5, RANDOM_AND_HUMAN
from tests.run_dirs import log, make_settings

SEEDS = itertools.count(1)


def make(place: Path, game: str, normalized: list[float], evaluated: int = 0, **settings: Any) -> None:
    """A run of `game` for each human-normalised training score; its evaluation at env step `evaluated` has 1 more."""
    random, human = RANDOM_AND_HUMAN.get(game, (0.0, 1.0))
    for score in normalized:
        seed = next(SEEDS)
        raw = random + score * (human - random)
        run_dir = place / f"{game}-{seed}"
        make_settings(run_dir, f"ALE/{game}-v5", seed=seed, **settings)
        better = raw + human - random
        log(run_dir, {500: 0.0, 1000: raw}, {evaluated: (better,) * 3, 100: (raw,) * 3} if evaluated else None)


def table_of(place: Path) -> Table:
    (made,) = all_games(configurations([read_run(path) for path in sorted(place.iterdir())]))
    return made


def rows_of(made: Table) -> dict[str, list[str]]:
    return {name: cells for name, *cells in made.rows}


def shown(statistic: Any, *samples: Any) -> str:
    low, high = interval(statistic, *map(np.array, samples))
    return f"{estimate(statistic, *map(np.array, samples)):.2f} [{low:.2f}, {high:.2f}]"


def test_median_mean_and_iqm_are_those_of_the_games_and_their_runs(tmp_path: Path) -> None:
    scores = {"Breakout": [0.0, 1.0, 2.0, 9.0], "Pong": [0.25, 0.75], "Boxing": [4.0, 6.0]}
    for game, normalized in scores.items():
        make(tmp_path, game, normalized)
    made = table_of(tmp_path)
    assert made.header == ["game", "score"]
    assert [row[0] for row in made.rows[:3]] == ["Boxing", "Breakout", "Pong"]
    rows = rows_of(made)
    assert rows["Pong"] == [shown(mean, [-20.7 + 35.3 / 4, -20.7 + 35.3 * 3 / 4])]
    assert rows["Pong"][0].startswith("-3.05 [")
    assert rows["human-normalised median"] == [shown(median_of_means, *scores.values())]
    assert rows["human-normalised median"][0].startswith("3.00 ["), "of the means 3, 0.5 and 5"
    assert rows["human-normalised mean"][0].startswith("2.83 [")
    assert rows["human-normalised IQM"] == [shown(iqm, *scores.values())]
    assert rows["human-normalised IQM"][0].startswith("1.94 ["), "of 0.75, 1, 2 and 4"
    assert "the last 100 games of training" in made.notes[0]
    assert "over 3 games" in made.notes[1]
    assert len(made.notes) == 2


def test_games_that_do_not_count_are_named(tmp_path: Path) -> None:
    for game in ("Breakout", "Pong"):
        make(tmp_path, game, [1.0, 1.0], n_step=1)
        make(tmp_path, game, [2.0, 2.0], n_step=3)
    make(tmp_path, "Boxing", [50.0, 50.0], n_step=3)
    make(tmp_path, "Tetris", [7.0], n_step=1)
    made = table_of(tmp_path)
    rows = rows_of(made)
    assert made.header == ["game", "A", "B"]
    assert rows["human-normalised mean"] == ["2.00 [2.00, 2.00]", "1.00 [1.00, 1.00]"]
    assert made.notes[-1] == "Not human-normalised: Boxing (not in every configuration), Tetris (no human score)."
    assert rows["Boxing"] == ["600.10 [600.10, 600.10]", "–"]
    assert rows["Tetris"] == ["–", "7.00"]


def test_a_game_with_a_single_run_leaves_the_aggregates_without_an_interval(tmp_path: Path) -> None:
    make(tmp_path, "Breakout", [0.0, 1.0])
    make(tmp_path, "Pong", [0.5])
    assert rows_of(table_of(tmp_path))["human-normalised mean"] == ["0.50"]


def test_evaluations_count_where_every_run_has_one_of_the_same_kind(tmp_path: Path) -> None:
    make(tmp_path, "Breakout", [0.0, 1.0], evaluated=900)
    make(tmp_path, "Pong", [0.5, 0.5], evaluated=1000)
    made = table_of(tmp_path)
    assert rows_of(made)["human-normalised mean"][0].startswith("1.50")
    assert "(nature, epsilon 0.01, env step 900 to 1,000)" in made.notes[0]
    make(tmp_path, "Boxing", [0.5, 0.5])
    made = table_of(tmp_path)
    assert rows_of(made)["human-normalised mean"][0].startswith("0.50")
    assert "games of training" in made.notes[0]


@pytest.mark.parametrize("other", [{"eval_epsilon": 0.05}, {"protocol": "machado"}])
def test_evaluations_under_other_conditions_are_not_mixed(other: dict[str, Any], tmp_path: Path) -> None:
    """Pong's are not as its own settings make them, or these are not those of Breakout."""
    make(tmp_path, "Breakout", [0.0, 1.0], evaluated=900)
    make(tmp_path, "Pong", [0.5, 0.5], evaluated=1000, **other)
    if "protocol" in other:
        for file in tmp_path.glob("Pong*/evaluations.jsonl"):
            file.write_text(file.read_text().replace("nature", "machado"))
    assert "games of training" in table_of(tmp_path).notes[0]


def test_atari_5_predicts_the_median_of_57_games(tmp_path: Path) -> None:
    for env_id in ATARI_5:
        make(tmp_path, env_id[4:-3], [1.0, 1.0])
    made = table_of(tmp_path)
    assert made.rows[-1] == ["median of 57 games, predicted", "0.85 [0.85, 0.85]"]
    assert "Aitchison" in made.notes[-1]


@pytest.mark.parametrize("games", [["Breakout"], ["Breakout", "Tetris"]])
def test_fewer_than_two_games_with_a_human_score_have_no_table(games: list[str], tmp_path: Path) -> None:
    for game in games:
        make(tmp_path, game, [1.0, 2.0])
    assert all_games(configurations([read_run(path) for path in tmp_path.iterdir()])) == []


def test_compare_prints_the_table_last_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for game in ("Breakout", "Pong", "Qbert"):
        make(tmp_path / "runs", game, [0.5, 1.5], evaluated=1000)
    out = tmp_path / "out.png"
    assert compare.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Latest evaluations") < printed.index("All games") < printed.index("human-normalised IQM")
    assert "| human-normalised median | 2.00 [" in out.with_suffix(".md").read_text()
