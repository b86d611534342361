"""Evaluation protocols for Atari games, and what the rest of the package must know of an environment."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an Atari game is presented; other envs take no notice of it. Every protocol repeats an action for 4 frames,
    takes the pixelwise maximum of the last two before resizing to 84x84 grey, and leaves rewards raw."""

    name: str
    repeat_action_probability: float
    """Sticky actions: chance per frame that the emulator repeats the previous action."""
    noop_max: int
    """A game starts after 0 to `noop_max - 1` frames of no-op, drawn anew for each (0 and 1: none)."""
    fire_reset: bool
    full_action_space: bool
    life_loss_terminal: bool
    """Training treats a lost life as terminal. The game goes on: workers report lives, they never reset on one."""
    max_episode_frames: int
    """Frames after which a game is truncated, no-ops not counted."""


PROTOCOLS: dict[str, Protocol] = {
    # Mnih et al. 2015
    "nature": Protocol(
        name="nature",
        repeat_action_probability=0.0,
        noop_max=30,
        fire_reset=False,
        full_action_space=False,
        life_loss_terminal=True,
        max_episode_frames=108_000,
    ),
    # Machado et al. 2018
    "machado": Protocol(
        name="machado",
        repeat_action_probability=0.25,
        noop_max=0,
        fire_reset=False,
        full_action_space=True,
        life_loss_terminal=False,
        max_episode_frames=108_000,
    ),
}


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What the rest of the house must know of an env."""

    env_id: str
    is_atari: bool
    kind: Literal["pixels", "vector"]
    frame_shape: tuple[int, ...]
    frame_dtype: np.dtype[Any]
    num_actions: int
    stack: int
    """Frames in an observation; 1 for vectors."""

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.frame_shape)) * self.frame_dtype.itemsize


def protocol_for(name: str, trained: str) -> Protocol:
    """Protocol `name` ("trained": the training's) with the action set that a network trained under `trained` has."""
    asked = PROTOCOLS[trained if name == "trained" else name]
    return dataclasses.replace(asked, full_action_space=PROTOCOLS[trained].full_action_space)
