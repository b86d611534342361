"""`atari-dqn <command>` and `python -m atari_dqn <command>`: a command's name and its flags in, its exit code out.

Each command is a module of its own, also to be run as `python -m atari_dqn.<command>`; only the one asked for is
imported.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from atari_dqn.cli.command import DONE, run_command
from atari_dqn.config.setting import ConfigError

COMMANDS = {
    "train": "train an agent; the same command with the same --run-dir goes on",
    "tune": "change hyperparameters of a running training, or list them",
    "evaluate": "play whole games under named protocols and print a scorecard",
    "play": "film games, watch one in a window, or see what surprised the network",
    "export": "write a trained network as ONNX and safetensors, with a model card",
    "compare": "draw the learning curves of runs, and tell over seeds how they differ",
    "dashboard": "serve the labml dashboard on this machine",
    "doctor": "is this machine ready, and which settings suit it?",
    "bench": "measure what this machine can do, and where the time goes",
}


def usage() -> str:
    lines = [f"  {name:<10}{line}" for name, line in COMMANDS.items()]
    return "\n".join(
        ["usage: atari-dqn <command> [flags]", "", *lines, "", "atari-dqn <command> --help tells its flags."]
    )


def run(argv: Sequence[str]) -> int | None:
    """Run the command that `argv` begins with. Raises `ConfigError` when there is none of that name."""
    if not argv:
        raise ConfigError(f"a command is missing: one of {', '.join(COMMANDS)}; --help tells more")
    name, *rest = argv
    if name in ("-h", "--help", "help"):
        print(usage())
        return DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    code: int | None = importlib.import_module(f"atari_dqn.{name}").main(rest, prog=f"atari-dqn {name}")
    return code


def main() -> None:
    run_command(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
