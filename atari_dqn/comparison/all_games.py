"""Table of all games together: mean scores of each, and human-normalised median, mean and IQM over games.

The aggregates and their intervals are those of Agarwal et al. 2021, over the games that all configurations have in
common.
"""

from collections.abc import Sequence

import numpy as np

from atari_dqn.comparison.runs import Configuration, Run, games_of
from atari_dqn.comparison.scores import Estimate, estimated, final_scores
from atari_dqn.comparison.tables import Table, shown
from atari_dqn.envs.ids import short_name
from atari_dqn.evaluation.episodes import WINDOW
from atari_dqn.evaluation.intervals import Array, Statistic, iqm, mean, median_of_means
from atari_dqn.evaluation.references import ATARI_5, RANDOM_AND_HUMAN, human_normalized, predicted_median, references
from atari_dqn.evaluation.result import EvaluationRow


def scores_by_game(found: Sequence[Configuration]) -> tuple[str, list[dict[str, Array]]]:
    """What the scores are, in words, and raw scores [runs] by env id for each configuration.

    They are those of evaluations if every run has one, all under the same conditions; else those of training. Games
    without a score are absent.
    """
    runs = [run for each in found for run in each.runs]
    rows = _evaluations(runs)
    conditions = sorted({(row["protocol"], row["epsilon"]) for row in rows})
    if len(rows) == len(runs) and len(conditions) == 1:
        (protocol, epsilon), steps = conditions[0], sorted({row["env_step"] for row in rows})
        when = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        what = f"the latest evaluation ({protocol}, epsilon {epsilon:g}, env step {when})"
        return what, [
            {env_id: np.array([row["mean"] for row in _evaluations(each.on(env_id))]) for env_id in games_of([each])}
            for each in found
        ]
    what = f"the last {WINDOW} games of training at the last env step that all runs of a configuration reached"
    return what, [
        {env_id: final_scores(runs) for env_id in games_of([each]) if (runs := each.trained(env_id))} for each in found
    ]


def all_games(found: Sequence[Configuration]) -> list[Table]:
    """The table; empty where fewer than two games have a human score."""
    env_ids = sorted(games_of(found))
    known = [env_id for env_id in env_ids if references(env_id)]
    if len(known) < 2:
        return []
    what, by_game = scores_by_game(found)
    rows = [
        [short_name(env_id), *(shown(estimated(mean, each[env_id])) if env_id in each else "–" for each in by_game)]
        for env_id in env_ids
    ]
    notes = [f"Score: mean of {what}; mean over runs [95% interval]."]
    shared = [env_id for env_id in known if all(env_id in each for each in by_game)]
    if len(shared) > 1:
        statistics: dict[str, tuple[Statistic, Sequence[str]]] = {
            "human-normalised median": (median_of_means, shared),
            "human-normalised mean": (mean, shared),
            "human-normalised IQM": (iqm, shared),
        }
        notes.append(
            f"Human-normalised: 0 is random play, 1 a human, over {len(shared)} games. Median and mean: of the games'"
            " means over runs; IQM: of all runs of all games [95% interval, runs resampled within each game]."
        )
        if len(shared) < len(RANDOM_AND_HUMAN) and set(ATARI_5) <= set(shared):
            statistics["median of 57 games, predicted"] = (predicted_median, list(ATARI_5))
            notes.append("Predicted: by the regression of Aitchison et al. 2023 from five games, to about 10%.")
        for name, (statistic, games) in statistics.items():
            rows.append([name, *(shown(_over_games(statistic, games, each)) for each in by_game)])
    absent = [
        f"{short_name(env_id)} ({'not in every configuration' if env_id in known else 'no human score'})"
        for env_id in env_ids
        if env_id not in shared
    ]
    if absent:
        notes.append(f"Not human-normalised: {', '.join(absent)}.")
    return [Table("All games", ["game", *(each.letter or "score" for each in found)], rows, notes)]


def _evaluations(runs: Sequence[Run]) -> list[EvaluationRow]:
    """The latest evaluation of each run with its own protocol and epsilon, without the runs that have none."""
    return [row for run in runs if (row := run.evaluation)]


def _over_games(statistic: Statistic, env_ids: Sequence[str], scores: dict[str, Array]) -> Estimate:
    """Without an interval where a game has a single run: how much its score varies is unknown."""
    samples = [np.array([human_normalized(env_id, score) for score in scores[env_id]]) for env_id in env_ids]
    found = estimated(statistic, *samples)
    return found if min(map(len, samples)) > 1 else Estimate(found.value, np.nan, np.nan)
