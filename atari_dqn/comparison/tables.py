"""Tables of what configurations score and how they differ, for a terminal and as Markdown."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from atari_dqn.cli.format import count, score
from atari_dqn.comparison.runs import Configuration, Run, remarks
from atari_dqn.comparison.scores import (
    Estimate,
    end_of,
    estimated,
    evaluation_points,
    final_scores,
    normalized_scores,
    shared_games,
    times_to,
)
from atari_dqn.envs.ids import short_name
from atari_dqn.evaluation.episodes import WINDOW
from atari_dqn.evaluation.intervals import RESAMPLES, Array, improvement, iqm, mean, median, optimality_gap
from atari_dqn.evaluation.references import human_normalized

SHOWN = 5
"""Most names in a cell."""
HUMAN = "Human: the score human-normalised, 0 is random play, 1 a human."


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a title and a header."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    """Lines below the table that explain its words."""


def tables(found: Sequence[Configuration], threshold: float | None = None) -> list[Table]:
    """All tables that are not empty: settings, training, time to `threshold`, evaluations, and all games combined."""
    made = [_training(found), *([] if threshold is None else [_time_to(found, threshold)]), _evaluations(found)]
    every = [_settings(found), *(_lean(table, found) for table in made), _all_games(found)]
    return [table for table in every if table.rows]


def _lean(table: Table, found: Sequence[Configuration]) -> Table:
    """The table without empty columns, and without game and configuration, the first two, if there is only one."""
    env_ids = _games(found)
    title = table.title if len(env_ids) > 1 else f"{table.title}, {env_ids[0]}"
    kept = [
        index
        for index in range(len(table.header))
        if (len((env_ids, found)[index]) > 1 if index < 2 else any(row[index] != "–" for row in table.rows))
    ]
    header, *rows = ([row[index] for index in kept] for row in (table.header, *table.rows))
    return Table(title, header, rows, table.notes)


def terminal(table: Table) -> Group:
    shown = RichTable(box=box.SIMPLE_HEAD)
    for index, name in enumerate(table.header):
        left = index == 0 or name in ("config", "protocol")
        shown.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=left)
    for row in table.rows:
        shown.add_row(*row)
    return Group(
        Text(table.title, style="bold"), shown, *table.notes, ""
    )  # rich wraps a table's own title at its width


def markdown(made: Sequence[Table], picture: str) -> str:
    lines = ["# Comparison", "", f"![learning curves]({picture})", ""]
    for table in made:
        lines += [f"## {table.title}", ""]
        for cells in (table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows):
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines += ["", *(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    return "\n".join(lines)


def shown(estimate: Estimate, form: Callable[[float], str] = score) -> str:
    """`12.35 [10.00, 14.00]`; of one run, `12.35`."""
    # If the lower end is infinite, so is the rest.
    interval = "" if not math.isfinite(estimate.low) else f" [{form(estimate.low)}, {form(estimate.high)}]"
    return form(estimate.value) + interval


# ---------------------------------------------------------------------- one table each


def _settings(found: Sequence[Configuration]) -> Table:
    facts: list[tuple[str, Callable[[Configuration], str]]] = [
        ("runs", lambda each: _some([run.name for run in each.runs])),
        ("games", lambda each: _some([short_name(env_id) for env_id in _games([each])])),
        ("seeds", lambda each: " ".join(map(str, sorted({run.config.run.seed for run in each.runs})))),
    ]
    rows = [[name, *(tell(each) for each in found)] for name, tell in facts]
    rows += [[name, *(each.settings[name] for each in found)] for name in found[0].settings]
    title = "Settings in which the runs differ" if len(found) > 1 else "Runs of one configuration"
    return Table(title, ["", *(each.letter or "runs" for each in found)], rows, remarks(found))


def _training(found: Sequence[Configuration]) -> Table:
    header = ["game", "config", "runs", "env steps", "score"]
    normal = any(human_normalized(env_id, 0.0) is not None for env_id in _games(found))
    header += ["human"] if normal else []
    header += [f"better than {found[0].letter}"] if len(found) > 1 else []
    rows = []
    for env_id in _games(found):
        first = found[0].trained(env_id)
        for each in found:
            runs = each.trained(env_id)
            if not runs:
                continue
            row = [short_name(env_id), each.letter, str(len(runs)), f"{end_of(runs):,}"]
            row.append(shown(estimated(iqm, final_scores(runs))))
            if normal:
                row.append(_normalised(runs))
            if len(found) > 1:
                row.append(
                    _better([final_scores(runs)], [final_scores(first)]) if first and each is not found[0] else ""
                )
            rows.append(row)
    notes = [
        f"Score: mean of the last {WINDOW} games at the last env step that all runs of a configuration reached;"
        f" interquartile mean over runs [95% interval, {RESAMPLES:,} stratified bootstrap samples]."
    ]
    if normal:
        notes.append(HUMAN)
    for env_id in _games(found):
        ends = [end_of(runs) for each in found if (runs := each.trained(env_id))]
        if ends and max(ends) > 1.01 * min(ends):
            notes.append(f"{env_id}: the runs were trained for different numbers of env steps.")
    if len(found) > 1:
        notes.append(
            f"Better than {found[0].letter}: the probability that a run scores more than a run of {found[0].letter}."
        )
    return Table("Scores of training", header, rows, notes)


def _time_to(found: Sequence[Configuration], threshold: float) -> Table:
    rows = []
    for env_id in _games(found):
        for each in found:
            runs = each.trained(env_id)
            if runs:
                reached, (steps, seconds, games) = times_to(threshold, runs)
                row = [short_name(env_id), each.letter, f"{reached} of {len(runs)}"]
                rows.append([*row, *(shown(estimate, count) for estimate in (steps, seconds, games))])
    return Table(
        f"Time to a mean score of {threshold:g}",
        ["game", "config", "reached by", "env steps", "seconds", "games"],
        rows,
        [
            f"When the mean of {WINDOW} games of training first reached {threshold:g}: median over runs [95% interval];"
            " a run that never reached it counts as infinitely late."
        ],
    )


def _evaluations(found: Sequence[Configuration]) -> Table:
    rows = []
    for env_id in _games(found):
        for each in found:
            latest = {point.conditions: point for point in evaluation_points(each.on(env_id))}
            for (protocol, epsilon), point in latest.items():
                human = human_normalized(env_id, point.score.value)
                row = [short_name(env_id), each.letter, protocol or "–", f"{epsilon:g}", str(point.runs)]
                row += [count(point.env_step), shown(point.score), "–" if human is None else score(human)]
                rows.append(row)
    return Table(
        "Latest evaluations",
        ["game", "config", "protocol", "epsilon", "runs", "env step", "score", "human"],
        rows,
        [
            "One run: mean score [95% interval over games]. Several: interquartile mean of those [interval over runs].",
            *([HUMAN] if any(row[-1] != "–" for row in rows) else []),
        ],
    )


def _all_games(found: Sequence[Configuration]) -> Table:
    env_ids = shared_games(found)
    rows = []
    baseline = normalised(found[0], env_ids)
    for each in found if len(env_ids) > 1 else []:
        strata = normalised(each, env_ids)
        row = [each.letter, str(sum(map(len, strata)))]
        row += [shown(estimated(statistic, *strata)) for statistic in (iqm, median, mean, optimality_gap)]
        if len(found) > 1:
            row.append("" if each is found[0] else _better(strata, baseline))
        rows.append(row)
    header = ["config", "runs", "IQM", "median", "mean", "optimality gap"]
    header += [f"better than {found[0].letter}"] if len(found) > 1 else []
    return Table(
        f"{len(env_ids)} games combined, human-normalised",
        header,
        rows,
        [
            f"{', '.join(map(short_name, env_ids))}: final scores of training, 0 is random play, 1 a human [95%"
            " interval, bootstrap stratified by game]. IQM: of all runs of all games; median and mean: of the games'"
            " means; optimality gap: how far runs fall short of 1 on average."
        ],
    )


# ---------------------------------------------------------------------- parts


def _games(found: Sequence[Configuration]) -> list[str]:
    return list(dict.fromkeys(run.env_id for each in found for run in each.runs))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN + 1 else ""
    return ", ".join(names[:SHOWN] if more else names) + more


def normalised(configuration: Configuration, env_ids: Sequence[str]) -> list[Array]:
    """Human-normalised scores of training, an array [runs] for each of `env_ids`, all with known references."""
    return [scores for env_id in env_ids if (scores := normalized_scores(configuration.trained(env_id))) is not None]


def _normalised(runs: Sequence[Run]) -> str:
    scores = normalized_scores(runs)
    return "–" if scores is None else shown(estimated(iqm, scores))


def _better(strata: Sequence[Array], than: Sequence[Array]) -> str:
    """The probability of improvement; unknown with a single run on either side."""
    if max(map(len, (*strata, *than))) == 1:
        return "–"
    return shown(estimated(improvement, *strata, *than))
