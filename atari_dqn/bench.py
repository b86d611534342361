"""`python -m atari_dqn.bench`: the flags of a training flow in, how fast this machine runs it flows out.

One table: workers alone, learner alone, both in the real loop, and where the loop's time goes; then the bottleneck
and the setting to change. All are measured in turn, several rounds of them, and the medians are shown.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from atari_dqn import cli
from atari_dqn.config import ConfigError, Setting, TrainConfig, derive, settings
from atari_dqn.system import check_memory, describe_system, set_up_torch

SECONDS = Setting("length of each measurement", "seconds", 0, 3600, low_open=True)
ROUNDS = Setting("so many measurements of each kind, in alternation; medians are shown", "rounds", 1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCommand(TrainConfig):
    """Measure how fast this machine would run a training: give it the flags of the training.

    Flags that have no bearing on speed (--seed, --log-interval, --run-dir...) are taken and change nothing.
    """

    seconds: Annotated[float, SECONDS, tyro.conf.arg(help=SECONDS.describe())] = 2.0
    rounds: Annotated[int, ROUNDS, tyro.conf.arg(help=ROUNDS.describe())] = 5
    out: Annotated[Path | None, tyro.conf.arg(help="write every figure to this JSON file, too")] = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.bench") -> int:
    """Measure as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = cli.parse(BenchCommand, argv, prog=prog)
    config = TrainConfig(**{field.name: getattr(command, field.name) for field in dataclasses.fields(TrainConfig)})
    config.validate()
    for name in ("seconds", "rounds"):
        settings(BenchCommand)[name].check(name, getattr(command, name))
    if command.out is not None and not command.out.parent.is_dir():
        raise ConfigError(f"--out {command.out}: there is no directory {command.out.parent}")
    if command.out is not None and command.out.is_dir():
        raise ConfigError(f"--out {command.out} is a directory; name a file")

    from atari_dqn.envs.make import PROTOCOLS, env_spec, resolve_env_id

    config = config.replace(env_id=resolve_env_id(config.env.env_id))
    spec = env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)

    from rich.console import Console

    from atari_dqn.envs.pool import WorkerError

    console = Console()
    try:
        report = _measure(config, spec, command.seconds, command.rounds, console)
    except WorkerError as error:
        raise cli.CommandFailed(str(error)) from None
    console.print(table(report))
    console.print(f"[bold]bottleneck:[/bold] {report['bottleneck']}", highlight=False)
    console.print(f"[bold]to change:[/bold] {report['advice']}", highlight=False)
    if command.out is not None:
        command.out.write_text(json.dumps(report, indent=2) + "\n")
    return cli.DONE


def _measure(config: TrainConfig, spec: Any, seconds: float, rounds: int, console: Any) -> dict[str, Any]:
    """Every figure of a benchmark, JSON-ready."""
    from atari_dqn.status import StatusLine

    turns = 4 * rounds
    console.print(
        f"{rounds} rounds of 4 measurements of {seconds:g} s, after {config.learner.learning_starts:,} env steps of"
        f" random play; about {turns * seconds + 5 + config.learner.learning_starts / 3000:.0f} s in all",
        highlight=False,
    )
    with StatusLine(console, "importing torch") as status:
        threads = set_up_torch(config)
        check_memory(config, derive(config, spec.frame_bytes, spec.stack).replay_bytes)

        from atari_dqn.measure import Bench, Rates, Turn
        from atari_dqn.trainer import Trainer

        trainer = Trainer(config, spec)
        progress = _Progress(trainer, turns, seconds)
        bench = Bench(trainer, lambda: status.update(progress.line()))
        kinds: dict[str, Callable[[float], Turn]] = {
            "workers alone": bench.workers_alone,
            "learner alone": bench.learner_alone,
            "the loop": bench.loop,
        }
        taken: dict[str, list[Turn]] = {kind: [] for kind in kinds}
        accounts = []
        try:
            bench.prepare()
            for _ in range(rounds):
                for kind, take in kinds.items():
                    progress.next(kind)
                    taken[kind].append(take(seconds))
                progress.next("where the time goes")
                accounts.append(bench.account(seconds))
        finally:
            trainer.close()
    rates = {kind: dataclasses.asdict(Rates.of(turns)) for kind, turns in taken.items()}
    account = {part: statistics.median(shares[part] for shares in accounts) for part in accounts[0]}
    report = {
        "config": config.to_dict(),
        "system": describe_system(),
        "device": str(trainer.device),
        "precision": trainer.learner.precision,
        "torch_threads": threads,
        "seconds": seconds,
        "rounds": rounds,
        "rates": rates,
        "account": account,
    }
    return report | diagnose(report)


class _Progress:
    """What is going on, and how long it will take."""

    def __init__(self, trainer: Any, turns: int, seconds: float) -> None:
        self._trainer, self._left, self._seconds = trainer, turns, seconds
        self._doing = ""
        self._started = time.monotonic()

    def next(self, kind: str) -> None:
        self._doing = kind
        self._left -= 1
        self._started = time.monotonic()

    def line(self) -> str:
        """One line, in minutes and seconds."""
        from atari_dqn.monitor import duration

        passed = time.monotonic() - self._started
        if self._doing:
            left = self._left * self._seconds + max(0.0, self._seconds - passed)
            return f"measuring {self._doing}; {duration(left)} left"
        done, all_steps = self._trainer.env_steps, max(1, self._trainer.config.learner.learning_starts)
        left = max(0, all_steps - done) * passed / max(1, done) + self._left * self._seconds
        return f"random play: {done:,} of {all_steps:,} env steps; {duration(left)} left"


def diagnose(report: dict[str, Any]) -> dict[str, Any]:
    """What limits the loop, and which setting to change.

    No loop can take less time for an env step than its envs alone, than the updates due alone, or than the CPU
    seconds of both dealt out to all cores. The largest of the three is the limit; `limits` gives them in seconds per
    env step, and `times_limit` how much longer the loop really takes.
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
    serial = sum(report["account"][part] for part in ("acting", "append", "other"))
    if others > 0.2 and report["torch_threads"] >= report["system"]["cores"]:
        # Threads that work in step all wait for the one whose core another program has.
        words = f"other programs, which kept {others:.1f} cores busy meanwhile"
        advice = f"--torch-threads {max(1, report['torch_threads'] - 1)}, or stop the other programs"
    elif taken > 1.25 * limits[limit] and serial > 0.2:
        words = f"{serial:.0%} of the time the envs wait while this process acts and stores"
        advice = "raise --envs-per-worker: one forward pass then serves more envs"
    elif taken > 1.25 * limits[limit] and report["torch_threads"] > 1:
        words = "torch's threads and the workers are in each other's way"
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
        return "--precision auto, which takes bf16 where it pays; or a lower --replay-ratio"
    return (
        f"a lower --replay-ratio than {config['replay_ratio']:g}, or a larger --batch-size than"
        f" {config['batch_size']} (fewer, larger updates)"
    )


def _step_more(report: dict[str, Any]) -> str:
    config, available = report["config"], report["system"]["cores"]
    if config["num_workers"] < available:
        return f"--num-workers {available}: some of the {available} cores have no envs to step"
    return "more cores; until then a higher --replay-ratio learns more from each env step"


def table(report: dict[str, Any]) -> Any:
    """The report as a `rich` table."""
    from rich import box
    from rich.table import Table

    config, loop = report["config"], report["rates"]["the loop"]
    title = (
        f"{config['env_id']} · {config['num_workers']} workers × {config['envs_per_worker']} envs ·"
        f" {report['device']} {report['precision']}, {report['torch_threads']} torch threads,"
        f" {report['system']['cores']} cores"
    )
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "env steps/s", "updates/s", "cores busy", "share", "µs/env step"):
        result.add_column(name, justify="right" if name else "left", no_wrap=True)
    for kind, rate in report["rates"].items():
        numbers = [rate["env_steps_per_second"], rate["updates_per_second"]]
        result.add_row(
            kind,
            *(f"{number:,.0f}" if number else "–" for number in numbers),
            f"{rate['cores_busy']:.2f}",
            "",
            f"{1e6 / rate['env_steps_per_second']:,.0f}" if rate["env_steps_per_second"] else "",
        )
    result.add_section()
    for part, share in report["account"].items():
        cost = 1e6 * share / loop["env_steps_per_second"]
        result.add_row(f"  {part}", "", "", "", f"{share:.1%}", f"{cost:,.0f}")
    result.add_section()
    for name, seconds in report["limits"].items():
        result.add_row(f"limit: {name}", f"{1 / seconds:,.0f}" if seconds else "–", "", "", "", f"{1e6 * seconds:,.0f}")
    result.caption = f"the loop takes {report['times_limit']:.2f} times its limit, the largest of the three"
    return result


if __name__ == "__main__":
    cli.run_command(main)
