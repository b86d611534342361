"""`python -m atari_dqn.plot RUN...`: run directories in, their learning curves as one PNG out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from atari_dqn import cli
from atari_dqn.config import ConfigError, Setting, help_from_settings
from atari_dqn.edits import read_edits
from atari_dqn.live import Edit
from atari_dqn.runs import read_config, read_rows
from atari_dqn.scores import references

if TYPE_CHECKING:  # matplotlib takes a while to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAMES_PER_STEP = 4
SCORE = "charts/episodic_return"
MARKERS = {"nature": "o", "machado": "s"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d31")
"""Distinct also to the colour-blind (Okabe & Ito 2008)."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Draw learning curves: raw score against env steps (and frames), one panel for each env.

    A line is the mean score of the last 100 games of training, as logged, not smoothed further. A point is an
    evaluation, with the 95% interval of its mean. A dashed line upwards marks a live edit.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, Setting("run directories")]
    out: Annotated[Path | None, Setting("the PNG to write (default: RUN/plots/return.png of the first run)")] = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What is drawn of one run."""

    name: str
    env_id: str
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    edits: list[Edit]
    """those taken"""


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.plot") -> int:
    """Draw as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = cli.parse(PlotCommand, argv, prog=prog)
    if not command.runs:
        raise ConfigError("name at least one run directory, such as runs/Breakout-1-...")
    runs = [read_run(run_dir) for run_dir in command.runs]
    out = command.out or command.runs[0] / "plots" / "return.png"
    if out.is_dir():
        raise ConfigError(f"--out {out} is a directory; name the PNG to write in it")
    figure = draw(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out {out} cannot be written: {error}") from None
    print(out)
    return cli.DONE


def read_run(run_dir: Path) -> Run:
    """Read a run. Raises `ConfigError` when it is none, or has no score to draw yet."""
    config = read_config(run_dir)
    metrics = [row for row in read_rows(run_dir / "metrics.jsonl") if SCORE in row]
    evaluations = read_rows(run_dir / "evaluations.jsonl")
    if not metrics and not evaluations:
        raise ConfigError(f"{run_dir} has no score to draw yet: no game of it is finished")
    edits = [edit for edit in read_edits(run_dir) if edit.taken]
    return Run(run_dir.resolve().name, config.env.env_id, metrics, evaluations, edits)


def draw(runs: Sequence[Run]) -> Figure:
    """One panel for each env, one colour for each run."""
    from matplotlib.figure import Figure

    env_ids = list(dict.fromkeys(run.env_id for run in runs))
    figure = Figure(figsize=(8, 4.8 * len(env_ids)), layout="constrained")
    panels = figure.subplots(len(env_ids), squeeze=False)[:, 0]
    for env_id, axes in zip(env_ids, panels, strict=True):
        shown = [(run, COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs) if run.env_id == env_id]
        _draw_panel(axes, env_id, shown)
    figure.supxlabel(
        "lines: mean of the last 100 games of training, not smoothed further"
        "      points: evaluations, with 95% bootstrap interval (squares: machado)",
        fontsize="small",
        color="0.35",
    )
    return figure


def _draw_panel(axes: Axes, env_id: str, runs: Sequence[tuple[Run, str]]) -> None:
    for run, colour in runs:
        steps = [row["env_step"] for row in run.metrics]
        # Drawn even when empty: the legend names every run.
        axes.plot(steps, [row[SCORE] for row in run.metrics], color=colour, linewidth=1.6, label=run.name)
        _draw_edits(axes, run, colour)
        for row in run.evaluations:
            low, high = row["ci95"]
            axes.errorbar(
                row["env_step"],
                row["mean"],
                ([row["mean"] - low], [high - row["mean"]]),
                fmt=MARKERS.get(row["protocol"], "D"),
                color=colour,
                markeredgecolor="white",
                capsize=3,
            )
    axes.set_title(env_id, loc="left", fontweight="bold")
    axes.set_xlabel("env steps")
    axes.set_ylabel("episode return (raw score)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(_count)
    _draw_references(axes, env_id)
    if env_id.startswith("ALE/"):
        frames = axes.secondary_xaxis("top", functions=(_to_frames, _to_steps))
        frames.set_xlabel(f"frames ({FRAMES_PER_STEP} to an env step)")
        frames.xaxis.set_major_formatter(_count)
    axes.legend(loc="upper left", frameon=False, fontsize="small")


def _draw_edits(axes: Axes, run: Run, colour: str) -> None:
    """A dashed line at each edit; those too close together for a name each share one."""
    last = max((row["env_step"] for row in (*run.metrics, *run.evaluations)), default=0)
    groups: list[list[Edit]] = []
    for edit in run.edits:
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
    """A dotted line for random play and for a human's, where it lies within what the curves span."""
    bottom, top = axes.get_ylim()
    for name, score in zip(("random", "human"), references(env_id) or (), strict=False):
        if bottom <= score <= top:
            axes.axhline(score, color="0.5", linestyle=":", linewidth=1)
            axes.annotate(
                f"{name} {score:g}", (1, score), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                textcoords="offset points", ha="right", fontsize="small", color="0.4",
            )  # fmt: skip


def _to_frames(env_steps: Any) -> Any:
    return env_steps * FRAMES_PER_STEP


def _to_steps(frames: Any) -> Any:
    return frames / FRAMES_PER_STEP


def _count(value: float, position: float | None = None) -> str:
    """`2500000` -> `2.5M`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


if __name__ == "__main__":
    cli.run_command(main)
