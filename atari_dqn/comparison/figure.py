"""Figure of learning curves, with a panel for each game."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from atari_dqn.cli.format import thousands
from atari_dqn.comparison.runs import Configuration, games_of
from atari_dqn.comparison.scores import curve, evaluation_points
from atari_dqn.envs.ids import is_atari
from atari_dqn.evaluation.references import references

FRAMES_PER_STEP = 4
MARKERS = {"nature": "o", "machado": "s", "": "o"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d31")
"""Colours of configurations, distinct to the colour-blind too (Okabe & Ito 2008)."""
FEW = 3
"""Up to this number, panels are drawn large, in one column."""
APART = 8
"""Distance in points between evaluations at the same env step."""
EDIT_LINES, NO_BREAK = 6, "\u00a0"
"""Most lines that explain edits, and the space inside of an explanation."""
MEANING = (
    "lines: mean of the last 100 games of training, not smoothed further (dotted: fewer yet, the short ones first);\n"
    "several runs are thin, under their interquartile mean with 95% bootstrap interval\n"
    "points: evaluations, with 95% bootstrap interval; squares: machado; number: epsilon"
)


def draw(found: Sequence[Configuration], threshold: float | None = None) -> Figure:
    """Draw a panel for each game, with a colour for each configuration."""
    env_ids = games_of(found)
    columns = 1 if len(env_ids) <= FEW else math.ceil(math.sqrt(len(env_ids)))
    rows = math.ceil(len(env_ids) / columns)
    width, height = (8.0, 4.8) if columns == 1 else (4.6, 3.2)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    for index, env_id in enumerate(env_ids):
        _draw_game(figure.add_subplot(rows, columns, index + 1), env_id, found, threshold, letters=round(14 * width))
    figure.supxlabel(MEANING, fontsize="small", color="0.35")
    return figure


def _draw_game(axes: Axes, env_id: str, found: Sequence[Configuration], threshold: float | None, letters: int) -> None:
    """Draw one panel. `letters` is how many fit into a line of small text below it."""
    edits: list[str] = []
    for index, each in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        runs = each.trained(env_id)
        together = curve(runs)
        for run in runs:
            width, alpha = (0.7, 0.45) if together else (1.6, 1.0)
            look: dict[str, Any] = {"color": colour, "linewidth": width, "alpha": alpha}
            if run.settled:
                axes.plot(run.steps[: run.settled + 1], run.scores[: run.settled + 1], ":", **look)
            if run.settled < len(run.steps):
                axes.plot(run.steps[run.settled :], run.scores[run.settled :], **look)
        if together:
            axes.fill_between(together.steps, together.low, together.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(together.steps, together.centre, color=colour, linewidth=2)
        if each.on(env_id):
            # An empty line, so that the legend also names configurations with evaluations only.
            axes.plot([], [], color=colour, linewidth=2, label=each.label)
            _draw_edits(axes, each, env_id, colour, edits, index * 12)
            _draw_evaluations(axes, each, env_id, colour, index * APART / 2)
    axes.set_title(env_id, loc="left", fontweight="bold")
    axes.set_xlabel("env steps")
    if edits:
        text = textwrap.fill(f"live edits  {';  '.join(edits)}", letters, max_lines=EDIT_LINES, placeholder=" …")
        axes.annotate(
            text, (0.5, 0), xycoords=axes.xaxis.label, xytext=(0, -3), textcoords="offset points",
            ha="center", va="top", fontsize="x-small",
        )  # fmt: skip
    axes.set_ylabel("episode return (raw score)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    axes.legend(loc="best", frameon=False, fontsize="small")
    if threshold is not None:
        _draw_line(axes, "threshold", threshold, linestyle="--")
    bottom, top = axes.get_ylim()
    for name, score in zip(("random", "human"), references(env_id) or (), strict=False):
        if bottom <= score <= top:
            _draw_line(axes, name, score, linestyle=":")
    if is_atari(env_id):
        to_frames, to_steps = (lambda steps: steps * FRAMES_PER_STEP), (lambda frames: frames / FRAMES_PER_STEP)
        frames = axes.secondary_xaxis("top", functions=(to_frames, to_steps))
        frames.set_xlabel(f"frames ({FRAMES_PER_STEP} per env step)")
        frames.xaxis.set_major_formatter(thousands)


def _draw_line(axes: Axes, name: str, score: float, linestyle: str) -> None:
    """Draw a horizontal line with its name beside the panel, where no curve crosses the text."""
    axes.axhline(score, color="0.5", linestyle=linestyle, linewidth=1)
    axes.annotate(
        f"{name} {score:g}", (1, score), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", ha="left", va="center", fontsize="small", color="0.4",
    )  # fmt: skip


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


def _draw_edits(axes: Axes, each: Configuration, env_id: str, colour: str, texts: list[str], below: float) -> None:
    """Draw a dashed line at each edit, with its number `below` points under the top: close ones share a label.

    Adds an explanation of each to `texts`.
    """
    first, *_ = runs = each.on(env_id)
    room = max((row["env_step"] for run in runs for row in (*run.metrics, *run.evaluations)), default=0) / 40
    labels: list[tuple[int, int, int]] = []
    for number, edit in enumerate(first.edits, start=len(texts) + 1):
        axes.axvline(edit.env_step, color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
        texts.append(f"{number}: {edit.name} {edit.old} → {edit.new}".replace(" ", NO_BREAK))
        if labels and edit.env_step - labels[-1][0] < room:
            labels[-1] = (*labels[-1][:2], number)
        else:
            labels.append((edit.env_step, number, number))
    for env_step, lowest, highest in labels:
        axes.annotate(
            f"{lowest}" if lowest == highest else f"{lowest}–{highest}", (env_step, 1),
            xycoords=("data", "axes fraction"), xytext=(0, -below), textcoords="offset points",
            ha="center", va="center", fontsize="x-small", color=colour,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 0.6},
        )  # fmt: skip
