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
from gymnasium.wrappers import TimeLimit, TransformReward

from atari_dqn.envs.make import env_spec, make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.envs.single import limited, time_limit
from atari_dqn.evaluation.player import tell_of_endless_game
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
    """Its k-th step since it was made returns the k-th of `infos`, of `rewards` and, if given, of `ends`."""

    def __init__(
        self,
        infos: Iterator[Any] | None = None,
        rewards: Iterator[Any] | None = None,
        ends: Iterator[tuple[Any, Any]] | None = None,
    ) -> None:
        super().__init__()
        self._infos, self._rewards = infos or itertools.repeat({}), rewards or itertools.repeat(1.0)
        self._ends = ends

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        observation, _, *ends, _ = super().step(action)
        terminated, truncated = next(self._ends) if self._ends else ends
        return observation, next(self._rewards), terminated, truncated, next(self._infos)


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


@pytest.mark.parametrize(
    "bad",
    ["False", "", None, 0.5, math.nan, 2, -1, [], {}, np.zeros(2, bool), np.zeros((9, 9)), [True, False]],
)
@pytest.mark.parametrize("what", ["terminated", "truncated"])
def test_an_end_that_is_neither_true_nor_false_is_refused_by_name(what: str, bad: Any, vector_of: Register) -> None:
    ends = iter([(False, False), (bad, False) if what == "terminated" else (False, bad)])
    envs = vector_of(lambda: Told(ends=ends))
    with pytest.raises(FloatingPointError, match=rf"env 7: {what} is .+, not True or False$") as refused:
        envs.step(np.array([0, 0]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [bool, np.bool_, int, float, np.int64, np.array, lambda end: np.array([end])])
def test_an_end_of_any_type_is_taken(kind: Any, vector_of: Register) -> None:
    ends = iter([(kind(False), kind(True)), (kind(True), kind(False))])
    envs = vector_of(lambda: Told(ends=ends))
    envs.step(np.array([0, 0]))
    assert envs.out.terminated.tolist() == [False, True]
    assert envs.out.truncated.tolist() == [True, False]


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


class TimesItself(gym.Wrapper[Any, Any, Any, Any]):
    """A time limit of somebody else's."""

    _max_episode_steps = np.int64(70)


class Plays(Numbered):
    """Plays another environment."""

    def __init__(self) -> None:
        self.env = gym.make("Timed-v0", max_episode_steps=70)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeLimit(gym.make("Endless-v0"), 70),
        lambda: TimeLimit(gym.make("Timed-v0", max_episode_steps=200), 70),
        lambda: TransformReward(TimeLimit(Numbered(), 70), float),
        lambda: gym.make("Timed-v0", max_episode_steps=70),
        lambda: TimesItself(Numbered()),
        Plays,
    ],
    ids=["wrapped", "two", "below another wrapper", "made by gym.make", "another wrapper", "within"],
)
def test_a_time_limit_of_the_environments_own_factory_is_kept_and_nobody_is_warned(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.registry, "Own-v0", gym.envs.registration.EnvSpec("Own-v0", make))  # type: ignore[arg-type]
    monkeypatch.setattr("atari_dqn.evaluation.player.NOTE_AFTER", 40)
    spec = env_spec("Own-v0", NATURE, 4)
    assert spec.time_limit == 70
    told: list[str] = []
    tell_of_endless_game(spec, 40, told.append)
    assert told == []
    assert time_limit(limited(gym.make("Own-v0"), 9)) == 70


@pytest.mark.parametrize(("own", "cut"), [(None, 9), (5, 9), (12, 12)])
def test_a_time_limit_that_is_not_enforced_is_replaced_and_the_user_told(own: int | None, cut: int) -> None:
    """A user's environment may have the attribute for itself."""
    env = Numbered(length=100)
    env._max_episode_steps = own  # type: ignore[attr-defined]
    shown = limited(env, 9)
    shown.reset()
    assert [shown.step(0)[3] for _ in range(20)].index(True) + 1 == cut
    told: list[str] = []
    spec = dataclasses.replace(env_spec("Endless-v0", NATURE, 4), time_limit=own)
    for step in range(1, 3_000):
        tell_of_endless_game(spec, step, told.append)
    assert len(told) == 1
    assert limited(env, None) is env
