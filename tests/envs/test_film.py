"""Tests of the filmed environment: the network sees the frames of training, the viewer every picture in between."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.film import FilmedEnv, check_drawable
from atari_dqn.envs.make import env_spec, make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS
from tests.stubs import Numbered, Shifted

NATURE, MACHADO = PROTOCOLS["nature"], PROTOCOLS["machado"]
STILL = dataclasses.replace(NATURE, noop_max=0)


def no_show(picture: Any) -> None:
    pass


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "ALE/Pong-v5", "ALE/Seaquest-v5", "CartPole-v1"])
def test_same_actions_same_frames_as_in_training(env_id: str) -> None:
    spec = env_spec(env_id, STILL, 4)
    filmed, trained = FilmedEnv(spec, STILL, no_show), make_vector_env(spec, STILL, 1)
    actions = np.random.default_rng(0).integers(spec.num_actions, size=300)
    try:
        trained.reset([5])
        frame, expected = filmed.reset(seed=5), trained.out
        over = False
        for action in actions:
            assert frame.dtype == spec.frame_dtype
            assert frame.shape == spec.frame_shape
            np.testing.assert_array_equal(frame, expected.frames[0])
            if over:
                break
            frame, reward, over = filmed.step(int(action))
            trained.step(np.array([action]))
            assert (reward, over) == (expected.rewards[0], expected.terminated[0] or expected.truncated[0])
    finally:
        filmed.close()
        trained.close()


def test_every_tick_of_the_emulator_is_shown_in_colour() -> None:
    pictures: list[npt.NDArray[np.uint8]] = []
    env = FilmedEnv(env_spec("ALE/Breakout-v5", STILL, 4), STILL, pictures.append)
    env.reset(seed=0)
    assert env.fps == 60
    assert len(pictures) == 1
    env.step(1)  # FIRE launches the ball
    for _ in range(5):
        env.step(0)
    env.close()
    assert len(pictures) == 1 + 4 * 6
    assert {picture.shape for picture in pictures} == {(210, 160, 3)}
    assert (pictures[0][60, 80] == (200, 72, 72)).all(), "the top row of bricks is red"
    assert len({picture.tobytes() for picture in pictures[9:]}) == 16, "motion is smooth: no two ticks look alike"


def test_a_nature_game_begins_with_0_to_29_no_ops_and_a_machado_game_with_none() -> None:
    spec = env_spec("ALE/Breakout-v5", NATURE, 4)
    counts = []
    pictures: list[npt.NDArray[np.uint8]] = []
    env = FilmedEnv(spec, NATURE, pictures.append)
    for seed in range(12):
        pictures.clear()
        env.reset(seed=seed)
        counts.append(len(pictures) - 1)
    env.close()
    assert min(counts) >= 0
    assert 15 <= max(counts) <= 29
    assert len(set(counts)) > 6
    pictures.clear()
    env = FilmedEnv(env_spec("ALE/Breakout-v5", MACHADO, 4), MACHADO, pictures.append)
    env.reset(seed=1)
    env.close()
    assert len(pictures) == 1


def test_a_film_of_an_atari_game_prints_nothing() -> None:
    """Its emulator's name and version came between the lines of a training. In a program that has none yet."""
    program = (
        "import types; from atari_dqn.envs.film import PROTOCOLS, make_emulator\n"
        "make_emulator(types.SimpleNamespace(env_id='ALE/Breakout-v5'), PROTOCOLS['nature']).reset(seed=0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_score_starts_after_the_no_ops() -> None:
    """Skiing pays a negative reward at every frame."""
    scores: list[float] = []
    env = FilmedEnv(env_spec("ALE/Skiing-v5", NATURE, 4), NATURE, lambda picture: scores.append(env.score))
    for seed in range(4):
        env.reset(seed)
        assert env.score == 0
    env.close()
    assert min(scores) < 0, "no-ops were played"


@pytest.mark.parametrize(("protocol", "sticky", "num_actions"), [(NATURE, 0.0, 4), (MACHADO, 0.25, 18)])
def test_the_emulator_is_set_as_the_protocol_says(protocol: Any, sticky: float, num_actions: int) -> None:
    env = FilmedEnv(env_spec("ALE/Breakout-v5", protocol, 4), protocol, no_show)
    emulator: Any = env._env.unwrapped
    assert emulator.ale.getFloat("repeat_action_probability") == sticky
    assert emulator.ale.getInt("max_num_frames_per_episode") == 108_000
    assert emulator.action_space.n == num_actions
    env.close()


class Drawn(Shifted):
    """Its actions are 5, 6 and 7; its observation's fourth number is the action that led to it."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 12}
        self.render_mode = render_mode

    def render(self) -> npt.NDArray[np.uint8]:
        return np.full((40, 40, 3), self._step, np.uint8)


def test_other_envs_are_shown_once_a_step_and_their_actions_shifted_to_0() -> None:
    gym.register("Drawn-v0", lambda **settings: Drawn(**settings))
    pictures: list[npt.NDArray[np.uint8]] = []
    env = FilmedEnv(env_spec("Drawn-v0", NATURE, 4), NATURE, pictures.append)
    env.reset(seed=0)
    assert env.step(2)[0][3] == 7
    assert env.fps == 12
    assert [int(picture[0, 0, 0]) for picture in pictures] == [0, 1]


def test_an_env_that_cannot_draw_itself_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^tests.stubs:Numbered-v0 cannot draw itself: [^\n]+$"):
        FilmedEnv(env_spec("tests.stubs:Numbered-v0", NATURE, 4), NATURE, no_show)


def test_odd_render_modes_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbered, "metadata", {"render_modes": 5})
    with pytest.raises(ConfigError, match=r"^[^\n]*tests.stubs:Numbered-v0[^\n]*$"):
        FilmedEnv(env_spec("tests.stubs:Numbered-v0", NATURE, 4), NATURE, no_show)


@pytest.mark.parametrize(("env_id", "lives"), [("ALE/Breakout-v5", 5), ("CartPole-v1", None)])
def test_lives_are_read_of_atari_games_alone(env_id: str, lives: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    env = FilmedEnv(env_spec(env_id, STILL, 4), STILL, None)
    if lives is None:
        monkeypatch.setattr(env._shown.env, "reset", lambda **_: (np.zeros(4, np.float32), {"lives": 5}))
    env.reset(seed=1)
    assert env.lives == lives


def test_a_raw_reward_that_is_no_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    env = FilmedEnv(env_spec("CartPole-v1", NATURE, 4), NATURE, None)
    env.reset(seed=1)
    step = np.zeros(4, np.float32), 1.0, False, False, {"raw_reward": None}
    monkeypatch.setattr(env._shown.env, "step", lambda action: step)
    with pytest.raises(FloatingPointError, match="raw_reward is None"):
        env.step(0)


class Rendered(Drawn):
    """Its picture is the next of `pictures`."""

    pictures: ClassVar[list[Any]] = []

    def render(self) -> Any:
        return self.pictures[min(self._step, len(self.pictures) - 1)]


gym.register("Rendered-v0", lambda **settings: Rendered(**settings))


def shown(*pictures: Any) -> list[npt.NDArray[np.uint8]]:
    """The pictures of a game that draws these."""
    Rendered.pictures = list(pictures)
    found: list[npt.NDArray[np.uint8]] = []
    env = FilmedEnv(env_spec("Rendered-v0", NATURE, 4), NATURE, found.append)
    env.reset(seed=3)
    for _ in pictures[1:]:
        env.step(0)
    env.close()
    return found


RGB = np.arange(30).reshape(2, 5, 3) * 8


@pytest.mark.parametrize(
    "picture",
    [
        RGB.astype(np.uint8),
        RGB,
        RGB.astype(np.float64),
        RGB / 255,
        (RGB / 255).astype(np.float16),
        (RGB * 257).astype(np.uint16),
        np.concatenate([RGB, np.full((2, 5, 1), 255)], axis=2).astype(np.uint8),
        np.concatenate([RGB / 255, np.ones((2, 5, 1))], axis=2),
        RGB.transpose(2, 0, 1).astype(np.uint8),
        RGB.astype(np.uint8)[:, ::-1][:, ::-1],
        RGB.tolist(),
    ],
)
def test_pictures_of_any_dtype_and_layout_are_the_same_film(picture: Any) -> None:
    (drawn,) = shown(picture)
    assert (drawn.dtype, drawn.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_allclose(drawn, RGB, atol=1)


@pytest.mark.parametrize("picture", [np.eye(3, dtype=bool), np.eye(3), np.eye(3, dtype=np.uint8)[..., None] * 255])
def test_grey_pictures_are_drawn_in_grey(picture: Any) -> None:
    (drawn,) = shown(picture)
    np.testing.assert_array_equal(drawn, np.repeat(np.eye(3)[..., None] * 255, 3, axis=2))


def test_pictures_keep_their_scale_and_size_through_a_film() -> None:
    dark, bright = np.full((6, 8, 3), 1.0), np.full((6, 8, 3), 200.0)
    assert [int(picture.max()) for picture in shown(bright, dark)] == [200, 1], "not from 0 to 1 all of a sudden"
    assert [picture.shape for picture in shown(dark, np.ones((12, 4, 3)))] == [(6, 8, 3)] * 2
    assert int(shown(np.full((4, 4), np.nan))[0].max()) == 0


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (None, "render() returned None"),
        ("text", "render() returned 'text'"),
        (np.zeros((5, 5, 2)), "render() returned an array [5, 5, 2] of float64"),
        (np.zeros((0, 4, 3)), "render() returned an array [0, 4, 3]"),
        (np.zeros((1, 4, 4, 3)), "render() returned an array [1, 4, 4, 3]"),
        (np.zeros((4, 4, 3), complex), "of complex128"),
        ([np.zeros((4, 4)), np.zeros((5, 5))], "render() returned an array"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(picture: Any, words: str) -> None:
    spec = env_spec("Rendered-v0", NATURE, 4)
    for look in (lambda: shown(picture), lambda: check_drawable(spec)):
        with pytest.raises(ConfigError) as refused:
            look()
        assert str(refused.value).startswith("cannot film Rendered-v0: ")
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("__init__", "cannot film Rendered-v0: "),
        ("reset", "cannot play Rendered-v0: "),
        ("render", r"cannot film Rendered-v0: render\(\) raised "),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_what_an_env_raises_is_one_line(
    method: str, words: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, made = env_spec("Rendered-v0", NATURE, 4), Rendered.__init__

    def broken(env: Rendered, **given: Any) -> None:
        if method != "__init__" or given:
            raise error("it\nbroke")
        made(env)  # to be played, not drawn

    monkeypatch.setattr(Rendered, method, broken)
    with pytest.raises(ConfigError, match=f"^{words}{error.__name__}: it broke$"):
        check_drawable(spec)


@pytest.mark.parametrize(
    ("stated", "fps"), [(12, 12), (29.97, 30), (0, 30), (0.2, 30), (-5, 30), (None, 30), ("fast", 30), (1e9, 30),
                        (float("nan"), 30), (float("inf"), 30)]
)  # fmt: skip
def test_a_speed_that_no_film_can_have_is_30_pictures_a_second(stated: Any, fps: int) -> None:
    class Paced(Drawn):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(render_mode)
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": stated}

    gym.registry.pop("Paced-v0", None)
    gym.register("Paced-v0", Paced)  # type: ignore[arg-type]
    env = FilmedEnv(env_spec("Paced-v0", NATURE, 4), NATURE, no_show)
    env.close()
    assert env.fps == fps
