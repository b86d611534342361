"""Tables and plots of `benchmarks.scale`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], float | None], str]
"""Header, value of a row (None if it was not measured), format."""


def rate(kind: str, name: str, scale: float = 1) -> Callable[[Row], float | None]:
    """A column: the median of `name` in turns of `kind`, times `scale`."""
    return lambda row: scale * row[kind][name] if kind in row else None


def microseconds(kind: str) -> Callable[[Row], float | None]:
    """A column: microseconds per update in turns of `kind`."""
    return lambda row: 1e6 / row[kind]["updates_per_second"] if kind in row else None


def share_of_update(row: Row) -> float | None:
    """Share of an update's time spent on drawing the batch and updating the priorities."""
    if "draw" not in row:
        return None
    return float(row["learner"]["updates_per_second"] / row["draw"]["updates_per_second"])


LOOP: tuple[Column, ...] = (
    ("loop,\nenv\nsteps/s", rate("loop", "env_steps_per_second"), ",.0f"),
    ("loop,\nupdates/s", rate("loop", "updates_per_second"), ",.1f"),
)
MEMORY: tuple[Column, ...] = (
    ("all pro-\ncesses,\nGB", rate("memory", "shared_out", 1e-9), ".2f"),
    ("sum of\npeaks,\nGB", rate("memory", "peak", 1e-9), ".2f"),
)
ENVS: Column = ("envs\nalone,\nsteps/s", rate("envs", "env_steps_per_second"), ",.0f")
LEARNER: tuple[Column, ...] = (
    ("learner\nalone,\nupdates/s", rate("learner", "updates_per_second"), ",.1f"),
    ("draw,\nµs", microseconds("draw"), ",.0f"),
    ("share\nof an\nupdate", share_of_update, ".1%"),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "workers": (*LOOP, ENVS, *MEMORY),
    "envs": (*LOOP, ENVS, *MEMORY),
    "batch": (*LOOP, *LEARNER, *MEMORY),
    "capacity": (*LOOP, *LEARNER, ("draw,\n8x8,\nµs", microseconds("tree"), ",.0f"), *MEMORY),
}
TITLES = {
    "workers": "workers of one env each",
    "envs": "envs in each of 2 workers",
    "batch": "transitions in a batch",
    "capacity": "transitions in the replay",
}


def table(sweep: str, rows: list[Row]) -> list[list[str]]:
    """Rows of a sweep's table, header first."""
    result = [[sweep, *(header for header, _, _ in COLUMNS[sweep])]]
    for row in rows:
        values = [(value(row), form) for _, value, form in COLUMNS[sweep]]
        cells = ["–" if number is None else format(number, form) for number, form in values]
        result.append([f"{row['value']:,}", *cells])
    return result


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    system = report["system"]
    config = report["config"]
    console.print(
        f"{system['processor']}, {system['cores']} cores, {report['torch_threads']} torch threads. Where a sweep"
        f" does not say otherwise: {config['num_workers']} workers of {config['envs_per_worker']} envs, batches of"
        f" {config['batch_size']}, {config['replay_ratio']:g} transitions drawn an env step, a full replay of"
        f" {config['replay_capacity']:,}",
        highlight=False,
    )
    for sweep in COLUMNS:
        rows = [row for row in report["rows"] if row["sweep"] == sweep]
        if not rows:
            continue
        header, *body = table(sweep, rows)
        shown = Table(box=box.SIMPLE_HEAD, padding=0, title=TITLES[sweep], title_justify="left")
        for name in header:
            shown.add_column(name, justify="right", no_wrap=True)
        for cells in body:
            shown.add_row(*cells)
        console.print(shown)
        for row in rows:
            if "did_not_fit" in row:
                gigabytes = {name: f"{size / 1e9:.1f}" for name, size in row["did_not_fit"].items()}
                console.print(
                    f"{row['value']:,} transitions of whole frames need {gigabytes['needed']} GB, but only"
                    f" {gigabytes['free']} GB are free: measured with 8x8 frames only",
                    highlight=False,
                )
    for bound in report["bounds"]:
        verdict = "holds" if bound["holds"] else "MISSED"
        console.print(
            f"{bound['name']}: {bound['measured']:,.0f}, at most {bound['at_most']:,.0f}: {verdict}", highlight=False
        )


def plot(report: dict[str, Any], file: Path) -> None:
    """Draw a column of panels for each sweep: rates, memory and, where it was measured, the cost of a draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    sweeps = [sweep for sweep in COLUMNS if any(row["sweep"] == sweep for row in report["rows"])]
    figure, axes = plt.subplots(3, len(sweeps), figsize=(3.6 * len(sweeps), 8), squeeze=False, layout="constrained")
    for sweep, column in zip(sweeps, axes.T, strict=True):
        rows = [row for row in report["rows"] if row["sweep"] == sweep]
        rates, memory, draws = column
        _lines(rates, rows, (*LOOP, ENVS, LEARNER[0]))
        _lines(memory, rows, (("all processes", rate("memory", "shared_out", 1e-9), ""),))
        _lines(draws, rows, (("84x84 frames", microseconds("draw"), ""), ("8x8 frames", microseconds("tree"), "")))
        rates.set(ylabel="per second", yscale="log")
        rates.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        rates.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        rates.yaxis.set_minor_formatter("")
        memory.set(ylabel="resident memory, GB", ylim=(0, None))
        draws.set(ylabel="draw and priorities, µs", ylim=(0, None))
        for axis in column:
            if axis.get_visible():
                axis.set_xlabel(TITLES[sweep])
    figure.suptitle(f"{report['system']['processor']}, {report['system']['cores']} cores")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _lines(axis: Any, rows: list[Row], columns: tuple[Column, ...]) -> None:
    """Draw the columns that were measured; hide the panel if none was."""
    for header, value, _ in columns:
        found = [(row["value"], number) for row in rows if (number := value(row)) is not None]
        if found:
            axis.plot(*zip(*found, strict=True), marker="o", markersize=3, label=header.replace("\n", " "))
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    axis.set_visible(bool(axis.lines))
    if axis.lines:
        axis.legend(fontsize=7)
