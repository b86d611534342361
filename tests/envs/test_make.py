"""Tests of environment names, protocols and preprocessing against the papers, gymnasium and ale-py."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.wrappers import AtariPreprocessing

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec, make_vector_env, resolve_env_id
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec, Protocol
from atari_dqn.envs.single import action_names
from atari_dqn.workers.history import env_seeds
from tests.stubs import Numbered

NATURE, MACHADO = PROTOCOLS["nature"], PROTOCOLS["machado"]


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("breakout", "ALE/Breakout-v5"),
        ("Breakout", "ALE/Breakout-v5"),
        ("ALE/Breakout-v5", "ALE/Breakout-v5"),
        ("Breakout-v5", "ALE/Breakout-v5"),
        ("ms_pacman", "ALE/MsPacman-v5"),
        ("MsPacman", "ALE/MsPacman-v5"),
        ("ale_py:ALE/Pong-v5", "ALE/Pong-v5"),
        ("CartPole-v1", "CartPole-v1"),
        ("tests.stubs:Catch-v0", "tests.stubs:Catch-v0"),
    ],
)
def test_names_resolve_to_full_ids(name: str, env_id: str) -> None:
    assert resolve_env_id(name) == env_id


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Braekout", "did you mean ALE/Breakout-v5?"),
        ("cartpole", "did you mean CartPole-v1?"),
        ("CartPole-v9", "did you mean CartPole-v1?"),
        ("tests.stubs:Cacth-v0", "did you mean tests.stubs:Catch-v0?"),
        ("no_such_module:Catch-v0", "cannot import no_such_module"),
        ("xyzzy", "try a game such as breakout"),
        # gymnasium would take these, with frame skips and sticky actions of their own
        ("Breakout-v0", "use ALE/Breakout-v5"),
        ("Breakout-v4", "use ALE/Breakout-v5"),
        ("BreakoutNoFrameskip-v4", "use ALE/Breakout-v5"),
        ("ALE/Breakout-v4", "use ALE/Breakout-v5"),
        ("Breakout-ramDeterministic-v4", "use ALE/Breakout-v5"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line_that_helps(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_env_id(name)
    assert name in str(refused.value)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """gymnasium's, put back afterwards."""
    before = dict(gym.registry)
    yield gym.registry
    gym.registry.clear()
    gym.registry.update(before)


@pytest.mark.parametrize(
    "own", ["Pong-v5", "Breakout-v0", "pong-v1", "MsPacman-v5", "BreakoutNoFrameskip-v4", "ALE/Pong-v5", "x/Pong-v5"]
)
def test_an_own_environment_is_not_taken_for_the_game_whose_name_it_bears(
    own: str, registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path.name
    (tmp_path / f"{module}.py").write_text(
        f"import gymnasium, tests.stubs\ngymnasium.register({own!r}, tests.stubs.Numbered)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    resolved = resolve_env_id(f"{module}:{own}")
    assert resolved == f"{module}:{own}"
    spec = env_spec(resolved, NATURE, 4)
    assert (spec.is_atari, spec.kind, spec.frame_shape, spec.num_actions) == (False, "vector", (4,), 3)


def test_names_that_a_module_does_not_register_are_no_games(registry: Any) -> None:
    for name in ("tests.stubs:pong", "tests.stubs:Breakout", "tests.stubs:Ctch-v0"):
        with pytest.raises(ConfigError, match="unknown environment; did you mean"):
            resolve_env_id(name)
    gym.register("Pong-v5", "tests.stubs:Numbered")  # in this very process
    assert resolve_env_id("Pong-v5") == "Pong-v5"
    assert resolve_env_id("pong") == "ALE/Pong-v5"
    gym.register("ALE/Mine-v0", "tests.stubs:Numbered")
    with pytest.raises(ConfigError, match="ALE/ is for Atari games"):
        resolve_env_id("ALE/Mine-v0")


@pytest.mark.parametrize(
    ("own", "entry_point", "kwargs"),
    [
        ("Pong-v5", "scale_py_games:Walk", {}),
        ("my/Pong-v5", "ale_py.env:AtariEnv", {"game": "pong"}),
        ("HardPong-v0", "ale_py.env:AtariEnv", {"game": "pong"}),
        ("Pong-v5", "ale_py.env:AtariEnv", {"game": "pong", "difficulty": 1}),
    ],
)
def test_an_own_registration_is_never_replaced(own: str, entry_point: str, kwargs: Any, registry: Any) -> None:
    gym.register(own, entry_point, kwargs=kwargs)
    assert resolve_env_id(own) == own
    if kwargs:
        assert env_spec(own, NATURE, 4).frame_shape == (210, 160, 3)
        gym.register("ALE/Pong-v5", entry_point, kwargs={"game": "pong", "difficulty": 1})
        with pytest.raises(ConfigError, match="ALE/ is for Atari games"):
            resolve_env_id("ALE/Pong-v5")


class Meant(Numbered):
    """Names its actions with `means`."""

    means: Any

    def get_action_meanings(self) -> Any:
        return self.means()


@pytest.mark.parametrize(
    ("means", "names"),
    [
        (lambda: 1 // 0, None),
        (lambda: None, None),
        (lambda: [1, 2, 3], None),
        (lambda: ["go\n left", "r\ud800", "up"], ("go left", "r?", "up")),
    ],
)
def test_action_names_are_one_line_each_or_numbers(
    means: Any, names: Any, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meant, "means", staticmethod(means), raising=False)
    gym.register("Meant-v0", Meant)  # type: ignore[arg-type]
    spec = env_spec("Meant-v0", NATURE, 4)
    assert action_names(spec, NATURE) == (names or ("action 0", "action 1", "action 2"))


def test_gymnasiums_own_game_of_an_atari_games_name_is_told_what_its_observations_are() -> None:
    with pytest.raises(ConfigError, match="only Box is supported"):
        env_spec(resolve_env_id("Blackjack-v1"), NATURE, 4)


def test_every_game_has_a_spec_and_an_action_set() -> None:
    games = [env_id for env_id in gym.registry if env_id.startswith("ALE/")]
    assert len(games) > 100
    for env_id in games:
        game = env_id.removeprefix("ALE/").removesuffix("-v5")
        assert resolve_env_id(game) == resolve_env_id(game.lower()) == env_id
    for game, minimal in (("breakout", 4), ("pong", 6), ("freeway", 3), ("seaquest", 18)):
        assert env_spec(resolve_env_id(game), NATURE, 4).num_actions == minimal
        assert env_spec(resolve_env_id(game), MACHADO, 4).num_actions == 18


def test_what_a_spec_says() -> None:
    atari = env_spec("ALE/Breakout-v5", NATURE, 4)
    assert (atari.is_atari, atari.kind, atari.frame_shape, atari.stack) == (True, "pixels", (84, 84), 4)
    assert (atari.frame_dtype, atari.frame_bytes) == (np.uint8, 7056)
    cartpole = env_spec("CartPole-v1", NATURE, 4)
    assert (cartpole.is_atari, cartpole.kind, cartpole.frame_shape, cartpole.stack) == (False, "vector", (4,), 1)
    assert (cartpole.frame_dtype, cartpole.frame_bytes, cartpole.num_actions) == (np.float32, 16, 2)
    colors = env_spec("tests.stubs:Colors-v0", NATURE, 3)
    assert (colors.kind, colors.frame_shape, colors.stack, colors.frame_bytes) == ("pixels", (40, 36, 3), 3, 4320)


def test_actions_that_are_not_discrete_are_refused() -> None:
    with pytest.raises(ConfigError, match="only Discrete"):
        env_spec("Pendulum-v1", NATURE, 4)


@pytest.mark.parametrize(
    ("space", "length"),
    [
        (spaces.Discrete(5), 5),
        (spaces.Dict({f"part {number}": spaces.Box(0, 1, (2, 9)) for number in range(9)}, x=spaces.Discrete(3)), 165),
        (spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(3))), 5),
        (spaces.Text(4), 4),
        (spaces.Sequence(spaces.Discrete(2)), None),
    ],
)
def test_observations_that_are_no_box_are_refused_with_the_wrapper_that_makes_them_one(
    space: spaces.Space[Any], length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    env: gym.Env[Any, Any] = gym.Env()
    env.observation_space, env.action_space = space, spaces.Discrete(2)
    for name, make in (("Odd-v0", lambda **_: env), ("Flat-v0", lambda **_: gym.wrappers.FlattenObservation(env))):
        monkeypatch.setitem(gym.registry, name, gym.envs.registration.EnvSpec(name, make))
    with pytest.raises(ConfigError, match="only Box is supported") as refused:
        env_spec("Odd-v0", NATURE, 4)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert ("FlattenObservation" in str(refused.value)) == (length is not None)
    if length:
        assert env_spec("Flat-v0", NATURE, 4).frame_shape == (length,)


def test_the_protocols_are_those_of_the_papers() -> None:
    assert dataclasses.asdict(NATURE) == {
        "name": "nature",
        "repeat_action_probability": 0.0,
        "noop_max": 30,
        "full_action_space": False,
        "life_loss_terminal": True,
        "max_episode_frames": 108_000,
    }
    assert dataclasses.asdict(MACHADO) == {
        "name": "machado",
        "repeat_action_probability": 0.25,
        "noop_max": 0,
        "full_action_space": True,
        "life_loss_terminal": False,
        "max_episode_frames": 108_000,
    }


def twin_of(spec: EnvSpec, protocol: Protocol, seed: int) -> gym.Env[Any, Any]:
    """gymnasium's own preprocessing, over a raw emulator that skips nothing and is seeded as ours are."""
    emulator = gym.make(
        spec.env_id,
        frameskip=1,
        repeat_action_probability=protocol.repeat_action_probability,
        full_action_space=protocol.full_action_space,
    )
    raw: Any = emulator.unwrapped
    assert raw.ale.getFloat("repeat_action_probability") == protocol.repeat_action_probability
    emulator.reset()
    raw.ale.setInt("random_seed", seed)
    raw.load_game()
    preprocessed = AtariPreprocessing(emulator, noop_max=0, frame_skip=4, screen_size=84, terminal_on_life_loss=False)
    return gym.wrappers.TimeLimit(preprocessed, protocol.max_episode_frames // 4)


@pytest.mark.parametrize("protocol", [NATURE, MACHADO], ids=["nature", "machado"])
@pytest.mark.parametrize("game", ["breakout", "space_invaders", "asteroids", "qbert"])
def test_preprocessing_equals_gymnasiums_pixel_for_pixel(game: str, protocol: Protocol) -> None:
    """Frame skip, maximum before resizing, sticky actions, lives, raw rewards and both kinds of end. Asteroids and
    Space Invaders draw their sprites on every other frame only. No-ops are drawn from another generator there."""
    protocol = dataclasses.replace(protocol, noop_max=0, max_episode_frames=640)
    spec = env_spec(resolve_env_id(game), protocol, 4)
    ours, twin = make_vector_env(spec, protocol, 1), twin_of(spec, protocol, seed=12345)
    ours.reset([12345])
    np.testing.assert_array_equal(ours.out.frames[0], twin.reset()[0])
    rng, over, ends = np.random.default_rng(0), False, 0
    for _ in range(200):
        action = int(rng.integers(spec.num_actions))
        ours.step(np.array([action]))
        after: Any = twin.step(action) if not over else (*twin.reset()[:1], 0.0, False, False, None)
        np.testing.assert_array_equal(ours.out.frames[0], after[0])
        assert (ours.out.rewards[0], ours.out.terminated[0], ours.out.truncated[0]) == after[1:4]
        if not over:
            facts = after[4]["lives"], after[4]["episode_frame_number"]
            assert (ours.out.lives[0], frame_numbers(ours)[0]) == facts
        over = after[2] or after[3]
        ends += over
    assert ends


@pytest.mark.parametrize("protocol", [NATURE, MACHADO], ids=["nature", "machado"])
def test_games_equal_those_of_ales_own_vector_env(protocol: Protocol) -> None:
    """Across unseeded resets too. No truncation is reached, since its last frame would miss the last tick there."""
    protocol = dataclasses.replace(protocol, noop_max=0)
    spec = env_spec("ALE/Breakout-v5", protocol, 4)
    ours = make_vector_env(spec, protocol, 2)
    native = AtariVectorEnv(
        "breakout",
        2,
        stack_num=1,
        noop_max=0,
        use_fire_reset=False,
        reward_clipping=False,
        repeat_action_probability=protocol.repeat_action_probability,
        full_action_space=protocol.full_action_space,
    )
    seeds = env_seeds(7, 2)
    frames, _ = native.reset(seed=np.array(seeds))
    ours.reset(seeds)
    np.testing.assert_array_equal(ours.out.frames, frames[:, 0])
    rng, ends = np.random.default_rng(1), 0
    for _ in range(250):
        actions = rng.integers(spec.num_actions, size=2)
        ours.step(actions)
        frames, *outcome, info = native.step(actions)
        np.testing.assert_array_equal(ours.out.frames, frames[:, 0])
        np.testing.assert_array_equal([ours.out.rewards, ours.out.terminated, ours.out.truncated], outcome)
        np.testing.assert_array_equal(ours.out.lives, info["lives"])
        np.testing.assert_array_equal(frame_numbers(ours), info["episode_frame_number"])
        ends += int(outcome[1].sum())
    assert ends


@pytest.mark.parametrize("protocol", [NATURE, MACHADO], ids=["nature", "machado"])
def test_a_step_is_four_frames(protocol: Protocol) -> None:
    envs = make_vector_env(env_spec("ALE/Pong-v5", protocol, 4), protocol, 2)
    envs.reset([1, 2])
    for _ in range(10):
        before = frame_numbers(envs)
        envs.step(np.zeros(2, np.int64))
        np.testing.assert_array_equal(frame_numbers(envs), before + 4)


def frame_numbers(envs: Any) -> npt.NDArray[np.int64]:
    """Frames since the start of each game, as the emulators count them."""
    return np.array([game.frame_number for game in envs._games])


def first_frame_numbers(protocol: Protocol, num_envs: int) -> npt.NDArray[np.int64]:
    envs = make_vector_env(env_spec("ALE/Pong-v5", protocol, 4), protocol, num_envs)
    envs.reset(env_seeds(0, num_envs))
    return frame_numbers(envs)


def test_a_reset_tick_pays_nothing() -> None:
    """Not even if the game before it ended on a reward: here it is truncated at Pong's first lost point."""
    spec = env_spec("ALE/Pong-v5", MACHADO, 4)
    envs = make_vector_env(spec, MACHADO, 1)
    envs.reset([1])
    nothing, steps = np.zeros(1, np.int64), 0
    while not envs.out.rewards[0]:
        envs.step(nothing)
        steps += 1
    cut = make_vector_env(spec, dataclasses.replace(MACHADO, max_episode_frames=4 * steps), 1)
    cut.reset([1])
    ticks = []
    for _ in range(steps + 1):
        cut.step(nothing)
        ticks.append((float(cut.out.rewards[0]), bool(cut.out.truncated[0])))
    assert ticks[-2:] == [(-1.0, True), (0.0, False)]


@pytest.mark.parametrize(("after", "lost"), [(4, True), (5, False), (6, False), (0, True)])
def test_a_bonus_life_is_not_a_lost_one(after: int, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = env_spec("ALE/Breakout-v5", NATURE, 4)
    envs: Any = make_vector_env(spec, NATURE, 1)
    envs.reset([1])
    monkeypatch.setattr(envs._games[0], "_emulator", WithLives(envs._games[0]._emulator, after))
    envs.step(np.array([0]))
    assert (envs.out.lives.tolist(), envs.out.life_lost.tolist()) == ([after], [lost])
    assert not envs.out.terminated[0]


class WithLives:
    """An emulator that reports so many lives."""

    def __init__(self, emulator: Any, lives: int) -> None:
        self._emulator, self.lives = emulator, lambda: lives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._emulator, name)


def test_envs_start_apart_by_no_ops() -> None:
    """0 to 29 frames of no-op, drawn for each env: 32 fair draws take fewer than 14 values once in 10,000 times, and
    the seeds here are fixed."""
    starts = first_frame_numbers(NATURE, 32)
    assert 0 <= starts.min() <= 5
    assert 24 <= starts.max() <= 29
    assert len(set(starts.tolist())) >= 14
    assert (first_frame_numbers(MACHADO, 4) == 0).all()


def test_a_game_without_fire_is_truncated_at_the_frame_cap() -> None:
    """Breakout waits for FIRE forever; only the cap on frames ends such a game, as a truncation."""
    protocol = dataclasses.replace(NATURE, max_episode_frames=400)
    envs = make_vector_env(env_spec("ALE/Breakout-v5", protocol, 4), protocol, 1)
    envs.reset([3])
    ends = []
    for _ in range(202):
        envs.step(np.zeros(1, np.int64))
        assert not envs.out.terminated[0]
        assert envs.out.lives[0] == 5
        ends.append(bool(envs.out.truncated[0]))
    assert [step for step, end in enumerate(ends, 1) if end] == [100, 201], "100 steps, a reset tick, 100 steps"


def test_actions_that_do_not_begin_at_zero_are_shifted() -> None:
    spec = env_spec("tests.stubs:Shifted-v0", NATURE, 4)
    envs = make_vector_env(spec, NATURE, 3)
    envs.reset([1, 2, 3])
    envs.step(np.array([0, 1, 2]))
    np.testing.assert_array_equal(envs.out.frames[:, 3], [5, 6, 7])


def test_names_are_checked_without_torch() -> None:
    code = "import sys; from atari_dqn.envs import make; from atari_dqn.workers import pool, worker;"
    code += " print({'torch', 'labml'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


def creator_of(fault: str) -> Any:
    """A class of environments that fail while they are looked at."""

    class Faulty(Numbered):
        def __init__(self) -> None:
            super().__init__()
            if fault in ("raises", "exits"):
                raise (RuntimeError if fault == "raises" else SystemExit)("the level\nis missing")
            if fault == "mute":
                raise Mute
            if fault == "colours":
                raise RuntimeError("\x1b[31mred\x07")
            for space in ("observation_space", "action_space"):
                if fault == f"no {space}":
                    setattr(self, space, None)

        def close(self) -> None:
            if fault == "close":
                raise OSError(5, "it would not")

    class Demanding(Faulty):
        def __init__(self, level: int) -> None:
            super().__init__()

    return Demanding if fault == "argument" else Faulty


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "RuntimeError: the level is missing"),
        ("exits", "SystemExit: the level is missing"),
        ("mute", "Mute: "),
        ("colours", r"RuntimeError: \[31mred$"),
        ("argument", "TypeError: .*'level'"),
        ("no observation_space", "observations are None"),
        ("no action_space", "actions are None"),
        ("close", r"OSError: \[Errno 5\] it would not"),
    ],
)
def test_whatever_an_environment_raises_while_it_is_looked_at_is_one_line(
    fault: str, words: str, registry: Any
) -> None:
    gym.register("Faulty-v0", creator_of(fault))
    with pytest.raises(ConfigError, match=words) as refused:
        env_spec("Faulty-v0", NATURE, 4)
    assert "Faulty-v0" in str(refused.value)
    assert "\n" not in str(refused.value)
    gym.register("Unloadable-v0", "no_such_module:Env")
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        env_spec("Unloadable-v0", NATURE, 4)
