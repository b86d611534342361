"""Cost of reporting to a labml server, for every way in which that server may behave.

The training loop runs on CartPole in one process, in short turns, alternately with and without a link to a stand-in
server in another process. Rows are logged as often as in a training, and edits are polled at every step. A ratio of env
steps per second is taken within each pair of turns; its median is reported. It prints a table and writes
`benchmarks/results/labml_rows.json`. Exit code 1: a promise was missed.

    python -m benchmarks.labml_rows
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.config.live import live_settings
from atari_dqn.config.schema import TrainConfig
from atari_dqn.system.machine import cores, describe_system

if TYPE_CHECKING:
    from atari_dqn.labml.link import LabmlLink
    from atari_dqn.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "labml_rows.json"
CONFIG = TrainConfig().replace(
    env_id="CartPole-v1",
    num_workers=2,
    envs_per_worker=4,
    learning_starts=1_000,
    replay_capacity=2**14,
    mlp_hidden=(64, 64),
    device="cpu",
)
LEAST_RATIO, MOST_SECONDS = 0.98, 5.0
"""Least ratio of env steps/s with a link to those without, and largest delay of the exit, in seconds."""
DEADLINE = 30.0


@dataclass(frozen=True)
class Row:
    """A behaviour of a server, and in which turns it is running (`up`, repeated)."""

    behaviour: str
    up: tuple[bool, ...] = (True,)


ROWS = {
    "answers": Row("labml"),
    "down": Row("labml", (False,)),
    "comes and goes": Row("labml", (True, False)),
    "30 s a reply": Row("slow"),
    "never answers": Row("silent"),
    "HTML": Row("html"),
    "an error": Row("errors"),
    "status 500": Row("status_500"),
    "a gigabyte": Row("gigabyte"),
    "a redirect": Row("redirect"),
}


# ---------------------------------------------------------------------- one row


class Loop:
    """The training loop, with or without a link, one turn at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.written = 0
        self._start = time.monotonic()

    def turn(self, seconds: float, link: LabmlLink | None) -> float:
        """Train for some seconds. Returns env steps per second."""
        from atari_dqn.diagnostics.measure import measure

        trainer, interval = self.trainer, self.trainer.config.run.log_interval

        def work() -> None:
            before = trainer.env_steps // interval
            trainer.iterate()
            row = self._row() if trainer.env_steps // interval > before else None
            if link is not None:
                link.poll()
                if row is not None:
                    link.write(row)
                    self.written += 1

        return measure(work, seconds, env_steps=lambda: trainer.env_steps).env_steps_per_second

    def _row(self) -> dict[str, float]:
        trainer = self.trainer
        return {
            "env_step": trainer.env_steps,
            "update": trainer.learner.updates,
            "time": time.monotonic() - self._start,
            **trainer.episodes.metrics(),
            "settings/epsilon": trainer.current_epsilon(),
            "settings/beta": trainer.beta(trainer.env_steps),
            "settings/learning_rate": trainer.learner.learning_rate.item(),
            **trainer.learner.pop_metrics(),
        }


class Server:
    """The stand-in server, in a process that can be stopped and restarted on the same port."""

    def __init__(self, behaviour: str) -> None:
        self._behaviour = behaviour
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def be(self, up: bool) -> None:
        if up == (self._process is not None):
            return
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            return
        command = [sys.executable, "-m", "tests.labml_stand_in", self._behaviour, str(self._port)]
        self._process = subprocess.Popen(command, cwd=ROOT)
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.05)
        raise SystemExit("error: the stand-in server does not start")


def measured(row: Row, loop: Loop, pairs: int, seconds: float) -> dict[str, Any]:
    """Measure one row."""
    from atari_dqn.labml.link import LabmlLink

    written, dropped, delays = loop.written, 0, []
    server = Server(row.behaviour)
    rate = live_settings()["learning_rate"]
    try:
        ratios, problems = [], []
        for pair in range(pairs):
            server.be(row.up[pair % len(row.up)])
            rates: dict[bool, float] = {}
            # The order alternates, so that a drift of the machine favours neither.
            for linked in (False, True) if pair % 2 else (True, False):
                if not linked:
                    rates[linked] = loop.turn(seconds, None)
                    continue
                link = LabmlLink(server.url, name="bench", config=CONFIG.to_dict(), live={rate: 1e-4})
                rates[linked] = loop.turn(seconds, link)
                start = time.monotonic()
                link.close()
                delays.append(time.monotonic() - start)
                dropped += link.dropped
                if problem := link.problem():
                    problems.append(problem)
            ratios.append(rates[True] / rates[False])
    finally:
        server.be(False)
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "exit_seconds": max(delays),
        "written": loop.written - written,
        "dropped": dropped,
        "problems": problems,
    }


# ---------------------------------------------------------------------- all rows


@contextlib.contextmanager
def started() -> Iterator[Loop]:
    """The training loop, warmed up and past `learning_starts`."""
    from atari_dqn.agent.device import set_up_torch
    from atari_dqn.diagnostics.measure import Bench
    from atari_dqn.envs.make import spec_of
    from atari_dqn.training.assembly import local_trainer

    set_up_torch(CONFIG)
    trainer = local_trainer(CONFIG, spec_of(CONFIG.env))
    try:
        Bench(trainer).prepare()
        yield Loop(trainer)
    finally:
        trainer.close()


def holds(figures: dict[str, Any]) -> bool:
    return bool(figures["ratio"] >= LEAST_RATIO and figures["exit_seconds"] <= MOST_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labml_rows", description="what labml reports cost")
    parser.add_argument("--pairs", type=int, default=8, help="number of pairs of turns for each row")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    rows: dict[str, dict[str, Any]] = {}
    with started() as loop:
        # Both turns without a link: the noise of the machine around a ratio of 1.
        alone = [loop.turn(arguments.seconds, None) for _ in range(2 * arguments.pairs)]
        noise = [one / other for one, other in zip(alone[::2], alone[1::2], strict=True)]
        for name in arguments.rows:
            rows[name] = measured(ROWS[name], loop, arguments.pairs, arguments.seconds)
            print(f"{name}: {rows[name]['ratio']:.3f}", flush=True)
    report = {
        "system": describe_system(),
        "pairs": arguments.pairs,
        "seconds": arguments.seconds,
        "noise": {"ratio": statistics.median(noise), "ratios": noise},
        "rows": {name: figures | {"holds": holds(figures)} for name, figures in rows.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    return 0 if all(holds(figures) for figures in rows.values()) else 1


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title=f"{report['system']['processor']}, {cores()} cores")
    for name in ("server", "ratio", "spread", "exit", "dropped", "holds"):
        table.add_column(name, justify="left" if name == "server" else "right", no_wrap=True)

    def spread(figures: dict[str, Any]) -> tuple[str, str]:
        return f"{figures['ratio']:.3f}", f"{min(figures['ratios']):.2f}–{max(figures['ratios']):.2f}"

    table.add_row("(no link)", *spread(report["noise"]))
    for name, figures in report["rows"].items():
        delay = f"{figures['exit_seconds']:.1f} s"
        verdict = "yes" if figures["holds"] else "NO"
        table.add_row(name, *spread(figures), delay, f"{figures['dropped']}/{figures['written']}", verdict)
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
