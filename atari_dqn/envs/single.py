"""One env of gymnasium's own make, shown to an agent as in training: an env flows in, the same one with the training's
observations flows out, for programs that step it themselves."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import EnvSpec, Protocol

AnyEnv = gym.Env[Any, Any]


def interface(spec: EnvSpec) -> tuple[tuple[int, ...], int]:
    """The shape of an observation as a plain env shows it (pixels: stacked), and the number of its first action."""
    if spec.is_atari:
        return (spec.stack, *spec.frame_shape), 0
    env = gym.make(spec.env_id, disable_env_checker=True)
    shape, first = env.observation_space.shape, int(env.action_space.start)  # type: ignore[attr-defined]
    env.close()
    assert shape is not None, "an EnvSpec is of an env that observes a Box"
    return ((spec.stack, *shape) if spec.kind == "pixels" else shape), first


def make_env(spec: EnvSpec, protocol: Protocol, **kwargs: Any) -> AnyEnv:
    """The game of `spec` under `protocol`, no-op starts included; `kwargs` go to `gym.make`, before ours."""
    if not spec.is_atari:
        return as_trained(gym.make(spec.env_id, **kwargs), spec)
    return as_trained(_NoOpStart(make_emulator(spec, protocol, **kwargs), protocol.noop_max), spec)


def make_emulator(spec: EnvSpec, protocol: Protocol, **kwargs: Any) -> AnyEnv:
    """The bare game of `spec`, one grey frame a step, no no-ops; `kwargs` go to `gym.make`, before ours."""
    ours: dict[str, Any] = {
        "frameskip": 1,
        "obs_type": "grayscale",
        "repeat_action_probability": protocol.repeat_action_probability,
        "full_action_space": protocol.full_action_space,
        "max_num_frames_per_episode": protocol.max_episode_frames,
    }
    return gym.make(spec.env_id, **{**ours, **kwargs})


def as_trained(env: AnyEnv, spec: EnvSpec) -> AnyEnv:
    """`env` with the observations that an agent trained in `spec` looks at: [stack, *frame_shape], or its own vectors.

    A raw Atari env (one frame a step) gets 4 frames an action and their preprocessing, any env of pixels its stacks;
    what is there already is left alone. Raises `ConfigError` for an env of other observations or actions.
    """
    actions, stacked = env.action_space, (spec.stack, *spec.frame_shape)
    if not isinstance(actions, Discrete) or int(actions.n) != spec.num_actions:
        hint = "; make it with full_action_space=True" if spec.is_atari and spec.num_actions == 18 else ""
        raise ConfigError(f"this env has {actions}, and {spec.env_id} was trained with {spec.num_actions}{hint}")
    if hasattr(env.unwrapped, "ale") and env.observation_space.shape not in (stacked, spec.frame_shape):
        env = _preprocessed(env)
    if spec.kind == "pixels" and env.observation_space.shape == spec.frame_shape:
        env = FrameStackObservation(env, spec.stack, padding_type="reset")
    space = env.observation_space
    if spec.kind == "pixels":
        fits = isinstance(space, Box) and space.shape == stacked and space.dtype == spec.frame_dtype
    else:
        fits = isinstance(space, Box) and math.prod(space.shape) == math.prod(stacked)
    if not fits:
        raise ConfigError(f"this env shows {space}, and the training's {spec.frame_dtype} {list(stacked)}")
    return env


def _preprocessed(env: AnyEnv) -> AnyEnv:
    if len(env.observation_space.shape or ()) < 2:
        raise ConfigError("this env shows the console's memory; make it with obs_type='rgb' or 'grayscale'")
    try:
        return AtariPreprocessing(env, noop_max=0, frame_skip=4, screen_size=84)
    except ValueError:
        raise ConfigError(
            "this env skips frames itself and hides those that an observation is made of; make it with frameskip=1"
        ) from None


class _NoOpStart(gym.Wrapper[Any, Any, Any, Any]):
    """Begins a game with 0 to `noop_max - 1` frames of no-op."""

    def __init__(self, env: AnyEnv, noop_max: int) -> None:
        super().__init__(env)
        self._noop_max = noop_max

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        for _ in range(int(self.unwrapped.np_random.integers(max(1, self._noop_max)))):
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


CLASSICS = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "coast", "right"),
    "Acrobot": ("torque -1", "torque 0", "torque +1"),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
}
"""As gymnasium's pages describe them: these envs do not tell the names themselves."""


def action_names(spec: EnvSpec, protocol: Protocol) -> tuple[str, ...]:
    """The `num_actions` names, in order: the console's (NOOP, FIRE, ...), an env's own, or `action 0`, `action 1`..."""
    modes = {"full_action_space": protocol.full_action_space} if spec.is_atari else {}
    env = gym.make(spec.env_id, disable_env_checker=True, **modes)
    tell = getattr(env.unwrapped, "get_action_meanings", None)
    names = tell() if tell is not None else CLASSICS.get(spec.env_id.split("-v")[0], ())
    env.close()
    if len(names) != spec.num_actions:
        return tuple(f"action {action}" for action in range(spec.num_actions))
    return tuple(map(str, names))
