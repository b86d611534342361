"""`python -m atari_dqn.export RUN`: write a run's network as ONNX and safetensors, with a model card."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.evaluation.result import EvaluationRow
from atari_dqn.policy.files import CHECKSUMS, ONNX, SAFETENSORS, checksums, extra, to_safetensors
from atari_dqn.policy.policy import Policy
from atari_dqn.policy.source import playable_source
from atari_dqn.runs.directory import named, newest_run, read_system
from atari_dqn.runs.records import read_rows
from atari_dqn.system.files import check_room_for, replace
from atari_dqn.system.machine import git_revision

CARD = "README.md"
SCORES = (*EvaluationRow.__annotations__, "episodes", "median")
"""Fields that the card needs of an evaluation."""
COMPARED = 256
"""Number of observations on which the files are compared."""
EPSILON = 0.1
"""Probability of a random action in that play, for some variety."""
TOLERANCE = 1e-4
"""Largest difference in Q of the ONNX file, relative to the largest Q if above 1: sums differ with their order."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write a run's network as files for other programs.

    policy.onnx (checked against the network on real play), policy.safetensors (the same bits), SHA256SUMS and a model
    card. play, evaluate and `atari_dqn.Policy` take either file.
    """

    run: Annotated[Path | None, tyro.conf.Positional, Setting("a run directory; None: the newest run in runs")] = None
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    out: Annotated[Path | None, Setting("the directory to write; by default RUN/export/<env>-<env step>")] = None
    episodes: Annotated[
        int, Setting("games to evaluate on first; 0: the card has the evaluations that exist", "", 0, 100_000)
    ] = 0


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.export") -> int:
    """Export as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(ExportCommand, argv, prog=prog)
    console = open_console()
    path = command.run or newest_run(partial(say, console), checkpoint=True)
    found = named(path, command.checkpoint)
    source = playable_source(found.path, found.checkpoint)
    file = source.path / "evaluations.jsonl"
    read_rows(file, *SCORES)
    for package in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        extra(package)
    check_out(command.out or source.path / "export", given=command.out is not None)

    # Imported now that the input is known to be right: it takes seconds.
    from atari_dqn.agent.network import QNetwork
    from atari_dqn.evaluation.scorecard import evaluate_cells
    from atari_dqn.policy.model_card import model_card
    from atari_dqn.policy.onnx import to_onnx

    trained = source.load("cpu", partial(say, console))
    if command.episodes:
        evaluate_cells(trained, source.path, console, episodes=command.episodes)
    assert isinstance(trained.network, QNetwork), "a run has one"
    header, network = trained.header(git_revision()), trained.network.reference()
    name = header.env_id.split(":")[-1].removeprefix("ALE/").replace("/", "-")
    out = command.out or source.path / "export" / f"{name}-{trained.env_step}"
    contents = {SAFETENSORS: to_safetensors(header, network), ONNX: to_onnx(header, network)}
    with tempfile.TemporaryDirectory() as place:
        for file_name, content in contents.items():
            (Path(place) / file_name).write_bytes(content)
        read = (Policy.load(Path(place) / file_name, seed=0) for file_name in contents)
        comparison = compare(Policy(header, trained.q), *read)
    evaluations = [row for row in read_rows(file, *SCORES) if row["env_step"] == trained.env_step]
    contents[CHECKSUMS] = checksums(contents)
    contents[CARD] = model_card(header, evaluations, read_system(source.path), comparison).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CHECKSUMS).unlink(missing_ok=True)  # those of a former export do not fit the new files
        for name, content in contents.items():
            replace(out / name, content)
    except OSError as error:
        raise CommandFailed(f"cannot write {error.filename or out}: {error.strerror}") from None
    for name, content in contents.items():
        say(console, f"{out / name}  {len(content):,} bytes")
    say(console, comparison)
    if not evaluations:
        say(
            console,
            f"no game was evaluated at env step {trained.env_step:,}, so the card has no score; try --episodes 30",
        )
    return DONE


def check_out(out: Path, given: bool) -> None:
    """Make the directory `out`. Raises `ConfigError` if it is not writable, or was given and holds something else."""
    try:
        if given and out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SAFETENSORS).exists())):
            raise ConfigError(f"--out {out} is not empty and not an export; try a new directory")
        check_room_for(out / SAFETENSORS)
    except OSError as error:
        raise ConfigError(f"{'--out ' if given else 'cannot write to '}{out}: {error.strerror}") from None


def real_play(policy: Policy, steps: int) -> npt.NDArray[Any]:
    """Observations of `steps` steps in the environment it was trained in, [steps, *observation_shape]."""
    seen = []
    with contextlib.closing(policy.make_env()) as env:
        over = True
        for step in range(steps):
            if over:
                observation, _ = env.reset(seed=step)
            seen.append(np.array(observation))
            observation, _, terminated, truncated, _ = env.step(policy.act(observation, EPSILON))
            over = terminated or truncated
    return np.stack(seen)


def compare(network: Policy, safetensors: Policy, onnx: Policy) -> str:
    """A sentence for the model card. Raises `CommandFailed` unless Q values of real play are the same, or near."""
    observations = real_play(safetensors, COMPARED)
    q, exact, near = (policy.q_values(observations) for policy in (network, safetensors, onnx))
    if not np.array_equal(q, exact):
        raise CommandFailed(f"{SAFETENSORS} does not reproduce the network's Q values")
    bound = TOLERANCE * max(1.0, float(np.abs(q).max()))
    difference = float(np.abs(q - near).max())
    if not difference <= bound:
        raise CommandFailed(f"{ONNX} differs from the network by {difference:.2g} in Q; at most {bound:.2g} is allowed")
    same = (q.argmax(1) == near.argmax(1)).sum()
    return (
        f"Run by onnxruntime on {len(q)} observations of real play, its Q values differ from the network's by at most"
        f" {difference:.1e} (tolerance {bound:.1e}); the best action is the same in {same} of them."
    )


if __name__ == "__main__":
    run_command(main)
