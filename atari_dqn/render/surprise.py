"""What surprised a network most: a checkpoint's replay and networks flow in; a contact sheet, RUN/plots/...png, out.

The transitions are those of the highest priority, one of each neighbourhood in time: else the moments around one event
would fill the sheet. What no update has drawn yet stands aside: it has the largest priority so far on trust.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from atari_dqn.cli.command import CommandFailed
from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.system.files import replace

if TYPE_CHECKING:  # they take seconds
    from rich.console import Console

    from atari_dqn.policy.trained import TrainedNetwork
    from atari_dqn.replay.prioritized import PrioritizedReplay
    from atari_dqn.runs.checkpoint_files import Snapshot

ACROSS, DOWN = 5, 4
"""Cells of the sheet."""


@dataclasses.dataclass(frozen=True)
class Surprise:
    """A transition, as the saved networks see it now."""

    obs: npt.NDArray[np.generic]
    """the newest frame of the observation"""
    next_obs: npt.NDArray[np.generic]
    """that of the one bootstrapped from, `steps` later"""
    steps: int
    action: int
    reward: float
    """the n-step return that is learned from"""
    terminal: bool
    q: float
    target: float
    td_error_then: float
    """its size when the transition was last drawn, which the priority tells"""
    shared: bool
    """that priority was the largest so far, which what came later was given, too; so perhaps this transition was"""
    age: int
    """env steps ago"""

    @property
    def td_error(self) -> float:
        return self.target - self.q

    @property
    def is_one(self) -> bool:
        """Not only on trust."""
        return not self.shared or abs(self.td_error) > self.td_error_then / 2


def check_priorities(config: TrainConfig) -> None:
    """Raise `ConfigError` where a run's replay knows no priorities that differ."""
    if config.replay.replay != "prioritized" or config.replay.alpha == 0:
        why = "--alpha 0" if config.replay.replay == "prioritized" else f"--replay {config.replay.replay}"
        raise ConfigError(f"--surprise shows the highest priorities, and this run has none: it was trained with {why}")


def contact_sheet(run_dir: Path, which: str, console: Console) -> Path:
    """Draw the sheet of checkpoint `which` of a run. Returns its file.

    Raises `ConfigError` when there is no such checkpoint, or nothing in it that was learned from.
    """
    from atari_dqn.envs.protocol import PROTOCOLS
    from atari_dqn.envs.single import action_names
    from atari_dqn.policy.trained import load_policy
    from atari_dqn.render.contact_sheet import draw
    from atari_dqn.runs.checkpoints import CheckpointStore

    policy = load_policy(run_dir, which)
    for line in policy.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"reading the replay of env step {policy.env_step:,}", highlight=False)
    path = CheckpointStore(run_dir).find(str(policy.env_step))
    replay, snapshot = load_replay(policy, path)
    found = surprises(policy, replay, snapshot, ACROSS * DOWN)
    near = neighbourhood(replay)
    notes = [
        f"{policy.spec.env_id} · what surprised the network of {policy.env_step:,} env steps most",
        f"The highest priorities among {replay.fill:,} transitions, at most one in {near} steps of an env. Left: the"
        " newest frame; right: that at the end of its return, so many steps later. TD error = target − Q, by the saved"
        " networks.",
    ]
    names = action_names(policy.spec, PROTOCOLS[policy.config.env.protocol])
    file = run_dir / "plots" / f"{policy.env_step}-surprise.png"
    png = io.BytesIO()
    draw(found, names, notes, ACROSS).save(png, "png")
    try:
        file.parent.mkdir(exist_ok=True)
        replace(file, png.getvalue())
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
    return file


def load_replay(policy: TrainedNetwork, path: Path) -> tuple[PrioritizedReplay, Snapshot]:
    """The replay in the checkpoint at `path`, on the CPU, and all the checkpoint holds. Raises `ConfigError`."""
    import torch

    from atari_dqn.agent.device import check_memory
    from atari_dqn.replay.make import make_replay
    from atari_dqn.replay.prioritized import PrioritizedReplay
    from atari_dqn.runs import checkpoint_files as files
    from atari_dqn.runs.archive import Unsound

    cpu, config, spec = torch.device("cpu"), policy.config, policy.spec
    check_memory(config.replace(device="cpu"), derive(config, spec.frame_bytes, spec.stack).replay_bytes)
    replay = make_replay(
        config.replay,
        num_envs=config.num_envs,
        frame_shape=spec.frame_shape,
        frame_dtype=spec.frame_dtype,
        stack=spec.stack,
        seed=0,
        device=cpu,
    )
    assert isinstance(replay, PrioritizedReplay)
    try:
        snapshot = files.read(path, cpu, replay.frames)
        replay.load(snapshot.replay | {"frames": snapshot.frames})
    except (Unsound, ValueError, LookupError) as fault:
        raise ConfigError(f"checkpoint {path} holds no replay to look at ({fault})") from None
    return replay, snapshot


def surprises(policy: TrainedNetwork, replay: PrioritizedReplay, snapshot: Snapshot, most: int) -> list[Surprise]:
    """The `most` surprising transitions, or all that an update has drawn, in the order of their priorities.

    Raises `ConfigError` when there is none.
    """
    import torch

    from atari_dqn.agent.loss import double_q_target, q_target
    from atari_dqn.agent.network import make_network
    from atari_dqn.agent.weights import take_weights
    from atari_dqn.replay.prioritized import PRIORITY_EPSILON

    ring = replay.ring
    chosen, shared = highest(replay, 2 * most)
    if not len(chosen):
        raise ConfigError("no update has drawn a transition of this replay yet, so that nothing can have surprised it")
    slots = torch.from_numpy(chosen)
    returns, discounts, next_slots = ring.fold(slots, replay.gamma, replay.clip_rewards)
    obs, next_obs = ring.observations(slots), ring.observations(next_slots)
    target_network = make_network(policy.spec, policy.config.network)
    take_weights(target_network, snapshot.learner["target"], "the checkpoint")
    with torch.inference_mode():
        actions = ring.action.flatten()[slots]
        q = policy.network(obs).gather(1, actions[:, None])[:, 0]
        of_target = target_network(next_obs)
        if policy.config.learner.double_q:
            targets = double_q_target(policy.network(next_obs), of_target, returns, discounts)
        else:
            targets = q_target(of_target, returns, discounts)
    then = replay.tree.leaves.numpy()[chosen] ** (1 / replay.alpha) - PRIORITY_EPSILON
    steps = (next_slots - slots) % (ring.rows * ring.num_envs) // ring.num_envs
    ages = _ages(replay, chosen)
    found = [
        Surprise(
            obs=obs[i, -1].numpy(),
            next_obs=next_obs[i, -1].numpy(),
            steps=int(steps[i]),
            action=int(actions[i]),
            reward=float(returns[i]),
            terminal=bool(discounts[i] == 0),
            q=float(q[i]),
            target=float(targets[i]),
            td_error_then=float(then[i]),
            shared=shared[i],
            age=int(ages[i]),
        )
        for i in range(len(chosen))
    ]
    return [one for one in found if one.is_one][:most]


def neighbourhood(replay: PrioritizedReplay) -> int:
    """Rows within which two transitions of an env share frames or rewards."""
    return max(replay.ring.stack, replay.ring.n_step)


def highest(replay: PrioritizedReplay, most: int) -> tuple[npt.NDArray[np.int64], list[bool]]:
    """The slots of the highest priorities, [up to most], downwards, none of them near another of its env; and which of
    them share their priority with others.

    Two errors are never the same to the bit: where priorities are, they were given, but for the oldest's, whose error
    was the largest; unless that one has been drawn again or overwritten since, and the oldest is but the next.
    """
    ring, leaves = replay.ring, replay.tree.leaves.numpy()[: replay.ring.rows * replay.ring.num_envs]
    near, back = neighbourhood(replay), _rows_back(replay)
    order = np.lexsort((-back, -leaves))
    kept: list[int] = []
    shared: list[bool] = []
    for slot, before, after in zip(order, (-1, *order[:-1]), (*order[1:], -1), strict=True):
        if len(kept) == most or leaves[slot] == 0:
            break
        given = leaves[slot] == 1 or (before >= 0 and leaves[before] == leaves[slot])  # 1: before there was any error
        apart = [abs(back[slot] - back[other]) for other in kept if (slot - other) % ring.num_envs == 0]
        if not given and all(rows >= near for rows in apart):
            kept.append(int(slot))
            shared.append(bool(after >= 0 and leaves[after] == leaves[slot]))
    return np.array(kept, dtype=np.int64), shared


def _rows_back(replay: PrioritizedReplay) -> npt.NDArray[np.int64]:
    """Of each slot: how many rows it lies behind the newest."""
    ring = replay.ring
    back: npt.NDArray[np.int64] = (ring.newest - np.arange(ring.rows * ring.num_envs) // ring.num_envs) % ring.rows
    return back


def _ages(replay: PrioritizedReplay, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Env steps since each transition began; a final frame's row is followed by a reset, which is none."""
    ring = replay.ring
    newest = ring.newest % ring.rows
    steps = (~ring.last.numpy()).sum(axis=1)
    # Rows from the newest one back; what follows the newest itself has not been taken.
    since = np.cumsum(steps[(newest - np.arange(ring.rows)) % ring.rows]) - steps[newest]
    ages: npt.NDArray[np.int64] = since[_rows_back(replay)[slots]]
    return ages
