"""Environments of gymnasium other than Atari games, stepped one after the other."""

import contextlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.envs.single import as_uint8, limited, make_plain
from atari_dqn.envs.step import StepResult

LARGEST = float(np.finfo(np.float32).max)


class PlainEnvs:
    """Environments of one kind with next-step autoreset, which write their results to `out`.

    This is not gymnasium's vector environment, which merges the infos of all its environments and fails where they
    differ in kind. Nor is it an environment's own: most draw from one generator for all environments, so that the
    randomness of one would depend on how many share its worker.
    """

    def __init__(self, spec: EnvSpec, out: StepResult, first_env: int = 0) -> None:
        """Make the environments; for messages, they are numbered from `first_env`."""
        self.out, num_envs = out, len(out.rewards)
        self._envs = [
            limited(make_plain(spec.env_id, spec.wrapper, **spec.kwargs), spec.game_limit) for _ in range(num_envs)
        ]
        self._names = [f"env {first_env + env}" for env in range(num_envs)]
        self._shape = self._envs[0].observation_space.shape
        self._first_action = spec.first_action
        self._over = [True] * num_envs  # kept here as well, since a reader may overwrite shared memory

    def reset(self, seeds: Sequence[int]) -> None:
        """Start an episode from its seed in every environment, but for those whose seed is negative."""
        for env, seed in enumerate(seeds):
            if seed >= 0:
                self._start_episode(env, int(seed))

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Take an action in every environment; one whose episode has just ended starts another instead."""
        out = self.out
        for env, action in enumerate(actions):
            if self._over[env]:
                self._start_episode(env, None)
                continue
            frame, reward, terminated, truncated, info = self._envs[env].step(self._first_action + action)
            terminated = true_or_false(f"{self._names[env]}: terminated", terminated)
            truncated = true_or_false(f"{self._names[env]}: truncated", truncated)
            self._put_frame(env, frame)
            out.rewards[env] = finite(f"{self._names[env]}: reward", reward)
            out.raw_rewards[env] = raw_reward(f"{self._names[env]}: ", reward, info)
            out.terminated[env], out.truncated[env], out.is_reset[env] = terminated, truncated, False
            self._over[env] = terminated or truncated

    def close(self) -> None:
        for env in self._envs:
            with contextlib.suppress(Exception):  # nothing is lost any more
                env.close()

    def _start_episode(self, env: int, seed: int | None) -> None:
        self._put_frame(env, self._envs[env].reset(seed=seed)[0])
        self.out.put_reset(env)
        self._over[env] = False

    def _put_frame(self, env: int, frame: Any) -> None:
        frame, target = np.asarray(frame), self.out.frames[env]
        if frame.shape != self._shape:
            raise ValueError(f"{self._names[env]}: observation has shape {frame.shape}, its space {self._shape}")
        if frame.dtype.kind == "f" and not (np.abs(frame) <= LARGEST).all():  # <= is False for NaN
            raise FloatingPointError(f"{self._names[env]}: observation is NaN or too large for float32: {frame}")
        if target.dtype == np.uint8:
            frame = as_uint8(frame, f"{self._names[env]}: ")
        np.copyto(target, frame.reshape(target.shape), casting="same_kind")


def finite(what: str, value: Any) -> float:
    """`value`, which may be anything, as a float.

    Raises `FloatingPointError`, naming `what`, unless it is a number that float32 can hold: once in the replay, a NaN
    or infinity would be drawn again and again.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise FloatingPointError(f"{what} is {textwrap.shorten(repr(value), 60)}, not a number") from None
    except OverflowError:  # an int too large for a float
        number = math.inf
    if not abs(number) <= LARGEST:  # for NaN too
        raise FloatingPointError(f"{what} is NaN or too large for float32: {number}")
    return number


def true_or_false(what: str, value: Any) -> bool:
    """`value`, which may be anything, as a bool.

    Raises `FloatingPointError`, naming `what`, unless it is a bool, 0 or 1: the text "False" would count as True.
    """
    if isinstance(value, bool):  # nearly always; the rest takes a microsecond
        return value
    with contextlib.suppress(TypeError, ValueError):  # not a single value
        if (single := np.asarray(value).item()) in (0, 1):
            return bool(single)
    raise FloatingPointError(f"{what} is {textwrap.shorten(repr(value), 60)}, not True or False")


def raw_reward(who: str, reward: Any, info: Mapping[str, Any]) -> float:
    """The reward that scores sum up: `info["raw_reward"]` of an environment that shapes its rewards; see `finite`."""
    return finite(f"{who}raw_reward", info.get("raw_reward", reward))
