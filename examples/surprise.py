"""What surprises a network: the largest TD errors in a run's saved replay, drawn as a contact sheet in RUN/plots.

    python -m examples.surprise RUN

An example of what a checkpoint is good for: it loads the networks and the replay, and computes TD errors as the learner
does.

The candidates are the transitions of the highest priority. A priority is the TD error of the last update that drew the
transition, so the candidates are ranked by the error that the saved networks make now. Of each neighbourhood in time
only one is shown; otherwise the moments around a single event would fill the sheet.
"""

import argparse
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atari_dqn.agent.device import check_memory
from atari_dqn.agent.loss import double_q_target, q_target
from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import take_weights
from atari_dqn.cli.command import CommandFailed, run_command
from atari_dqn.config.derived import derive
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.envs.single import action_names
from atari_dqn.policy.trained import TrainedNetwork, load_policy
from atari_dqn.replay.base import Replay
from atari_dqn.replay.make import make_replay
from atari_dqn.replay.ring import FrameRing
from atari_dqn.runs import checkpoint_files as files
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.directory import named, read_config
from atari_dqn.system.files import replace

ACROSS, DOWN = 5, 4
"""Columns and rows of the sheet."""
CANDIDATES, BATCH = 4096, 256
"""Number of transitions whose TD errors are computed, and how many at a time."""

NUMBERS = {
    "CartPole-v1": ["position", "velocity", "angle", "angular velocity"],
    "MountainCar-v0": ["position", "velocity"],
    "Acrobot-v1": ["cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "velocity 1", "velocity 2"],
    "LunarLander-v3": ["x", "y", "velocity x", "velocity y", "angle", "angular velocity", "left leg", "right leg"],
}
"""What the numbers of an observation mean, by their pages in gymnasium's documentation."""
MOST_NAMED = 16
"""Most bars that have room for a name each."""

Slots = npt.NDArray[np.int64]
Frame = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Surprise:
    """A transition as the saved networks see it now."""

    obs: Frame
    """Newest frame of the observation."""
    next_obs: Frame
    """Newest frame of the observation that is bootstrapped from, `steps` later."""
    steps: int
    action: int
    reward: float
    """The n-step return that is learned from."""
    terminal: bool
    """Whether nothing is bootstrapped."""
    q: float
    target: float
    age: int
    """Ticks of the environments since the transition."""

    @property
    def td_error(self) -> float:
        return self.target - self.q


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the contact sheet of a run's checkpoint. Raises `ConfigError` where its replay has no priorities."""
    parser = argparse.ArgumentParser(prog="python -m examples.surprise", description="Draw the largest TD errors.")
    parser.add_argument("run", type=Path, help="a run directory, or a checkpoint in it")
    _, run_dir, checkpoint = named(parser.parse_args(argv).run, "latest")
    wanted = read_config(run_dir).replay
    if wanted.replay != "prioritized" or wanted.alpha == 0:
        raise ConfigError(f"{run_dir} was trained without priorities; try a run with --replay prioritized")
    policy = load_policy(run_dir, checkpoint)
    replay, target = load_replay(policy, CheckpointStore(run_dir).find(str(policy.env_step)))
    found = surprises(policy, target, replay, ACROSS * DOWN)
    title = (
        f"{policy.spec.env_id} · largest TD errors of the network of {policy.env_step:,} env steps, of the"
        f" {min(CANDIDATES, replay.fill):,} highest priorities among {replay.fill:,} transitions\n"
        "left: the newest frame; right: the one at the end of the return, some steps later; TD error = target − Q"
    )
    png = io.BytesIO()
    names = action_names(policy.spec, PROTOCOLS[policy.config.env.protocol])
    draw(found, names, title, NUMBERS.get(policy.spec.env_id, ())).savefig(png, format="png")
    file = run_dir / "plots" / f"{policy.env_step}-surprise.png"
    try:
        file.parent.mkdir(exist_ok=True)
        replace(file, png.getvalue())
    except OSError as error:
        raise CommandFailed(f"cannot write {file}: {error.strerror}") from None
    print(file)
    return 0


def load_replay(policy: TrainedNetwork, path: Path) -> tuple[Replay, torch.nn.Module]:
    """Load the replay and the target network of the checkpoint at `path` into main memory. Raises `ConfigError`."""
    cpu, config, spec = torch.device("cpu"), policy.config, policy.spec
    check_memory(config.replace(device="cpu"), derive(config, spec.frame_bytes).replay_bytes)
    replay = make_replay(
        config.replay,
        num_envs=config.num_envs,
        frame_shape=spec.frame_shape,
        frame_dtype=spec.frame_dtype,
        stack=spec.stack,
        seed=0,
        device=cpu,
    )
    try:
        snapshot = files.read(path, replay.frames)
        replay.load(snapshot.replay | {"frames": snapshot.frames})
    except (files.CorruptError, ValueError, LookupError) as error:
        raise ConfigError(f"cannot read the replay of checkpoint {path}: {error}") from None
    target = make_network(spec, config.network)
    take_weights(target, snapshot.learner["target"], path)
    return replay, target


@torch.inference_mode()
def surprises(policy: TrainedNetwork, target: torch.nn.Module, replay: Replay, most: int) -> list[Surprise]:
    """The transitions with the largest absolute TD errors among the candidates, at most `most`, in descending order.

    Raises `ConfigError` when the replay has no transition.
    """
    ring = replay.ring
    size = ring.rows * ring.num_envs
    if not replay.fill:
        raise ConfigError("the replay has no complete transition yet")
    slots = np.argsort(-replay.tree.leaves.numpy()[:size], kind="stable")[: min(CANDIDATES, replay.fill)]
    parts = []
    for batch in torch.from_numpy(slots).split(BATCH):
        returns, discounts, next_slots = ring.n_step_returns(batch, replay.gamma, replay.clip_rewards)
        next_obs = ring.observations(next_slots)
        if policy.config.learner.double_q:
            targets = double_q_target(policy.network(next_obs), target(next_obs), returns, discounts)
        else:
            targets = q_target(target(next_obs), returns, discounts)
        actions = ring.action.flatten()[batch]
        q = policy.network(ring.observations(batch)).gather(1, actions[:, None])[:, 0]
        parts.append((actions, q, targets, returns, discounts, next_slots))
    actions, q, targets, returns, discounts, next_slots = (torch.cat(part) for part in zip(*parts, strict=True))
    ranking = np.argsort(-(targets - q).abs().numpy(), kind="stable")
    rows_back = (ring.newest - slots // ring.num_envs) % ring.rows
    frames = ring.frames.flatten(0, 1).numpy()
    return [
        Surprise(
            obs=frames[slots[i]],
            next_obs=frames[next_slots[i]],
            steps=int(next_slots[i] - slots[i]) % size // ring.num_envs,
            action=int(actions[i]),
            reward=float(returns[i]),
            terminal=bool(discounts[i] == 0),
            q=float(q[i]),
            target=float(targets[i]),
            age=int(rows_back[i]),
        )
        for i in ranking[_apart(ring, rows_back[ranking], slots[ranking] % ring.num_envs, most)]
    ]


def _apart(ring: FrameRing, rows_back: Slots, envs: Slots, most: int) -> list[int]:
    """The first transitions, at most `most`, of which none shares frames or rewards with one before it."""
    kept: list[int] = []
    for i in range(len(envs)):
        near = np.abs(rows_back[kept] - rows_back[i]) < max(ring.stack, ring.n_step)
        if len(kept) < most and not (near & (envs[kept] == envs[i])).any():
            kept.append(i)
    return kept


def draw(found: Sequence[Surprise], names: Sequence[str], title: str, numbers: Sequence[str] = ()) -> Figure:
    """Draw the sheet, `ACROSS` cells in a row. Vectors are bars, each number scaled by its largest on the sheet.

    Args:
        found: the transitions, in order.
        names: the names of the actions.
        title: a heading of any number of lines.
        numbers: what the numbers of a vector mean; they are numbered if that is not known.
    """
    down = -(-len(found) // ACROSS)
    figure = Figure(figsize=(3.2 * ACROSS, 0.8 + 2.4 * down), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    largest = np.abs([[one.obs, one.next_obs] for one in found]).max(axis=(0, 1))
    for cell, one in zip(figure.subfigures(down, ACROSS, squeeze=False).flat, found, strict=False):
        cell.suptitle(
            f"{names[one.action]}   TD {one.td_error:+.3f}{'   terminal' if one.terminal else ''}\n"
            f"Q {one.q:.3f}   target {one.target:.3f}   reward {one.reward:+.3g}\n"
            f"{one.age:,} ticks ago, and {one.steps} later",
            fontsize="small",
        )
        left, right = cell.subplots(1, 2)
        _show(left, one.obs, largest)
        _show(right, one.next_obs, largest)
        if one.obs.ndim == 1 and len(one.obs) <= MOST_NAMED:
            left.set_axis_on()
            left.set_frame_on(False)
            left.set_xticks([])
            known = len(numbers) == len(one.obs)  # a wrapper may have added some
            named = numbers if known else [f"observation[{index}]" for index in range(len(one.obs))]
            left.set_yticks(range(len(one.obs)), named, fontsize="xx-small")
            left.tick_params(length=0)
    return figure


def _show(axes: Axes, frame: Frame, largest: Frame) -> None:
    if frame.ndim > 1:
        colours = frame.reshape(*frame.shape[:2], -1)
        image = colours[..., :3] if colours.shape[2] >= 3 else colours[..., 0]
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        numbers = np.divide(frame, largest, out=np.zeros(len(frame)), where=largest > 0)
        axes.axvline(0, color="0.8", linewidth=0.8)
        axes.hlines(range(len(frame)), 0, numbers, linewidth=6 if len(frame) <= MOST_NAMED else 2)
        axes.set(xlim=(-1, 1))
        axes.invert_yaxis()
    axes.set_axis_off()


if __name__ == "__main__":
    run_command(main)
