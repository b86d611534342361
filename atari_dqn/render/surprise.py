"""Largest TD errors in a saved replay, drawn as a contact sheet in RUN/plots.

The candidates are the transitions of the highest priority. A priority is the TD error of the last update that drew the
transition, so the candidates are ranked by the error that the saved networks make now. Of each neighbourhood in time
only one is shown; otherwise the moments around a single event would fill the sheet.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from atari_dqn.agent.device import check_memory
from atari_dqn.agent.loss import double_q_target, q_target
from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import take_weights
from atari_dqn.cli.command import CommandFailed
from atari_dqn.config.derived import derive
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.envs.single import action_names
from atari_dqn.policy.trained import TrainedNetwork, load_policy
from atari_dqn.render.contact_sheet import Surprise, draw
from atari_dqn.replay.base import Replay
from atari_dqn.replay.make import make_replay
from atari_dqn.replay.ring import FrameRing
from atari_dqn.runs import checkpoint_files as files
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.system.files import replace

ACROSS, DOWN = 5, 4
"""Columns and rows of the sheet."""
CANDIDATES, BATCH = 4096, 256
"""Number of transitions whose TD errors are computed, and how many at a time."""

Slots = npt.NDArray[np.int64]


def draw_surprises(run_dir: Path, which: str, console: Console) -> Path:
    """Draw the contact sheet of checkpoint `which` of a run. Returns its file.

    Raises:
        ConfigError: there is no such checkpoint, or no transition in it.
        CommandFailed: the file cannot be written.
    """
    policy = load_policy(run_dir, which)
    for line in policy.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"reading the replay of env step {policy.env_step:,}", highlight=False)
    replay, target = load_replay(policy, CheckpointStore(run_dir).find(str(policy.env_step)))
    found = surprises(policy, target, replay, ACROSS * DOWN)
    near = neighbourhood(replay.ring)
    spread = f"; at most one in {near} steps of an env" if near > 1 else ""
    notes = [
        f"{policy.spec.env_id} · largest TD errors of the network of {policy.env_step:,} env steps",
        f"Of the {min(CANDIDATES, replay.fill):,} highest priorities among {replay.fill:,} transitions{spread}."
        " Left: the newest frame; right: the newest frame at the end of the return, so many steps later."
        " TD error = target − Q.",
    ]
    names = action_names(policy.spec, PROTOCOLS[policy.config.env.protocol])
    file = run_dir / "plots" / f"{policy.env_step}-surprise.png"
    png = io.BytesIO()
    draw(found, names, notes, ACROSS).save(png, "png")
    try:
        file.parent.mkdir(exist_ok=True)
        replace(file, png.getvalue())
    except OSError as error:
        raise CommandFailed(f"cannot write {file}: {error.strerror}") from None
    return file


def load_replay(policy: TrainedNetwork, path: Path) -> tuple[Replay, torch.nn.Module]:
    """Load the replay and the target network of the checkpoint at `path` into main memory. Raises `ConfigError`."""
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
        raise ConfigError("the replay has no complete transition yet; name a later --checkpoint")
    slots = np.argsort(-replay.tree.leaves.numpy()[:size], kind="stable")[: min(CANDIDATES, replay.fill)]
    actions = ring.action.flatten()[torch.from_numpy(slots)]
    parts = []
    for start in range(0, len(slots), BATCH):
        batch = torch.from_numpy(slots[start : start + BATCH])
        returns, discounts, next_slots = ring.n_step_returns(batch, replay.gamma, replay.clip_rewards)
        next_obs = ring.observations(next_slots)
        if policy.config.learner.double_q:
            targets = double_q_target(policy.network(next_obs), target(next_obs), returns, discounts)
        else:
            targets = q_target(target(next_obs), returns, discounts)
        q = policy.network(ring.observations(batch)).gather(1, actions[start : start + BATCH, None])[:, 0]
        parts.append((q, targets, returns, discounts, next_slots))
    q, targets, returns, discounts, next_slots = (torch.cat(part) for part in zip(*parts, strict=True))
    ranking = np.argsort(-(targets - q).abs().numpy(), kind="stable")
    chosen = ranking[_apart(ring, slots[ranking], most)]
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
            age=int(age),
        )
        for i, age in zip(chosen, _ages(ring, slots[chosen]), strict=True)
    ]


def neighbourhood(ring: FrameRing) -> int:
    """Number of rows within which two transitions of an environment share frames or rewards."""
    return max(ring.stack, ring.n_step)


def _apart(ring: FrameRing, slots: Slots, most: int) -> list[int]:
    """Indices of the first slots, at most `most`, of which none is in the neighbourhood of one before it."""
    kept: list[int] = []
    back, envs = _rows_back(ring, slots), slots % ring.num_envs
    for i in range(len(slots)):
        near = np.abs(back[kept] - back[i]) < neighbourhood(ring)
        if len(kept) < most and not (near & (envs[kept] == envs[i])).any():
            kept.append(i)
    return kept


def _rows_back(ring: FrameRing, slots: Slots) -> Slots:
    """How many rows each slot lies behind the newest one."""
    return np.asarray((ring.newest - slots // ring.num_envs) % ring.rows, np.int64)


def _ages(ring: FrameRing, slots: Slots) -> Slots:
    """Environment steps since each transition began. The tick after a final frame is a reset and does not count."""
    steps = (~ring.last.numpy()).sum(axis=1)[(ring.newest - np.arange(ring.rows)) % ring.rows]
    # From the newest row back; its own step has not been taken yet.
    return np.asarray((np.cumsum(steps) - steps[0])[_rows_back(ring, slots)], np.int64)
