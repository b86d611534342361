"""Tests of environments that are not Atari games: which of what they return is read, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from atari_dqn.envs.make import env_spec, make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS
from tests.stubs import Numbered

NATURE = PROTOCOLS["nature"]
ID = "Told-v0"
Register = Callable[[Callable[[], gym.Env[Any, Any]]], Any]


@pytest.fixture
def vector_of() -> Iterator[Register]:
    """Registers an environment and makes two of it, started."""

    def make(creator: Callable[[], gym.Env[Any, Any]]) -> Any:
        gym.register(ID, creator)  # type: ignore[arg-type]
        envs = make_vector_env(env_spec(ID, NATURE, 4), NATURE, 2, first_env=6)
        envs.reset([1, 2])
        return envs

    yield make
    gym.registry.pop(ID, None)


class Told(Numbered):
    """Its k-th step since it was made returns the k-th of `infos`, and pays the k-th of `rewards`."""

    def __init__(self, infos: Iterator[Any] | None = None, rewards: Iterator[Any] | None = None) -> None:
        super().__init__()
        self._infos, self._rewards = infos or itertools.repeat({}), rewards or itertools.repeat(1.0)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        observation, _, *ends, _ = super().step(action)
        return observation, next(self._rewards), *ends, next(self._infos)


def counted(make: Callable[[int], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return map(make, itertools.count())


@pytest.mark.parametrize(
    "make",
    [
        lambda k: {"lives": 1000 - k},
        lambda k: {"lives": [None, 3, "two", math.nan, [1], 2][k % 6]},
        lambda k: {"path": np.arange(k % 5)},
        lambda k: {"outcome": [0, "won", None, {"deep": k}][k % 4]},
        lambda k: {"path": np.zeros((k % 3, 2)), 7: object()} if k % 2 else {},
        lambda k: {"_lives": True, "_raw_reward": None, "final_obs": k},
    ],
    ids=["lives that fall", "lives of no kind", "an array that grows", "changing types", "changing keys", "our names"],
)
def test_infos_that_nobody_reads_change_nothing(make: Any, vector_of: Register) -> None:
    """Protocols, and with them lives, apply to Atari games alone."""
    odd, plain = (
        vector_of(lambda: Told(counted(make))),
        make_vector_env(env_spec("tests.stubs:Numbered-v0", NATURE, 4), NATURE, 2),
    )
    plain.reset([1, 2])
    for _ in range(30):
        for envs in (odd, plain):
            envs.step(np.array([0, 1]))
        for field in dataclasses.fields(plain.out):
            ours, theirs = getattr(odd.out, field.name), getattr(plain.out, field.name)
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
    assert not odd.out.lives.any()


@pytest.mark.parametrize("bad", [None, "none", math.nan, -math.inf, 1e39, 10**400, [1.0, 2.0], np.array([]), {}])
@pytest.mark.parametrize("what", ["reward", "raw_reward"])
def test_a_reward_that_is_no_finite_number_is_refused_by_name(what: str, bad: Any, vector_of: Register) -> None:
    """Also where only some steps have one."""
    values = itertools.chain([1.0], itertools.repeat(bad))
    if what == "reward":
        envs = vector_of(lambda: Told(rewards=values))
    else:
        envs = vector_of(lambda: Told(infos=({what: value} for value in values)))
    with pytest.raises(FloatingPointError, match=f"env 7: {what} is "):
        envs.step(np.array([0, 0]))


def test_a_raw_reward_is_scored_where_there_is_one(vector_of: Register) -> None:
    infos = itertools.cycle([{"raw_reward": np.float32(5)}, {}, {"raw_reward": np.array(7)}, {"raw_reward": True}])
    envs = vector_of(lambda: Told(infos, itertools.repeat(2.0)))
    learned: list[float] = []
    scored: list[float] = []
    while len(scored) < 8:
        envs.step(np.array([0, 0]))
        for env in np.flatnonzero(~envs.out.is_reset):
            learned.append(float(envs.out.rewards[env]))
            scored.append(float(envs.out.raw_rewards[env]))
    assert (learned[:8], scored[:8]) == ([2.0] * 8, [5.0, 2.0, 7.0, 1.0] * 2)


@pytest.mark.parametrize("shape", [(), (5,), (4, 1)])
def test_an_observation_of_another_shape_than_its_space_is_refused(shape: Any, vector_of: Register) -> None:
    envs = vector_of(Numbered)
    envs._envs[1].unwrapped._observation = lambda action: np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="env 7: observation has shape"):
        envs.step(np.array([0, 0]))
