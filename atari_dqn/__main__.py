"""The script `atari-dqn <command>`, also `python -m atari_dqn <command>`.

Each command is a module, which `python -m atari_dqn.<command>` runs too; only the requested one is imported.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

import atari_dqn
from atari_dqn.cli.command import DONE, run_command
from atari_dqn.config.setting import ConfigError

COMMANDS = {
    "demo": "check this machine and learn CartPole in about a minute",
    "train": "train an agent; the same command with the same --run-dir resumes",
    "sweep": "train many runs: games x seeds x settings, on this machine or a Ray cluster",
    "tune": "change hyperparameters of a running training, or list them",
    "evaluate": "play whole games under named protocols and print a scorecard",
    "play": "film games, or watch one in a window",
    "export": "write a trained network as ONNX and safetensors, with a model card",
    "compare": "draw the learning curves of runs and compare their scores over seeds",
    "dashboard": "serve the labml dashboard on this machine",
    "doctor": "check this machine and suggest settings",
    "bench": "measure the speed of this machine and where the time goes",
}


def run(argv: Sequence[str]) -> int | None:
    """Run the command named first in `argv`. Raises `ConfigError` for an unknown one."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        lines = [f"  {command:<10}{line}" for command, line in COMMANDS.items()]
        print("usage: atari-dqn <command> [flags]", "", *lines, "", sep="\n")
        print("atari-dqn <command> --help shows its flags, atari-dqn --version the version.")
        return DONE
    if name in ("-V", "--version", "version"):
        print(f"atari_dqn {atari_dqn.__version__}")
        return DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    code: int | None = importlib.import_module(f"atari_dqn.{name}").main(rest, prog=f"atari-dqn {name}")
    return code


def main() -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, "")  # as under `python -m`: an environment's module may lie in the working directory
    run_command(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
