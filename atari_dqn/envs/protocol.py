"""Evaluation protocols for Atari games, and the specification of an environment."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

FRAME_SKIP = 4
"""Emulator frames for which an Atari action is repeated: the frames of one env step."""
FRAME_SIZE = 84
"""Height and width of an Atari observation, in pixels."""
GAME_LIMIT = 10_000
"""Env steps after which a game that is evaluated or filmed is cut if the environment has no time limit."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an Atari game is presented; protocols apply to Atari only.

    Every protocol repeats an action for 4 frames, takes the pixelwise maximum of the last two before resizing to 84x84
    grey, and does not clip rewards.
    """

    name: str
    repeat_action_probability: float
    """Sticky actions: probability per frame that the emulator repeats the previous action."""
    noop_max: int
    """A game starts after 0 to `noop_max - 1` no-op frames, drawn for each game; none if this is 0 or 1."""
    full_action_space: bool
    """Whether all 18 actions of the console are available, instead of the game's minimal set."""
    life_loss_terminal: bool
    """Whether training treats a lost life as terminal. The game continues: workers report lives and never reset on a
    lost one."""
    max_episode_frames: int = 108_000
    """Number of frames after which a game is truncated, not counting no-ops."""

    def draw_noops(self, rng: np.random.Generator) -> int:
        """Number of no-op frames at the start of a game."""
        return int(rng.integers(max(1, self.noop_max)))


PROTOCOLS: dict[str, Protocol] = {
    # Mnih et al. 2015, "Human-level control through deep reinforcement learning"
    "nature": Protocol(
        "nature", repeat_action_probability=0.0, noop_max=30, full_action_space=False, life_loss_terminal=True
    ),
    # Machado et al. 2018, "Revisiting the Arcade Learning Environment"
    "machado": Protocol(
        "machado", repeat_action_probability=0.25, noop_max=0, full_action_space=True, life_loss_terminal=False
    ),
}


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Shapes and counts of an environment: everything that replay, networks and workers need to know of it."""

    env_id: str
    """Resolved id, as `gym.make` takes it."""
    is_atari: bool
    """Whether it is a game of ALE."""
    kind: Literal["pixels", "vector"]
    """Whether a frame is an image or a vector of numbers."""
    frame_shape: tuple[int, ...]
    """Shape of one frame."""
    frame_dtype: np.dtype[Any]
    """Dtype of a frame: uint8 for pixels, float32 for vectors."""
    num_actions: int
    """Number of discrete actions."""
    stack: int
    """Number of frames in an observation; 1 for vectors."""
    flattened: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    """Shape of the environment's own observation, if a frame is a vector."""
    first_action: int = dataclasses.field(default=0, compare=False)
    """The environment's own number for action 0."""
    time_limit: int | None = dataclasses.field(default=None, compare=False)
    """Env steps after which the environment itself cuts a game; None: not known."""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    """Arguments with which it is made."""
    wrapper: str = dataclasses.field(default="", compare=False)
    """Name of what wraps it, `module:name`; empty: nothing."""
    game_limit: int | None = None
    """Env steps after which a game is cut, or after `time_limit` if that is more."""

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of an observation as a single environment returns it: stacked frames of pixels, or its own vector."""
        return (self.stack, *self.frame_shape) if self.kind == "pixels" else self.flattened

    @property
    def frame_bytes(self) -> int:
        """Memory of one frame."""
        return int(np.prod(self.frame_shape)) * self.frame_dtype.itemsize


def protocol_for(name: str, trained: str) -> Protocol:
    """Protocol `name` ("trained": that of training) with the action set of a network trained under `trained`."""
    asked = PROTOCOLS[trained if name == "trained" else name]
    return dataclasses.replace(asked, full_action_space=PROTOCOLS[trained].full_action_space)
