"""Resolution of environment ids, specifications, and vector environments.

Every vector environment made here writes the newest frame of each environment and unclipped rewards to a `StepResult`,
and resets a finished environment on the tick after its end (gymnasium's next-step autoreset).
"""

import dataclasses
import difflib
import importlib
import pickle
import re
import textwrap
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector.utils import CloudpickleWrapper

from atari_dqn.config.objects import named, receive, sendable
from atari_dqn.config.schema import EnvConfig, TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.atari import AtariGames
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.plain import PlainEnvs
from atari_dqn.envs.protocol import FRAME_SIZE, PROTOCOLS, EnvSpec, Protocol
from atari_dqn.envs.single import image_axes, one_line, opened, time_limit
from atari_dqn.envs.step import StepResult


def resolve_env_id(name: str) -> str:
    """Resolve a user's name for an environment to an id that `gym.make` takes, such as `ALE/MsPacman-v5`.

    The name is an id of gymnasium, `module:Env-v0`, whose module is imported to register the id, `module:Env`, a class
    or function that makes one, or else a game such as `breakout` or `ms_pacman`.

    Raises:
        ConfigError: The name is unknown (the message suggests the closest known one), or is one of the old Atari ids,
            which fix the frame skip and sticky actions that a protocol should choose.
    """
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a user's module may fail in any way
            raise ConfigError(f"--env-id {name}: cannot import {module} ({one_line(error)})") from error
    if module and bare not in gym.registry:
        try:
            if callable(named("env_id", name)):
                return name
        except ConfigError:
            if module == "__main__" or re.search(r"\b(locals|lambda)\b", bare):
                raise
    if bare in gym.registry and not _is_ales(bare):
        if is_atari(name):
            raise ConfigError(f"--env-id {name}: ALE/ is for Atari games; register your environment under another name")
        return name
    games = {_plain(env_id): env_id for env_id in gym.registry if is_atari(env_id) and _is_ales(env_id)}
    words = re.fullmatch(r"(?P<game>.+?)(?P<old>-ram|NoFrameskip|Deterministic)*(?P<version>-v\d+)?", bare)
    game = games.get(_plain(words["game"])) if words else None
    if words and game and (not module or bare in gym.registry):
        if words["old"] or words["version"] not in (None, "-v5"):
            raise ConfigError(f"--env-id {name}: old id; use {game} and choose its preprocessing with --protocol")
        return game
    prefix = f"{module}:" if module else ""
    known = games | {_plain(env_id): prefix + env_id for env_id in gym.registry if not _is_ales(env_id)}
    near = difflib.get_close_matches(_plain(bare), known, n=1)
    raise ConfigError(
        f"--env-id {name}: unknown environment; "
        + (f"did you mean {known[near[0]]}?" if near else "try a game such as breakout, or a gymnasium id")
        + ("" if module else f"; for one of your own use module:{name}")
    )


def _is_ales(env_id: str) -> bool:
    """Whether a registered id is one of ale-py's own, not one that a user gave a game's name or a game's class."""
    known = gym.registry[env_id]
    if str(known.entry_point) != "ale_py.env:AtariEnv" or {"mode", "difficulty"} & known.kwargs.keys():
        return False
    game = known.kwargs.get("game", "").title().replace("_", "")
    return re.fullmatch(rf"ALE/{game}-v5|{game}(NoFrameskip)?-v[04]", env_id) is not None


def _plain(name: str) -> str:
    """The part of a name to compare: `ALE/MsPacman-v5`, `ms_pacman` -> `mspacman`; `CartPole-v1` -> `cartpole`."""
    return re.sub(r"-v\d+$|[ _-]", "", name.removeprefix("ALE/")).lower()


def registration(spec: EnvSpec, *names: str) -> bytes:
    """What `register` needs to know the environment in another process; this one's script alone may define it.

    `names` are of further objects, see config/objects.py. Raises `ConfigError` if they cannot be sent.
    """
    env_id = spec.env_id
    known = None if spec.is_atari else gym.registry.get(env_id)  # a module's id registers itself
    objects = sendable(env_id, spec.wrapper, *names)
    if known is None and not objects:
        return b""
    if known and str(known.entry_point).startswith("__main__:"):
        creator: Any = load_env_creator(str(known.entry_point))
        known = dataclasses.replace(known, entry_point=creator)
    try:
        return pickle.dumps(CloudpickleWrapper(lambda: (known, objects)))
    except Exception as error:  # whatever the objects that the class refers to raise
        raise ConfigError(
            f"--env-id {env_id}: cannot send the environment to the workers ({one_line(error)});"
            " register it in a module and use module:id"
        ) from error


def register(registered: bytes) -> None:
    """Register the environment of a `registration`."""
    if registered:
        known, objects = pickle.loads(registered).fn()
        receive(objects)
        if known:
            gym.registry[known.id] = known


def resolve_env(config: TrainConfig) -> tuple[TrainConfig, EnvSpec]:
    """The settings with the environment's full id, and what it looks like. Raises `ConfigError` as `spec_of`."""
    config = config.replace(env_id=resolve_env_id(config.env.env_id))
    spec = spec_of(config.env)
    if config.run.record_interval:
        from atari_dqn.envs.film import check_drawable

        check_drawable(spec)
    return config, spec


def spec_of(config: EnvConfig) -> EnvSpec:
    """The environment that the settings name, by its resolved id; see `env_spec`."""
    return env_spec(config.env_id, PROTOCOLS[config.protocol], config.frame_stack, kwargs_of(config), config.wrapper)


def kwargs_of(config: EnvConfig) -> dict[str, Any]:
    """The arguments of the environment. Raises `ConfigError` for an Atari game that is given any, or a wrapper."""
    kwargs = config.arguments()
    if is_atari(config.env_id) and (kwargs or config.wrapper):
        raise ConfigError(
            f"--{'env-kwargs' if kwargs else 'wrapper'} is not for Atari games, which ale_py steps; try --env-id"
            " module:name of a function that makes the game"
        )
    return kwargs


def env_spec(
    env_id: str, protocol: Protocol, frame_stack: int, kwargs: dict[str, Any] | None = None, wrapper: str = ""
) -> EnvSpec:
    """Find the shapes and counts of an environment, by making one.

    A Box of images (see `image_axes`) counts as pixels. Any other is flattened to a float32 vector, and not stacked.

    Args:
        env_id: Resolved id.
        protocol: How an Atari game is presented.
        frame_stack: Number of frames in an observation of pixels.
        kwargs: Arguments with which it is made.
        wrapper: Name of what wraps it.

    Raises:
        ConfigError: The environment cannot be made, or its observations are not a Box or its actions not Discrete.
    """
    if is_atari(env_id):
        shape, dtype = (FRAME_SIZE, FRAME_SIZE), np.dtype(np.uint8)
        num_actions = len(_atari(env_id, protocol, StepResult.empty(1, shape, dtype)).actions)
        return EnvSpec(env_id, True, "pixels", shape, dtype, num_actions, frame_stack)
    with opened(env_id, wrapper, **(kwargs or {})) as env:
        frames, actions, limit = env.observation_space, env.action_space, time_limit(env)
    if not isinstance(frames, Box):
        flat = isinstance(frames, Space) and frames.is_np_flattenable
        way = "; try gymnasium.wrappers.FlattenObservation, as in docs/own-environment.md" if flat else ""
        what = textwrap.shorten(str(frames), 100)
        raise ConfigError(f"--env-id {env_id}: observations are {what}; only Box is supported{way}")
    if not isinstance(actions, Discrete):
        raise ConfigError(f"--env-id {env_id}: actions are {actions}; only Discrete is supported")
    if 0 in frames.shape:
        raise ConfigError(f"--env-id {env_id}: observations are {frames}, which holds nothing to learn from")
    pixels = image_axes(frames) is not None
    return EnvSpec(
        env_id=env_id,
        is_atari=False,
        kind="pixels" if pixels else "vector",
        frame_shape=frames.shape if pixels else (int(np.prod(frames.shape)),),
        frame_dtype=np.dtype(np.uint8 if pixels else np.float32),
        num_actions=int(actions.n),
        stack=frame_stack if pixels else 1,
        flattened=() if pixels else frames.shape,
        first_action=int(actions.start),
        time_limit=limit,
        kwargs=kwargs or {},
        wrapper=wrapper,
    )


def make_vector_env(
    spec: EnvSpec, protocol: Protocol, num_envs: int, out: StepResult | None = None, first_env: int = 0
) -> AtariGames | PlainEnvs:
    """Make environments that are stepped together in this process, with actions from 0 to `num_actions - 1`.

    They write their results to `out`, new arrays by default, and are numbered from `first_env` in messages. An action
    out of range hangs an Atari game forever, so check actions before.
    """
    out = out if out is not None else StepResult.empty(num_envs, spec.frame_shape, spec.frame_dtype)
    return _atari(spec.env_id, protocol, out) if spec.is_atari else PlainEnvs(spec, out, first_env)


def _atari(env_id: str, protocol: Protocol, out: StepResult) -> AtariGames:
    return AtariGames(gym.spec(env_id).kwargs["game"], protocol, out)
