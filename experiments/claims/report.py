"""Results of the claims' runs as `claims.json`, `claims.md` and `claims.png`."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atari_dqn.cli.format import thousands
from atari_dqn.comparison.figure import COLOURS
from atari_dqn.runs.records import read_rows
from atari_dqn.system.files import replace
from atari_dqn.system.machine import describe_system
from experiments.claims.measure import CLAIMS, GAMES, MASTERED, WINDOW, Claim, Outcome, limit_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "python -m experiments.claims"
SMOOTHED = 20
"""Number of games averaged in the lines of the picture."""
DRAWN = 500
"""Largest number of dots per seed; of more games only every second, every third... is drawn."""


def write(outcomes: Mapping[str, Sequence[Outcome]], runs: Path, out: Path) -> list[Path]:
    """Write all three files for the experiments with outcomes; `runs` holds their directories. Raises `OSError`."""
    shown = {name: found for name, found in outcomes.items() if found}
    facts = {
        "command": COMMAND,
        **describe_system(),
        "trained": _revisions(shown, runs),
        "factors": factors(shown),
        "experiments": {
            name: {"claim": dataclasses.asdict(CLAIMS[name]), "outcomes": [dataclasses.asdict(one) for one in found]}
            for name, found in shown.items()
        },
    }
    replace(out / "claims.json", (json.dumps(facts, indent=2) + "\n").encode())
    replace(out / "claims.md", table(shown).encode())
    draw(shown, runs, out / "claims.png")
    return [out / f"claims.{kind}" for kind in ("json", "md", "png")]


def _revisions(outcomes: Mapping[str, Sequence[Outcome]], runs: Path) -> list[str]:
    """Revisions of the code that trained the runs, which may be older than this one."""
    files = [runs / f"{name}-{one.seed}" / "system.json" for name, found in outcomes.items() for one in found]
    return sorted({str(json.loads(file.read_text()).get("git_revision")) for file in files if file.exists()})


def factors(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """Median duration without replay over that with replay: of whole runs (`run`), and until the game was mastered
    (`mastered`). A factor is absent where either has no run."""
    both = [outcomes.get(name, ()) for name in ("cartpole_no_replay", "cartpole_replay")]
    seconds = {
        "run": [[one.end.seconds for one in found] for found in both],
        "mastered": [[one.mastered.seconds for one in found if one.mastered] for found in both],
    }
    return {
        name: round(float(np.median(without) / np.median(with_replay)), 2)
        for name, (without, with_replay) in seconds.items()
        if without and with_replay
    }


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """The results in Markdown: a line for each experiment, then one for each run."""
    lines = [
        "| experiment | claimed | met | env steps until then | games | updates | seconds | 100 games afterwards |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        moments = [one.event for one in found if one.event]
        spans = [_span([getattr(m, what) for m in moments]) for what in ("env_step", "episode", "update", "seconds")]
        met = f"{sum(one.met for one in found)} of {len(found)}"
        afterwards = _span([one.afterwards[0] for one in found])
        lines.append(f"| {name} | {CLAIMS[name].says} | {met} | {' | '.join(spans)} | {afterwards} |")
    times = factors(outcomes)
    if "run" in times:
        lines += ["", f"Without replay a run takes {times['run']:g} times as long as with it (claimed: 12)."]
    if "mastered" in times:
        mark, count = MASTERED
        both = " and ".join(
            f"{name}: {_span([one.mastered.seconds for one in outcomes[name] if one.mastered])} s, in"
            f" {sum(one.mastered is not None for one in outcomes[name])} of {len(outcomes[name])} seeds"
            for name in ("cartpole_no_replay", "cartpole_replay")
        )
        lines[-1] += (
            f" Until {count} consecutive training games first have a mean of {mark:g} it takes {times['mastered']:g}"
            f" times as long ({both})."
        )
    lines += [
        "",
        f"Median (lowest to highest) over the seeds in which it happened at all, in time or not. The {GAMES} games are"
        " played by the network at the end of the run, without exploration.",
        "",
        f"| experiment | seed | met | env steps | games | updates | seconds | the run: env steps, seconds | best game |"
        f" last {WINDOW} games | {GAMES} games afterwards (95% interval) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        lines += [_line(name, CLAIMS[name], one) for one in found]
    return "\n".join(lines) + "\n"


def _line(name: str, claim: Claim, one: Outcome) -> str:
    event = one.event
    when = (
        f"{event.env_step:,} | {event.episode:,} | {event.update:,} | {event.seconds:,.0f}"
        if event
        else "– | – | – | –"
    )
    met = "yes" if one.met else "late" if event else "no"
    mean, low, high = one.afterwards
    return (
        f"| {name} | {one.seed} | {met} | {when} | {one.end.env_step:,}, {one.end.seconds:,.0f} | {one.highest:,.0f} |"
        f" {one.last_games:,.1f} | {mean:,.1f} ({low:,.1f} to {high:,.1f}) |"
    )


def _span(numbers: Sequence[float]) -> str:
    if not numbers:
        return "–"
    if min(numbers) == max(numbers):
        return f"{numbers[0]:,.0f}"
    return f"{np.median(numbers):,.0f} ({min(numbers):,.0f} to {max(numbers):,.0f})"


def draw(outcomes: Mapping[str, Sequence[Outcome]], runs: Path, file: Path) -> None:
    """Draw a panel for each experiment: scores of training games against env steps, a colour for each seed."""
    from matplotlib.figure import Figure

    columns = min(3, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.7 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for (name, found), axes in zip(outcomes.items(), panels, strict=False):
        _draw_panel(axes, name, found, runs)
    for axes in panels[len(outcomes) :]:
        axes.set_axis_off()
    seeds, names = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
    if names:
        figure.legend(seeds, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize="small")
    figure.supxlabel(
        f"score against env steps; dots: training games (at most {DRAWN:,} per seed), lines: means of {SMOOTHED} of"
        " them; circles: evaluations;\ndashed: the claim, vertical where its limit of games or updates is reached;"
        f" stars: when it was met, late or not; diamonds: {GAMES} games afterwards",
        fontsize="small",
        color="0.35",
    )
    figure.savefig(file, dpi=130)


def _draw_panel(axes: Axes, name: str, found: Sequence[Outcome], runs: Path) -> None:
    claim = CLAIMS[name]
    for colour, one in zip(itertools.cycle(COLOURS), found, strict=False):
        run_dir = runs / f"{name}-{one.seed}"
        games = read_rows(run_dir / "episodes.jsonl")
        steps, scores = (np.array([game[key] for game in games], dtype=float) for key in ("env_step", "return"))
        every = -(-len(scores) // DRAWN)
        axes.plot(steps[::every], scores[::every], ".", color=colour, markersize=2, alpha=0.3)
        if len(scores) >= SMOOTHED:
            means = np.convolve(scores, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
            axes.plot(steps[SMOOTHED - 1 :], means, color=colour, linewidth=1.2, label=f"seed {one.seed}")
        marks = [(one.end.env_step, one.afterwards[0], "D", 5)]
        if claim.event == "evaluation":
            rows = [row for row in read_rows(run_dir / "evaluations.jsonl") if len(row["returns"]) != GAMES]
            marks += [(row["env_step"], row["mean"], "o", 4) for row in rows]
        if one.event and claim.event in ("game", "evaluation"):
            marks.append((one.event.env_step, claim.score, "*", 11))
        for step, score, shape, size in marks:
            axes.plot(step, score, shape, color=colour, markersize=size, markeredgecolor="white", zorder=5)
        if limit := limit_step(claim, run_dir):
            axes.axvline(limit, color=colour, linestyle="--", linewidth=0.8)
    if claim.score:
        axes.axhline(claim.score, color="0.3", linestyle="--", linewidth=1)
    met = sum(one.met for one in found)
    axes.set_title(f"{name}\n{claim.says}: met by {met} of {len(found)}", loc="left", fontsize="medium")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(thousands)
