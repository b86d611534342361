"""Tests of environments that show images: any layout and range becomes uint8 with channels last, everywhere alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import FrameStackObservation

from atari_dqn.config.derived import Derived, derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.make import env_spec, make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.envs.single import as_trained, make_env
from atari_dqn.training.summary import image_warning, summary

NATURE = PROTOCOLS["nature"]
ID = "Shown-v0"


class Shown(gym.Env[Any, Any]):
    """Shows images of a space, drawn at random from it."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = Discrete(2)

    def __init__(self, space: Any, render_mode: str | None = None) -> None:
        self.observation_space, self.render_mode = copy.deepcopy(space), render_mode
        self.shown: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._show(), 0.0, False, False, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)

    def _show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]


@pytest.fixture
def register() -> Iterator[Callable[[Any], Any]]:
    def make(space: Any) -> Any:
        gym.register(ID, lambda render_mode=None: Shown(space, render_mode))  # type: ignore[arg-type]

    yield make
    gym.registry.pop(ID, None)


def unit(values: Any) -> Any:
    return np.rint(values * np.float32(255)).astype(np.uint8)


IMAGES: dict[str, tuple[Box, tuple[int, ...], Callable[[Any], npt.NDArray[np.uint8]]]] = {
    "grey": (Box(0, 255, (84, 84), np.uint8), (84, 84), lambda x: x),
    "colours last": (Box(0, 255, (40, 36, 3), np.uint8), (40, 36, 3), lambda x: x),
    "colours first": (Box(0, 255, (3, 84, 90), np.uint8), (84, 90, 3), lambda x: np.moveaxis(x, 0, 2)),
    "one first": (Box(0, 255, (1, 48, 48), np.uint8), (48, 48, 1), lambda x: np.moveaxis(x, 0, 2)),
    "stacked": (Box(0, 255, (4, 84, 84), np.uint8), (84, 84, 4), lambda x: np.moveaxis(x, 0, 2)),
    "stacked last": (Box(0, 255, (40, 36, 12), np.uint8), (40, 36, 12), lambda x: x),
    "stacked colours": (
        Box(0, 255, (2, 40, 36, 3), np.uint8),
        (40, 36, 6),
        lambda x: np.concatenate([x[0], x[1]], axis=2),
    ),
    "unit": (Box(0, 1, (84, 84, 3), np.float32), (84, 84, 3), unit),
    "unit first": (Box(0, 1, (3, 40, 40), np.float64), (40, 40, 3), lambda x: unit(np.moveaxis(x, 0, 2))),
    "unit grey": (Box(0, 1, (50, 40, 1), np.float32), (50, 40, 1), unit),
    "signed": (Box(-1, 1, (40, 40, 1), np.float32), (40, 40, 1), lambda x: unit((x + 1) / 2)),
    "floats to 255": (Box(0, 255, (40, 40, 4), np.float32), (40, 40, 4), lambda x: np.rint(x).astype(np.uint8)),
    "bits": (Box(0, 1, (40, 40), np.uint8), (40, 40), lambda x: x * np.uint8(255)),
    "integers": (Box(0, 255, (40, 40, 3), np.int64), (40, 40, 3), lambda x: x.astype(np.uint8)),
    "a dead corner": (
        Box(0, np.pad(np.full((39, 39), 255, np.uint8), (1, 0)), dtype=np.uint8),
        (40, 40),
        lambda x: x,
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_any_layout_and_range_are_convolved(kind: str, register: Callable[[Any], Any]) -> None:
    """Training, films and the environment that a policy makes show the same frames."""
    space, shape, expected = IMAGES[kind]
    register(space)
    spec = env_spec(ID, NATURE, 3)
    assert (spec.kind, spec.frame_shape, spec.frame_dtype, spec.stack) == ("pixels", shape, np.uint8, 3)
    assert image_warning(spec) == []
    trained: Any = make_vector_env(spec, NATURE, 1)
    trained.reset([5])
    filmed, single = FilmedEnv(spec, NATURE, None), make_env(spec, NATURE)
    frame, stack = filmed.reset(5), single.reset(seed=5)[0]
    seen = []
    for tick in range(3):
        if tick:
            trained.step(np.array([1]))
            (frame, *_), (stack, *_) = filmed.step(1), single.step(1)
        seen.append(trained.out.frames[0].copy())
        np.testing.assert_array_equal(frame, seen[-1])
        np.testing.assert_array_equal(stack[-1], seen[-1])
        away = seen[-1].astype(int) - expected(trained._envs[0].unwrapped.shown[-1])
        assert np.abs(away).max() <= (space.dtype != np.uint8), "floats may be rounded the other way"
    np.testing.assert_array_equal(stack, seen)
    assert len({tuple(one.ravel()[:50]) for one in seen}) == 3


def test_an_environment_that_is_stacked_already_is_left_alone(register: Callable[[Any], Any]) -> None:
    register(Box(0, 255, (84, 84), np.uint8))
    spec = env_spec(ID, NATURE, 4)
    stacked = FrameStackObservation(gym.make(ID), 4)
    assert as_trained(stacked, spec) is stacked


OTHERS: dict[str, tuple[Any, bool]] = {
    "small": (Box(0, 255, (10, 10, 4), np.uint8), True),
    "a small view": (Box(0, 10, (7, 7, 3), np.int64), True),
    "unbounded": (Box(-np.inf, np.inf, (84, 84), np.float32), True),
    "bounds that say nothing": (Box(-3e38, 3e38, (84, 84, 3), np.float32), True),
    "half bounded": (Box(0, np.inf, (84, 84, 3), np.float32), True),
    "a table": (Box(0, 1000, (60, 40), np.float32), True),
    "a signed table": (Box(-1, 1, (50, 40), np.float32), True),
    "a table of integers": (Box(0, 65535, (40, 40, 3), np.uint16), True),
    "a table of pairs": (Box(0, 1, (40, 40, 2), np.float32), True),
    "a volume": (Box(0, 1, (40, 40, 40), np.float32), True),
    "a vector": (Box(0, 1, (84,), np.float32), False),
    "a long vector": (Box(0, 255, (1, 7056), np.uint8), False),
    "stacked vectors": (Box(-1, 1, (4, 84), np.float32), False),
    "one number": (Box(0, 1, (), np.float32), False),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_image_is_flattened_for_an_mlp_with_a_warning_where_it_looks_like_one(
    kind: str, register: Callable[[Any], Any]
) -> None:
    space, warned = OTHERS[kind]
    register(space)
    spec = env_spec(ID, NATURE, 3)
    assert (spec.kind, spec.frame_shape, spec.stack) == ("vector", (int(np.prod(space.shape)),), 1)
    assert bool(image_warning(spec)) == warned
    assert "MLP" in shown_of(spec)


def shown_of(spec: EnvSpec) -> str:
    config = TrainConfig()
    derived: Derived = derive(config, spec.frame_bytes)
    table = summary(config, spec, derived, Path("run"))
    return " ".join(str(cell) for column in table.columns for cell in column.cells)


@pytest.mark.parametrize("shape", [(0,), (0, 84, 84), (84, 84, 0), (3, 0)])
def test_an_observation_of_nothing_is_refused(shape: tuple[int, ...], register: Callable[[Any], Any]) -> None:
    register(Box(0, 1, shape, np.float32))
    with pytest.raises(ConfigError, match="holds nothing to learn from") as refused:
        env_spec(ID, NATURE, 4)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("space", "bad", "words"),
    [
        (Box(0, 1, (40, 40, 3), np.float32), np.float32(np.nan), "from nan to nan, its space from 0.* to 1"),
        (Box(0, 1, (40, 40, 3), np.float32), np.float32(np.inf), "from inf to inf, its space from 0.* to 1"),
        (Box(0, 1, (40, 40, 3), np.float32), np.float32(200), r"from 200.* to 200.*, its space from 0.* to 1"),
        (Box(0, 1, (40, 40), np.uint8), np.uint8(2), "from 2.* to 2.*, its space from 0.* to 1"),
        (Box(0, 255, (3, 40, 40), np.uint8), np.float32(0.5), "float32.*uint8"),
        (Box(0, 255, (40, 40), np.uint8), np.float32(0.5), "env 0: .*float32.*uint8"),
        (Box(0, 255, (40, 40), np.uint8), np.int64(256), "env 0: .*int64.*uint8"),
        (Box(0, 255, (40, 40), np.uint8), np.uint16(256), "env 0: .*uint16.*uint8"),
    ],
)
def test_an_image_with_values_outside_its_space_is_refused(
    space: Box, bad: Any, words: str, register: Callable[[Any], Any]
) -> None:
    register(space)
    envs: Any = make_vector_env(env_spec(ID, NATURE, 4), NATURE, 1)
    envs.reset([1])
    envs._envs[0].unwrapped._show = lambda: np.full(space.shape, bad)
    with pytest.raises((FloatingPointError, ValueError), match=words):
        envs.step(np.array([0]))


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_whole_values_of_another_dtype_are_taken(dtype: Any, register: Callable[[Any], Any]) -> None:
    register(Box(0, 255, (40, 40), np.uint8))
    envs: Any = make_vector_env(env_spec(ID, NATURE, 4), NATURE, 1)
    envs.reset([1])
    envs._envs[0].unwrapped._show = lambda: np.full((40, 40), 200, dtype)
    envs.step(np.array([0]))
    assert (envs.out.frames == 200).all()
