"""The command `python -m atari_dqn.demo`: is the machine ready, and what does a training look like?"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from atari_dqn.cli.command import FAILED, parse_flags, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.setting import Setting, help_from_settings

CARTPOLE = (
    "--env-id CartPole-v1 --num-workers 1 --envs-per-worker 8 --replay-capacity 32768 --n-step 3 --no-clip-rewards"
    " --learning-rate 2e-3 --learning-rate-factors 1 0.1 --learning-rate-at 0.2 1 --batch-size 64 --replay-ratio 16"
    " --learning-starts 1000 --target-update-interval 50 --epsilon-values 1 0.02 --epsilon-at 0 0.15 --precision fp32"
    " --total-env-steps 80000 --eval-interval 10000 --eval-episodes 8 --eval-epsilon 0 --stop-score 475"
    " --checkpoint-interval 20000"
)
"""Five seeds of five had a mean of 500 at 20,000 to 30,000 env steps (Zen 4; experiments/LOG.md)."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Check the machine, then learn to balance a pole (CartPole) in about a minute.

    Its curve and a film are made at the end. Ctrl-C stops at any time.
    """

    run_dir: Annotated[
        Path | None, Setting("the run's directory; one with a checkpoint is resumed; by default a new one in runs")
    ] = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.demo") -> int:
    """Check, then become the training. Returns the exit code if not ready; raises `ConfigError` for bad input."""
    command = parse_flags(DemoCommand, argv, prog=prog)
    from atari_dqn.diagnostics.checks import CHECKS, run_check

    console, ready = open_console(), True
    for name, check in CHECKS.items():
        for finding in run_check(check):
            ready &= finding.level != "error"
            say(console, f"{finding.level:<9}{finding.line(name)}")
    if ready:
        say(console, "\nready; now CartPole, about a minute: from games of 20 steps to games of 500\n")
        sys.stdout.flush()
        place = [] if command.run_dir is None else ["--run-dir", str(command.run_dir)]
        words = [sys.executable, "-m", "atari_dqn.train", *CARTPOLE.split(), *place]
        os.execv(sys.executable, words)  # this process becomes the training, which signals then reach
    say(console, "not ready: fix what is marked as an error above")
    return FAILED


if __name__ == "__main__":
    run_command(main)
