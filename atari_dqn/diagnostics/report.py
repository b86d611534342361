"""Report of a benchmark: its tables, the bottleneck of the machine, and the setting to change."""

import statistics
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from atari_dqn.cli.format import plural
from atari_dqn.diagnostics.profiler import LOOP_PARTS


def diagnose(report: dict[str, Any]) -> dict[str, Any]:
    """Find what limits the loop, and the setting to change.

    Per env step, no loop can take less time than its envs alone, than the updates due alone, or than the CPU time of
    both divided by the number of cores. The largest of these three is the limit.

    Returns `limits` (the three, in seconds per env step), `times_limit` (time of the loop over the largest of them),
    `bottleneck` and `advice` (text), from the other figures of `benchmark`.
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
    serial = sum(report["account"][part] for part in ("inference", "append", "other"))
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


def tables(report: dict[str, Any]) -> Group:
    """Tables for a terminal: rates with their limits, and time of the loop."""
    config, system, rates = report["config"], report["system"], report["rates"]
    now, full = report["memory_bytes"], report["memory_bytes_full"]
    speed = _table("", "env steps/s", "updates/s", "cores busy", "µs/env step")
    for kind, rate in rates.items():
        steps, updates = rate["env_steps_per_second"], rate["updates_per_second"]
        cost = _number(1e6 / steps if steps else 0)
        speed.add_row(kind, _number(steps), _number(updates), f"{rate['cores_busy']:.2f}", cost)
    speed.add_section()
    for name, seconds in report["limits"].items():
        speed.add_row(f"limit: {name}", _number(1 / seconds if seconds else 0), "", "", f"{1e6 * seconds:,.0f}")
    loop = _table("the loop's time", "share", "µs/env step")
    loop.add_column("", style="dim")
    for part, share in report["account"].items():
        loop.add_row(
            part, f"{share:.1%}", f"{share * 1e6 / rates['the loop']['env_steps_per_second']:,.0f}", LOOP_PARTS[part]
        )
    return Group(
        f"{config['env_id']}: {plural(config['num_workers'], 'worker')} × {plural(config['envs_per_worker'], 'env')},"
        f" {report['device']} {report['precision']}, torch threads: {report['torch_threads']}",
        f"{system['processor']}, {system['cores']} cores · torch {system['packages']['torch']} ·"
        f" commit {system['git_revision']}",
        f"memory of all processes: {now / 1e9:.2f} GB, {full / 1e9:.2f} once the replay is full",
        speed,
        f"  the loop takes {report['times_limit']:.2f} times the largest of its three limits",
        loop,
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value else "–"
