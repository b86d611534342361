"""Report of a race: a Markdown table, and a picture of score against core-hours for each game, from what runs left."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.race.budget import HOUR, read_lines
from benchmarks.race.contestants import CONTESTANTS

HEADINGS = (
    "game",
    "contestant",
    "seed",
    "core-hours",
    "mean score (95% interval)",
    "games",
    "env steps",
    "updates",
    "wall-clock hours",
    "hardware",
)
MARKERS = "os^Dvp*XP<>h"
LINES = "-", "--", ":", "-."


@dataclasses.dataclass(frozen=True)
class Run:
    """What one entry left."""

    contestant: str
    game: str
    seed: int
    hardware: str
    points: list[dict[str, Any]]
    """Its evaluations, by core-hours."""

    @property
    def hours(self) -> list[float]:
        return [point["cpu"] / HOUR for point in self.points]


def read_runs(directory: Path) -> list[Run]:
    """The entries below `directory` that have been evaluated, by game, contestant and seed."""
    runs = []
    for file in directory.glob("*/entry.json"):
        entry = json.loads(file.read_text())
        hardware = f"{entry.get('processor', 'unknown')}, {entry.get('cores', '?')} core(s)"
        points = sorted(read_lines(file.parent / "points.jsonl"), key=lambda point: float(point["cpu"]))
        if points:
            runs.append(Run(entry["contestant"], entry["game"], entry["seed"], hardware, points))
    return sorted(runs, key=lambda run: (run.game, run.contestant, run.seed))


def write_report(directory: Path) -> list[Path]:
    """Write `race.md` and a picture for each game into `directory`. Returns the files written, the table first."""
    runs = read_runs(directory)
    games = sorted({run.game for run in runs})
    table = directory / "race.md"
    table.write_text(markdown(runs))
    pictures = [directory / f"{game}.png" for game in games]
    for game, picture in zip(games, pictures, strict=True):
        draw([run for run in runs if run.game == game], picture)
    return [table, *pictures]


def markdown(runs: list[Run]) -> str:
    """One row for each evaluation, and what the contestants are."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS)]
    for run in runs:
        for point, hours in zip(run.points, run.hours, strict=True):
            low, high = point["ci95"]
            rows.append(
                (
                    run.game,
                    run.contestant,
                    str(run.seed),
                    f"{hours:.2f}",
                    f"{point['mean']:.1f} ({low:.1f} to {high:.1f})",
                    str(point["episodes"]),
                    f"{point['env_step']:,}",
                    f"{point['update']:,}",
                    f"{point['wall'] / HOUR:.2f}",
                    run.hardware,
                )
            )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    named = [name for name in CONTESTANTS if any(run.contestant == name for run in runs)]
    return "\n".join(
        [
            "Score against core-hours: CPU seconds of the whole process family, evaluations not counted. Each score is"
            " the mean of whole games under the protocol nature with epsilon 0.01. Written by"
            " `python -m benchmarks.race --report`.",
            "",
            *lines,
            "",
            *(f"- `{name}`: {CONTESTANTS[name].about}" for name in named),
            "",
        ]
    )


def draw(runs: list[Run], file: Path) -> None:
    """Curves of one game's runs, with their 95% intervals; core-hours on a logarithmic axis.

    Where some runs have three points or more, those with fewer are left to the table.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    runs = [run for run in runs if len(run.points) > 2] or runs
    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=120)
    names = list(dict.fromkeys(run.contestant for run in runs))
    seeds = sorted({run.seed for run in runs})
    for run in runs:
        place = names.index(run.contestant)
        label = run.contestant if len(seeds) == 1 else f"{run.contestant}, seed {run.seed}"
        style = LINES[seeds.index(run.seed) % len(LINES)]
        color, marker = f"C{place % 10}", MARKERS[place % len(MARKERS)]
        axes.plot(run.hours, [point["mean"] for point in run.points], color=color, ls=style, marker=marker, label=label)
        low, high = zip(*(point["ci95"] for point in run.points), strict=True)
        axes.fill_between(run.hours, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    hours = [hour for run in runs for hour in run.hours]
    ticks = [
        tick for tick in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if min(hours) / 1.5 <= tick <= 1.5 * max(hours)
    ]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("core-hours")
    axes.set_ylabel("mean score of 30 games (nature, epsilon 0.01)")
    hardware = "; ".join(dict.fromkeys(run.hardware for run in runs))
    axes.set_title(f"{runs[0].game}: score against core-hours\n{hardware}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
