"""`python -m atari_dqn.export RUN`: a run directory in; its network as ONNX and safetensors, with a model card, out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings, settings
from atari_dqn.policy.files import ONNX, SAFETENSORS, Exported, extra, to_onnx, to_safetensors
from atari_dqn.runs.directory import read_config, read_system
from atari_dqn.runs.records import EVALUATION, is_number, read_rows
from atari_dqn.system.files import replace
from atari_dqn.system.machine import git_revision

if TYPE_CHECKING:  # the real imports wait until the input is known to be right: they take seconds
    from atari_dqn.policy.policy import Policy
    from atari_dqn.policy.trained import TrainedNetwork

CARD = "README.md"
COMPARED = 256
"""Observations of real play on which the two files are compared."""
SCORES = {**EVALUATION, "episodes": is_number, "median": is_number}
"""What the card tells of an evaluation."""
EXPLORED = 0.1
"""Share of random actions in that play, so that it does not run in one groove."""
TOLERANCE = 1e-4
"""The two files' Q values may differ by so much, or by that part of the largest where it is above 1: sums of thousands
of float32 products, in another order."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write a run's network as files for other programs.

    policy.onnx (checked against the network on real play), policy.safetensors (the same bits), and a model card. play,
    evaluate and `atari_dqn.Policy` take either file.
    """

    run: Annotated[Path, tyro.conf.Positional, Setting("a run directory, such as runs/Breakout-1-...")]
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    out: Annotated[Path | None, Setting("the directory to write; None: RUN/export/<env>-<env step>")] = None
    episodes: Annotated[
        int, Setting("first evaluate on so many games; 0: the card has what evaluations there are", "", 0, 100_000)
    ] = 0


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.export") -> int:
    """Export as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(ExportCommand, argv, prog=prog)
    for name, setting in settings(ExportCommand).items():
        setting.check(name, getattr(command, name))
    read_config(command.run)
    file = command.run / "evaluations.jsonl"
    read_rows(file, SCORES)
    for package in ("onnx", "onnxruntime", "safetensors"):
        extra(package)
    if command.out is not None:
        check_out(command.out)

    from atari_dqn.evaluation.scorecard import evaluate_cells
    from atari_dqn.policy.model_card import Facts, model_card
    from atari_dqn.policy.policy import Policy, torch_q
    from atari_dqn.policy.trained import load_policy

    console = open_console()
    trained = load_policy(command.run, command.checkpoint, "cpu")
    for line in trained.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    if command.episodes:
        evaluate_cells(trained, command.run, console, episodes=command.episodes)
    policy = exported(trained)
    name = policy.header.env_id.split(":")[-1].removeprefix("ALE/").replace("/", "-")
    out = command.out or command.run / "export" / f"{name}-{trained.env_step}"
    contents = {SAFETENSORS: to_safetensors(policy), ONNX: to_onnx(policy)}
    comparison = compare(Policy(policy.header, torch_q(trained)), *as_read(contents))
    evaluations = [row for row in read_rows(file, SCORES) if row["env_step"] == trained.env_step]
    contents[CARD] = model_card(policy.header, Facts(evaluations, read_system(command.run), comparison)).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace(out / name, content)
    except OSError as error:
        raise CommandFailed(f"{error.filename or out} cannot be written: {error.strerror}") from None
    for name, content in contents.items():
        console.print(f"{out / name}  {len(content):,} bytes", highlight=False, soft_wrap=True)
    console.print(comparison, highlight=False, soft_wrap=True)
    if not evaluations:
        console.print(
            f"the card has no score: none was taken at env step {trained.env_step:,}; --episodes 30 takes one",
            highlight=False,
            soft_wrap=True,
        )
    return DONE


def check_out(out: Path) -> None:
    """Make the directory `out`. Raises `ConfigError` unless an export, over a former one at most, can go there."""
    try:
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SAFETENSORS).exists())):
            raise ConfigError(f"--out {out} holds something else than an export; name an empty or a new directory")
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise ConfigError(f"--out {out} is not writable")
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None


def exported(trained: TrainedNetwork) -> Exported:
    """A run's network as its exported files hold it."""
    from atari_dqn.agent.network import QNetwork
    from atari_dqn.policy.layouts import plain_weights
    from atari_dqn.policy.source import header_of

    assert isinstance(trained.network, QNetwork), "a run's network is one"
    return Exported(header_of(trained, git_revision()), plain_weights(trained.network))


def as_read(contents: Mapping[str, bytes]) -> tuple[Policy, Policy]:
    """The policies of the two files, as a reader of them will find them."""
    from atari_dqn.policy.policy import Policy

    with tempfile.TemporaryDirectory() as place:
        for file, content in contents.items():
            (Path(place) / file).write_bytes(content)
        return Policy.load(Path(place) / SAFETENSORS, seed=0), Policy.load(Path(place) / ONNX)


def real_play(policy: Policy, steps: int) -> npt.NDArray[Any]:
    """Observations of so many steps in the env of its training, [steps, *observation_shape]."""
    seen = []
    with contextlib.closing(policy.make_env()) as env:
        over = True
        for step in range(steps):
            if over:
                observation, _ = env.reset(seed=step)
            seen.append(np.array(observation))
            observation, _, terminated, truncated, _ = env.step(policy.act(observation, EXPLORED))
            over = terminated or truncated
    return np.stack(seen)


def compare(network: Policy, safetensors: Policy, onnx: Policy) -> str:
    """Compare the files with the network they were made of, on real play; returns a sentence about that.

    Raises `CommandFailed` when the one is not the same to the bit, or the other not within `TOLERANCE`.
    """
    observations = real_play(safetensors, COMPARED)
    q, exact, near = (policy.q_values(observations) for policy in (network, safetensors, onnx))
    if not np.array_equal(q, exact):
        raise CommandFailed(f"{SAFETENSORS} is not what was exported: its Q values are others")
    bound = TOLERANCE * max(1.0, float(np.abs(q).max()))
    difference = float(np.abs(q - near).max())
    if not difference <= bound:
        raise CommandFailed(f"{ONNX} differs from the network by {difference:.2g} in Q; at most {bound:.2g} may be")
    best, second = -np.sort(-q, axis=1)[:, :2].T if q.shape[1] > 1 else (q[:, 0], q[:, 0] - np.inf)
    clear = best - second > 2 * bound
    same = q.argmax(1) == near.argmax(1)
    assert same[clear].all(), "values that moved by less than half their distance changed places"
    return (
        f"Run by onnxruntime on {len(q)} observations of real play, its Q values differ from the network's by at most"
        f" {difference:.1e} (tolerance {bound:.1e}); the best action is the same in {same.sum()} of them, and in all"
        f" {clear.sum()} where it leads by more than twice the tolerance."
    )


if __name__ == "__main__":
    run_command(main)
