"""Report of a benchmark: its tables, the bottleneck of the machine, and the setting to change."""

from __future__ import annotations

import statistics
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from atari_dqn.diagnostics.profiler import PARTS

WIDE = 118
"""Width of a terminal, in columns, from which each part of the loop is explained."""
BAR = 16
"""Length of the longest bar, in columns."""


def diagnose(report: dict[str, Any]) -> dict[str, Any]:
    """Find what limits the loop, and the setting to change.

    Per env step, no loop can take less time than its envs alone, than the updates due alone, or than the CPU time of
    both divided by the number of cores. The largest of these three is the limit.

    Args:
        report: Figures of `benchmark`.

    Returns:
        `limits` (the three, in seconds per env step), `times_limit` (time of the loop over the largest of them),
        `bottleneck` and `advice` (text).
    """
    config, rates = report["config"], report["rates"]
    workers, learner, loop = rates["workers alone"], rates["learner alone"], rates["the loop"]
    due = config["replay_ratio"] / config["batch_size"]
    step = 1 / workers["env_steps_per_second"]
    update = due / learner["updates_per_second"]
    step_cpu, update_cpu = step * workers["cores_busy"], update * learner["cores_busy"]
    limits = {"envs": step, "learner": update, "cores": (step_cpu + update_cpu) / report["system"]["cores"]}
    limit = max(limits, key=lambda name: limits[name])
    taken = 1 / loop["env_steps_per_second"]
    others = statistics.median(rate["cores_taken"] for rate in rates.values())
    serial = sum(report["account"][part] for part in ("transport", "inference", "append", "other"))
    if others > 0.2 and report["torch_threads"] >= report["system"]["cores"]:
        # torch's threads meet at barriers: all wait for the one whose core another program is using.
        words = f"other programs, which used {others:.1f} cores during the measurement"
        advice = f"--torch-threads {max(1, report['torch_threads'] - 1)}, or stop the other programs"
    elif taken > 1.25 * limits[limit] and serial > 0.2:
        words = f"{serial:.0%} of the time the envs wait while this process chooses actions and stores frames"
        advice = "a higher --envs-per-worker: one forward pass then serves more envs"
    elif taken > 1.25 * limits[limit] and report["torch_threads"] > 1:
        words = "torch's threads and the workers compete for cores"
        advice = f"--torch-threads {report['torch_threads'] - 1}"
    else:
        share = update_cpu / (step_cpu + update_cpu)
        words = {
            "envs": "the workers: the learner waits for env steps",
            "learner": "the learner: env steps wait for its updates",
            "cores": f"the cores, all busy: {share:.0%} with updates, {1 - share:.0%} with env steps",
        }[limit]
        advice = _learn_less(report) if limit == "learner" or (limit == "cores" and share > 0.5) else _step_more(report)
    return {"limits": limits, "times_limit": taken / limits[limit], "bottleneck": words, "advice": advice}


def _learn_less(report: dict[str, Any]) -> str:
    config = report["config"]
    if report["precision"] == "fp32" and config["precision"] != "fp32" and not config["deterministic"]:
        return "a processor or GPU with native bf16 would help; here, a lower --replay-ratio"
    if report["precision"] == "fp32":
        return "--precision auto, which uses bf16 where it is faster; or a lower --replay-ratio"
    return (
        f"a lower --replay-ratio than {config['replay_ratio']:g}, or a larger --batch-size than"
        f" {config['batch_size']} (fewer, larger updates)"
    )


def _step_more(report: dict[str, Any]) -> str:
    config, available = report["config"], report["system"]["cores"]
    if config["num_workers"] < available:
        return f"--num-workers {available}: some of the {available} cores have no worker"
    return "more cores; until then a higher --replay-ratio learns more from each env step"


def tables(report: dict[str, Any], width: int) -> list[Group]:
    """Tables for a terminal of `width` columns: rates, time of the loop, use of the cores, time of an update."""
    return [_rates(report), _loop(report, width), _cores(report), _update(report)]


def _rates(report: dict[str, Any]) -> Group:
    config, system = report["config"], report["system"]
    table = _table("", "env steps/s", "updates/s", "cores busy", "µs/env step")
    for kind, rate in report["rates"].items():
        steps, updates = rate["env_steps_per_second"], rate["updates_per_second"]
        cost = f"{1e6 / steps:,.0f}" if steps else ""
        table.add_row(kind, _number(steps), _number(updates), f"{rate['cores_busy']:.2f}", cost)
    table.add_section()
    for name, seconds in report["limits"].items():
        table.add_row(f"limit: {name}", _number(1 / seconds if seconds else 0), "", "", f"{1e6 * seconds:,.0f}")
    return _titled(
        f"{config['env_id']}: {config['num_workers']} workers × {config['envs_per_worker']} envs,"
        f" {report['device']} {report['precision']}, torch threads: {report['torch_threads']}",
        f"{system['processor']}, {system['cores']} cores · torch {system['packages']['torch']} ·"
        f" commit {system['git_revision']}\n"
        f"memory of all processes: {_gigabytes(report)}",
        table,
        f"the loop takes {report['times_limit']:.2f} times the largest of its three limits",
    )


def _loop(report: dict[str, Any], width: int) -> Group:
    step = 1e6 / report["rates"]["the loop"]["env_steps_per_second"]
    explained = width >= WIDE
    table = _table("", "share", "µs/env step", "")
    if explained:
        table.add_column("", style="dim", no_wrap=True)
    most = max(report["account"].values())
    for part, share in report["account"].items():
        meaning = (PARTS[part],) if explained else ()
        table.add_row(part, f"{share:.1%}", f"{share * step:,.0f}", _bar(share / most), *meaning)
    caption = ""
    if report["device"] != "cpu":
        unasked = {part: report["account"][part] for part in ("env", "transport", "idle", "other")}
        reason = max(unasked, key=lambda part: unasked[part])
        caption = f"the GPU has nothing to do {sum(unasked.values()):.1%} of the time, mostly because of: {reason}"
    return _titled("where the loop's time goes", "", table, caption)


def _cores(report: dict[str, Any]) -> Group:
    available = report["system"]["cores"]
    table = _table("", "share", "cores", "")
    for who, cores in report["cores"].items():
        table.add_row(who, f"{cores / available:.1%}", f"{cores:.2f}", _bar(cores / available))
    return _titled("what the cores are busy with", "", table)


def _update(report: dict[str, Any]) -> Group:
    seconds, flops, precision = report["update"], report["flops"], report["precision"]
    peak, whole = report["peaks"].get(precision), sum(seconds.values())
    table = _table("", "share", "ms", "GFLOP", "GFLOP/s", "of the peak")

    def row(name: str, taken: float, operations: int) -> None:
        rate = operations / taken
        of_peak = f"{rate / peak:.0%}" if peak else "–"
        arithmetic = (f"{operations / 1e9:.2f}", f"{rate / 1e9:,.0f}", of_peak) if operations else ("", "", "")
        table.add_row(name, f"{taken / whole:.1%}", f"{1e3 * taken:.2f}", *arithmetic)

    for part, taken in seconds.items():
        if taken:  # 0 within a captured graph, whose parts cannot be measured
            row(part, taken, flops.get(part, 0))
    table.add_section()
    row("all", whole, sum(flops.values()))
    peaks = ", ".join(f"{kind} {rate / 1e9:,.0f}" for kind, rate in report["peaks"].items())
    return _titled(
        f"where an update's time goes: {report['config']['batch_size']} transitions, envs idle",
        "",
        table,
        f"peak in GFLOP/s, measured with products of large matrices: {peaks}",
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index and name else "left", no_wrap=True)
    return table


def _titled(title: str, subtitle: str, table: Table, caption: str = "") -> Group:
    above = [Text(line, style=style) for line, style in ((title, "bold"), (subtitle, "dim")) if line]
    below = [Text(f"  {caption}\n", style="italic dim")] if caption else []
    return Group(*above, table, *below)


def _gigabytes(report: dict[str, Any]) -> str:
    now, full = report["memory_bytes"], report["memory_bytes_full"]
    return f"{now / 1e9:.2f} GB, {full / 1e9:.2f} once the replay is full"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value else "–"


def _bar(share: float) -> Text:
    """A bar of `share` times `BAR` columns, to an eighth of a column."""
    eighths = round(share * BAR * 8)
    partial = " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return Text("█" * (eighths // 8) + partial, style="cyan")
