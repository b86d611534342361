"""Tables of what configurations score and how they differ, for a terminal and as Markdown."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from atari_dqn.cli.format import count, score
from atari_dqn.comparison.runs import Configuration, Run, games_of, remarks
from atari_dqn.comparison.scores import Estimate, end_of, estimated, evaluation_points, final_scores, times_to
from atari_dqn.envs.ids import short_name
from atari_dqn.evaluation.episodes import WINDOW
from atari_dqn.evaluation.intervals import RESAMPLES, improvement, iqm
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
    """All tables that are not empty: settings, training, time to `threshold`, and evaluations.

    A single run has a line for each, and a table only for evaluations under several conditions.
    """
    if len(found) == 1 == len(found[0].runs):
        return _alone(found[0], threshold)
    made = [_training(found), *([] if threshold is None else [_time_to(found, threshold)]), _evaluations(found)]
    return [_settings(found), *(_lean(table, found) for table in made if table.rows)]


def _alone(only: Configuration, threshold: float | None) -> list[Table]:
    (run,) = only.runs
    lines = []
    for _, _, runs in _trained([only]):
        line = f"training: {_with_human(run, estimated(iqm, final_scores(runs)))} at {end_of(runs):,} env steps"
        lines.append(f"{line}, last {WINDOW} games")
    if lines and threshold is not None:
        _, (steps, seconds, games) = times_to(threshold, only.runs)
        taken = f"{count(steps.value)} env steps, {count(seconds.value)} s, {count(games.value)} games"
        lines.append(f"to a mean of {threshold:g}: {'never' if math.isinf(steps.value) else taken}")
    points = {point.conditions: point for point in evaluation_points(only.runs)}
    if len(points) == 1:
        ((protocol, epsilon), point), *_ = points.items()
        line = f"evaluation: {_with_human(run, point.score)} at {count(point.env_step)} env steps"
        lines.append(f"{line}, {protocol and protocol + ', '}epsilon {epsilon:g}")
    title = f"{run.name}: {run.env_id}, seed {run.config.run.seed}, mean scores [95% interval over games]"
    return [Table(title, [], [], lines), *([_lean(_evaluations([only]), [only])] if len(points) > 1 else [])]


def _with_human(run: Run, score: Estimate) -> str:
    human = _human(run.env_id, score)
    return shown(score) + ("" if human == "–" else f" (human-normalised {human})")


def _lean(table: Table, found: Sequence[Configuration]) -> Table:
    """The table without columns that tell nothing: empty ones, and the game or configuration if there is only one."""
    games = games_of(found)
    columns = list(zip(*table.rows, strict=True))
    needed = [len(games) > 1, len(found) > 1, *(set(column) != {"–"} for column in columns[2:])]
    header, *rows = (list(itertools.compress(row, needed)) for row in (table.header, *table.rows))
    return Table(table.title if len(games) > 1 else f"{table.title}, {games[0]}", header, rows, table.notes)


def terminal(table: Table) -> Group:
    if not table.rows:
        return Group(Text(table.title, style="bold"), *table.notes, "")
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
        for cells in (table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows) if table.rows else ():
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines += [*([""] if table.rows else []), *(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    return "\n".join(lines)


def shown(estimate: Estimate, form: Callable[[float], str] = score) -> str:
    """`12.35 [10.00, 14.00]`; of one run, `12.35`."""
    # If the lower end is infinite, so is the rest.
    interval = "" if not math.isfinite(estimate.low) else f" [{form(estimate.low)}, {form(estimate.high)}]"
    return form(estimate.value) + interval


def _settings(found: Sequence[Configuration]) -> Table:
    rows = [
        ["runs", *(_some([run.name for run in each.runs]) for each in found)],
        ["games", *(_some([short_name(env_id) for env_id in games_of([each])]) for each in found)],
        ["seeds", *(" ".join(map(str, sorted({run.config.run.seed for run in each.runs}))) for each in found)],
        *([name, *(each.settings[name] for each in found)] for name in found[0].settings),
    ]
    title = "Settings in which the runs differ" if len(found) > 1 else "Runs of one configuration"
    return Table(title, ["", *(each.letter or "runs" for each in found)], rows, remarks(found))


def _training(found: Sequence[Configuration]) -> Table:
    rows = []
    for env_id, each, runs in _trained(found):
        scores, first = final_scores(runs), found[0].trained(env_id)
        score, better = estimated(iqm, scores), "–"
        if first and each is not found[0] and max(len(runs), len(first)) > 1:
            better = shown(estimated(improvement, scores, final_scores(first)))
        row = [short_name(env_id), each.letter, str(len(runs)), f"{end_of(runs):,}"]
        rows.append([*row, shown(score), _human(env_id, score), better])
    first_letter = found[0].letter
    notes = [
        f"Score: mean of the last {WINDOW} games at the last env step that all runs of a configuration reached;"
        f" interquartile mean over runs [95% interval, {RESAMPLES:,} bootstrap samples].",
        *([HUMAN] if any(row[5] != "–" for row in rows) else []),
        *([f"Better than {first_letter}: the probability that a run scores more than a run of {first_letter}."]
          if any(row[6] != "–" for row in rows) else []),
    ]  # fmt: skip
    header = ["game", "config", "runs", "env steps", "score", "human", f"better than {first_letter}"]
    return Table("Scores of training", header, rows, notes)


def _time_to(found: Sequence[Configuration], threshold: float) -> Table:
    rows = []
    for env_id, each, runs in _trained(found):
        reached, times = times_to(threshold, runs)
        row = [short_name(env_id), each.letter, f"{reached} of {len(runs)}"]
        rows.append([*row, *(shown(time, count) for time in times)])
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
    for env_id, each in itertools.product(games_of(found), found):
        latest = {point.conditions: point for point in evaluation_points(each.on(env_id))}
        for (protocol, epsilon), point in latest.items():
            row = [short_name(env_id), each.letter, protocol or "–", f"{epsilon:g}", str(point.runs)]
            rows.append([*row, count(point.env_step), shown(point.score), _human(env_id, point.score)])
    return Table(
        "Latest evaluations",
        ["game", "config", "protocol", "epsilon", "runs", "env step", "score", "human"],
        rows,
        [
            "One run: mean score [95% interval over games]. Several: interquartile mean of those [interval over runs].",
            *([HUMAN] if any(row[-1] != "–" for row in rows) else []),
        ],
    )


def _trained(found: Sequence[Configuration]) -> Iterator[tuple[str, Configuration, list[Run]]]:
    """Each game with each configuration that has runs with a score of training in it, and these runs."""
    for env_id, each in itertools.product(games_of(found), found):
        if runs := each.trained(env_id):
            yield env_id, each, runs


def _human(env_id: str, estimate: Estimate) -> str:
    human = human_normalized(env_id, estimate.value)
    return "–" if human is None else score(human)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN + 1 else ""
    return ", ".join(names[:SHOWN] if more else names) + more
