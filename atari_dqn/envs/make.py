"""Env ids and a named protocol flow in; an `EnvSpec` (shapes and counts) and gymnasium vector envs flow out.

Every vector env made here hands over the newest frame of each env alone, raw rewards, and resets a finished env on
the tick after its end (gymnasium's next-step autoreset). Bad names and unfit spaces raise `ConfigError`, in one line.
"""

from __future__ import annotations

import difflib
import importlib
import re
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.atari import AtariGames
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.step import StepResult


def resolve_env_id(name: str) -> str:
    """The full id of an env: `breakout`, `ms_pacman` -> `ALE/Breakout-v5`, `ALE/MsPacman-v5`; gymnasium's own ids and
    `module:Env-v0` (the module is imported, and registers the id) pass.

    Raises `ConfigError` for unknown names, with the nearest known one, and for the old Atari ids: they fix frame
    skips and sticky actions that a protocol should fix.
    """
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a user's module may fail in any way
            raise ConfigError(f"--env-id {name}: cannot import {module} ({type(error).__name__}: {error})") from error
    games = {_plain(env_id): env_id for env_id in gym.registry if is_atari(env_id)}
    words = re.fullmatch(r"(?P<game>.+?)(?P<old>-ram|NoFrameskip|Deterministic)*(?P<version>-v\d+)?", bare)
    game = games.get(_plain(words["game"])) if words else None
    if words and game:
        if words["old"] or words["version"] not in (None, "-v5"):
            raise ConfigError(f"--env-id {name} is an old id; use {game} and choose its preprocessing with --protocol")
        return game
    if bare in gym.registry:
        return name
    known = {_plain(i): i for i, spec in gym.registry.items() if "ale_py" not in str(spec.entry_point)} | games
    near = difflib.get_close_matches(_plain(bare), known, n=1)
    raise ConfigError(
        f"--env-id {name} is no env that is known here"
        + (f"; did you mean {known[near[0]]}?" if near else ": give a game such as breakout, or a gymnasium id")
    )


def _plain(name: str) -> str:
    """What is left of a name to compare: `ALE/MsPacman-v5`, `ms_pacman` -> `mspacman`; `CartPole-v1` -> `cartpole`."""
    return re.sub(r"-v\d+$|[ _-]", "", name.removeprefix("ALE/")).lower()


def env_spec(env_id: str, protocol: Protocol, frame_stack: int) -> EnvSpec:
    """Shapes and counts of a resolved env id; makes one env to look at it, and closes it.

    Atari: 84x84 uint8 frames. Another uint8 Box of shape (H, W) or (H, W, up to 4), at least 36x36: pixels as they
    are. Any other Box: float32 vectors, flattened, not stacked.
    Raises `ConfigError` when the env cannot be made, its observations are no Box or its actions not Discrete.
    """
    if is_atari(env_id):
        return EnvSpec(
            env_id=env_id,
            is_atari=True,
            kind="pixels",
            frame_shape=(84, 84),
            frame_dtype=np.dtype(np.uint8),
            num_actions=_atari(env_id, protocol, 1).num_actions,
            stack=frame_stack,
        )
    try:
        env = gym.make(env_id, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:
        reason = str(error).splitlines()[0]
        if "Box2D is not installed" in reason:
            reason = 'Box2D is not installed; this package has an extra for it: pip install "atari_dqn[box2d]"'
        raise ConfigError(f"--env-id {env_id} cannot be made: {reason}") from error
    frames, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(frames, Box):
        raise ConfigError(f"--env-id {env_id} observes {frames}; a Box is needed")
    if not isinstance(actions, Discrete):
        raise ConfigError(f"--env-id {env_id} acts by {actions}; Discrete actions are needed")
    image = len(frames.shape) == 2 or (len(frames.shape) == 3 and frames.shape[2] <= 4)
    pixels = frames.dtype == np.uint8 and image and min(frames.shape[:2]) >= 36
    return EnvSpec(
        env_id=env_id,
        is_atari=False,
        kind="pixels" if pixels else "vector",
        frame_shape=frames.shape if pixels else (int(np.prod(frames.shape)),),
        frame_dtype=np.dtype(np.uint8 if pixels else np.float32),
        num_actions=int(actions.n),
        stack=frame_stack if pixels else 1,
    )


def make_vector_env(
    spec: EnvSpec, protocol: Protocol, num_envs: int, out: StepResult | None = None
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """`num_envs` envs stepped together, actions 0 to `num_actions - 1`, next-step autoreset, raw rewards.

    Observations are one frame of each env, [num_envs, *frame_shape] but for axes of length 1 and flattening.
    Seed with `reset(seed=[one int per env])`. An action out of range hangs an Atari env for good: check before.
    """
    if spec.is_atari:
        return _atari(spec.env_id, protocol, num_envs, out)
    # never an env's own vector version: most draw all their envs from one generator, so that an env's randomness
    # would depend on how many share its worker
    return gym.vector.SyncVectorEnv([lambda: _make_one(spec)] * num_envs, copy=False)


def _make_one(spec: EnvSpec) -> gym.Env[Any, Any]:
    env = gym.make(spec.env_id, disable_env_checker=True)
    start = int(env.action_space.start)  # type: ignore[attr-defined]
    if start == 0:
        return env
    return gym.wrappers.TransformAction(env, lambda action: action + start, Discrete(spec.num_actions))


def _atari(env_id: str, protocol: Protocol, num_envs: int, out: StepResult | None = None) -> AtariGames:
    return AtariGames(
        gym.spec(env_id).kwargs["game"],
        num_envs,
        repeat_action_probability=protocol.repeat_action_probability,
        full_action_space=protocol.full_action_space,
        noop_max=protocol.noop_max,
        fire_reset=protocol.fire_reset,
        max_episode_frames=protocol.max_episode_frames,
        out=out,
    )
