"""Tables and picture of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GIGABYTE = 1e9


def print_report(report: dict[str, Any], console: Any) -> None:
    """Print the standings, the goals and the failures."""
    from rich import box
    from rich.table import Table

    title = f"{report['system']['processor']}, {report['system']['cores']} cores; {report['rounds']} rounds of"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{title} {report['seconds']:g} s", title_justify="left")
    for heading in ("", "algorithm"):
        table.add_column(heading, no_wrap=True)
    for heading in ("env steps/s", "updates/s", "GB", "RSS GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in report["standings"].values():
        table.add_row(
            peer["title"],
            algorithm(peer),
            f"{peer['env_steps_per_second']:,.0f}",
            f"{peer['updates_per_second']:.1f}",
            f"{peer['peak_memory_bytes'] / GIGABYTE:.2f}",
            f"{peer['peak_resident_bytes'] / GIGABYTE:.2f}",
        )
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("goal", "figure", "least", "most", "holds"):
        table.add_column(heading, justify="left" if heading == "goal" else "right", no_wrap=True)
    for goal in report["goals"]:
        bounds = ("" if bound is None else f"{bound:g}" for bound in (goal["at_least"], goal["at_most"]))
        bounded = goal["at_least"] is not None or goal["at_most"] is not None
        verdict = ("yes" if goal["holds"] else "NO") if bounded else ""
        table.add_row(goal["goal"], f"{goal['figure']:.2f}", *bounds, verdict)
    console.print(table)
    for name, reason in report["failed"].items():
        console.print(f"{name} failed: {reason}", highlight=False)


def algorithm(peer: dict[str, Any]) -> str:
    """The algorithm in a few words."""
    words = {"prioritized": "PER", "double": "double", "dueling": "dueling"}
    return " ".join(word for kind, word in words.items() if peer[kind]) or "plain"


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw bars of env steps/s (with the range over the rounds) and of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    standings = report["standings"]
    names = [f"{peer['title']}\n{algorithm(peer)}" for peer in standings.values()]
    colors = ["C0" if name.startswith("ours") else "0.6" for name in standings]
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 0.6 * len(names) + 1.4), sharey=True)
    rates = [[turn["env_steps"] / turn["wall"] for turn in peer["turns"]] for peer in standings.values()]
    medians = [peer["env_steps_per_second"] for peer in standings.values()]
    spread = [[median - min(of), max(of) - median] for median, of in zip(medians, rates, strict=True)]
    bars = speed.barh(names, medians, color=colors, xerr=list(zip(*spread, strict=True)))
    speed.bar_label(bars, fmt="{:,.0f}", padding=4)
    speed.set_xlabel("env steps/s, median and range of the rounds")
    gigabytes = [peer["peak_memory_bytes"] / GIGABYTE for peer in standings.values()]
    memory.bar_label(memory.barh(names, gigabytes, color=colors), fmt="{:.2f}", padding=4)
    memory.set_xlabel("peak memory of all processes, GB")
    for axes in (speed, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    speed.invert_yaxis()
    system, work = report["system"], report["work"]
    figure.suptitle(
        f"DQN on Breakout, one update of {work['batch_size']} per {work['env_steps_per_update']} env steps,"
        f" replay {work['replay_capacity']:,}: {system['processor']}, {system['cores']} cores",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
