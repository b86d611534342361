"""Figure of learning curves, with a panel for each game.

With several games of known references, one more panel shows performance profiles over all of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from atari_dqn.cli.format import thousands
from atari_dqn.comparison.runs import Configuration
from atari_dqn.comparison.scores import curve, evaluation_points, shared_games
from atari_dqn.comparison.tables import normalised
from atari_dqn.config.live import Edit
from atari_dqn.envs.ids import is_atari
from atari_dqn.evaluation.intervals import estimate, interval, profile
from atari_dqn.evaluation.references import references

FRAMES_PER_STEP = 4
MARKERS = {"nature": "o", "machado": "s", "": "o"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d31")
"""Colours of configurations, distinct to the colour-blind too (Okabe & Ito 2008)."""
FEW = 3
"""Up to this number, panels are drawn large, in one column."""
APART = 8
"""Distance in points between evaluations at the same env step."""
LEVELS = 100
"""Scores at which a performance profile is drawn."""


def draw(found: Sequence[Configuration], threshold: float | None = None) -> Figure:
    """Draw a panel for each game, with a colour for each configuration."""
    env_ids = list(dict.fromkeys(run.env_id for each in found for run in each.runs))
    shared = shared_games(found)
    panels = len(env_ids) + (len(shared) > 1)
    columns = 1 if panels <= FEW else math.ceil(math.sqrt(panels))
    rows = math.ceil(panels / columns)
    width, height = (8.0, 4.8) if columns == 1 else (4.6, 3.2)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    coloured = [(each, COLOURS[index % len(COLOURS)]) for index, each in enumerate(found)]
    for env_id, axes in zip(env_ids, all_axes, strict=False):
        _draw_game(axes, env_id, coloured, threshold)
    if len(shared) > 1:
        _draw_profiles(all_axes[len(env_ids)], coloured, shared)
    for axes in all_axes[panels:]:
        axes.remove()
    if columns == 1:
        for axes in all_axes[:panels]:
            axes.legend(loc="best", frameon=False, fontsize="small")
    else:
        lines = [Line2D([], [], color=colour, linewidth=2, label=each.label) for each, colour in coloured]
        figure.legend(handles=lines, loc="outside upper left", ncols=columns, frameon=False)
    figure.supxlabel(_meaning(found), fontsize="small", color="0.35")
    return figure


def _meaning(found: Sequence[Configuration]) -> str:
    rows = [row for each in found for run in each.runs for row in run.evaluations]
    alone = all(len(each.on(run.env_id)) == 1 for each in found for run in each.runs)
    lines = "lines: mean of the last 100 games of training, "
    lines += (
        "not smoothed further" if alone else "interquartile mean over runs with 95% bootstrap interval; thin: each run"
    )
    points = "points: evaluations, with 95% bootstrap interval" if rows else ""
    if any(row["protocol"] == "machado" for row in rows):
        points += "; squares: machado"
    if len({row["epsilon"] for row in rows}) > 1:
        points += "; number: epsilon"
    return f"{lines}\n{points}".rstrip()


def _draw_game(axes: Axes, env_id: str, coloured: Sequence[tuple[Configuration, str]], threshold: float | None) -> None:
    for index, (each, colour) in enumerate(coloured):
        runs = each.trained(env_id)
        together = curve(runs)
        for run in runs:
            width, alpha = (0.7, 0.45) if together else (1.6, 1.0)
            axes.plot(run.steps, run.scores, color=colour, linewidth=width, alpha=alpha)
        if together:
            axes.fill_between(together.steps, together.low, together.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(together.steps, together.centre, color=colour, linewidth=2)
        if each.on(env_id):
            # An empty line, so that the legend also names configurations with evaluations only.
            axes.plot([], [], color=colour, linewidth=2, label=each.label)
            _draw_edits(axes, each, env_id, colour)
            _draw_evaluations(axes, each, env_id, colour, index * APART / 2)
    axes.set_title(env_id, loc="left", fontweight="bold")
    axes.set_xlabel("env steps")
    axes.set_ylabel("episode return (raw score)")
    axes.set_xlim(left=0)
    _tidy(axes)
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    if threshold is not None:
        axes.axhline(threshold, color="0.3", linestyle=(0, (6, 3)), linewidth=1)
        _name_line(axes, f"threshold {threshold:g}", threshold)
    _draw_references(axes, env_id)
    if is_atari(env_id):
        frames = axes.secondary_xaxis("top", functions=(_to_frames, _to_steps))
        frames.set_xlabel(f"frames ({FRAMES_PER_STEP} per env step)")
        frames.xaxis.set_major_formatter(thousands)


def _draw_evaluations(axes: Axes, each: Configuration, env_id: str, colour: str, aside: float) -> None:
    """Draw evaluations as points; those at one env step lie beside each other, the first `aside` points to the left."""
    figure = axes.get_figure()
    assert figure is not None
    points = evaluation_points(each.on(env_id))
    several = len({point.conditions[1] for point in points}) > 1
    beside: dict[float, float] = {}
    for point in points:
        protocol, epsilon = point.conditions
        left = beside.setdefault(point.env_step, aside)
        beside[point.env_step] += APART
        moved = axes.transData + ScaledTranslation(-left / 72, 0, figure.dpi_scale_trans)
        value = point.score.value
        low, high = (value, value) if math.isnan(point.score.low) else (point.score.low, point.score.high)
        axes.errorbar(
            point.env_step,
            value,
            ([value - low], [high - value]),
            fmt=MARKERS.get(protocol, "D"),
            markersize=5,
            color=colour,
            markeredgecolor="white",
            capsize=2.5,
            transform=moved,
        )
        axes.update_datalim([(point.env_step, low), (point.env_step, high)])
        if several:
            axes.annotate(
                f"{epsilon:g}", (point.env_step, high), xytext=(-left, 4), textcoords="offset points",
                ha="center", va="bottom", rotation=90, fontsize="xx-small", color=colour,
            )  # fmt: skip
    axes.autoscale_view()


def _draw_profiles(axes: Axes, coloured: Sequence[tuple[Configuration, str]], env_ids: Sequence[str]) -> None:
    every = {each.letter: normalised(each, env_ids) for each, _ in coloured}
    highest = max(float(scores.max()) for strata in every.values() for scores in strata)
    levels = np.linspace(0, max(highest, 1.0) * 1.02, LEVELS)
    for each, colour in coloured:
        strata = every[each.letter]
        if max(map(len, strata)) > 1:
            low, high = interval(profile(levels), *strata, resamples=2000)
            axes.fill_between(levels, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(levels, estimate(profile(levels), *strata), color=colour, linewidth=2, label=each.label)
    axes.set_title(f"{len(env_ids)} games: performance profile", loc="left", fontweight="bold")
    axes.set_xlabel("human-normalised score (0: random play, 1: human)")
    axes.set_ylabel("share of runs above")
    axes.set_ylim(0, 1.02)
    _tidy(axes)


def _draw_edits(axes: Axes, each: Configuration, env_id: str, colour: str) -> None:
    """Draw a dashed line at each edit; edits too close together for two labels share one."""
    first, *_ = runs = each.on(env_id)
    last = max((row["env_step"] for run in runs for row in (*run.metrics, *run.evaluations)), default=0)
    groups: list[list[Edit]] = []
    for edit in first.edits:
        axes.axvline(edit.env_step, color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
        if groups and edit.env_step - groups[-1][0].env_step < last / 40:
            groups[-1].append(edit)
        else:
            groups.append([edit])
    for group in groups:
        names = ", ".join(dict.fromkeys(edit.name for edit in group))
        label = f"{names} {group[0].old} → {group[0].new}" if len(group) == 1 else f"{len(group)} edits: {names}"
        axes.annotate(
            label, (group[0].env_step, 0), xycoords=("data", "axes fraction"), xytext=(-2, 4), rotation=90,
            textcoords="offset points", ha="right", va="bottom", fontsize="x-small", color=colour,
        )  # fmt: skip


def _draw_references(axes: Axes, env_id: str) -> None:
    """Draw a dotted line for random play and one for a human, if they lie within the panel's scores."""
    bottom, top = axes.get_ylim()
    for name, score in zip(("random", "human"), references(env_id) or (), strict=False):
        if bottom <= score <= top:
            axes.axhline(score, color="0.5", linestyle=":", linewidth=1)
            _name_line(axes, f"{name} {score:g}", score)


def _name_line(axes: Axes, text: str, score: float) -> None:
    """Label a horizontal line beside the panel, where no curve crosses the text."""
    axes.annotate(
        text, (1, score), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", ha="left", va="center", fontsize="small", color="0.4",
    )  # fmt: skip


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _to_frames(env_steps: Any) -> Any:
    return env_steps * FRAMES_PER_STEP


def _to_steps(frames: Any) -> Any:
    return frames / FRAMES_PER_STEP
