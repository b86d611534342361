"""Single gymnasium environments with the observations of training, for programs that step them themselves."""

import contextlib
import importlib
import math
from collections.abc import Iterator
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec as EnvSpecOfGym
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from atari_dqn.config.objects import named
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import FRAME_SIZE, FRAME_SKIP, EnvSpec, Protocol

AnyEnv = gym.Env[Any, Any]


@contextlib.contextmanager
def opened(env_id: str, wrapper: str = "", **kwargs: Any) -> Iterator[AnyEnv]:
    """An environment of `make_plain` to look at. Whatever it raises, as a user's may, becomes a `ConfigError`."""
    with explained(f"--env-id {env_id}: cannot use the environment: "):
        env = make_plain(env_id, wrapper, **kwargs)
        yield env
        env.close()


@contextlib.contextmanager
def explained(prefix: str) -> Iterator[None]:
    """Turn whatever a user's environment raises meanwhile into a `ConfigError` that starts with `prefix`."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{prefix}{one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The type and the text of an error that a user's environment raised."""
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be read"
    if "Box2D is not installed" in text:
        return 'Box2D is not installed; try pip install "atari_dqn[box2d]"'
    return "".join(filter(str.isprintable, " ".join(f"{type(error).__name__}: {text}".split())))


def make_plain(env_id: str, wrapper: str = "", **kwargs: Any) -> AnyEnv:
    """An environment other than an Atari game; what it shows as images is `as_image`. `kwargs` go to `gym.make`."""
    return as_image(_made(env_id, wrapper, disable_env_checker=True, **kwargs))


def _made(env_id: str, wrapper: str, **kwargs: Any) -> AnyEnv:
    module, _, bare = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    own = module and bare not in gym.registry  # a class or a function that makes one
    env = gym.make(EnvSpecOfGym(env_id, entry_point=named("env_id", env_id)) if own else env_id, **kwargs)
    return named("wrapper", wrapper)(env) if wrapper else env


SMALLEST_IMAGE = 36
"""Height and width, in pixels, from which the convolutions have an output."""
IMAGE_BOUNDS = ((0, 1), (-1, 1), (0, 255))
"""Bounds of the values of images that are not uint8."""


def image_axes(space: gym.Space[Any]) -> tuple[int, ...] | None:
    """Axes of an image in `space`, height and width first; None if a `space` does not hold images.

    Images have two neighbouring axes of at least 36 pixels; all others, before or behind, are channels, fewer than 36.
    Values of another dtype than uint8 are an image only with `IMAGE_BOUNDS` and an axis of 1, 3 or 4 channels.
    """
    if not isinstance(space, Box):
        return None
    if space.dtype != np.uint8:
        bounded = any((space.low == low).all() and (space.high == high).all() for low, high in IMAGE_BOUNDS)
        if not bounded or not {1, 3, 4} & set(space.shape):
            return None
    sides = [axis for axis, size in enumerate(space.shape) if size >= SMALLEST_IMAGE]
    channels = [axis for axis in range(len(space.shape)) if axis not in sides]
    if len(sides) != 2 or sides[1] != sides[0] + 1:
        return None
    fits = 0 < math.prod(space.shape[axis] for axis in channels) < SMALLEST_IMAGE
    return (*sides, *channels) if fits else None


def as_image(env: AnyEnv) -> AnyEnv:
    """`env` with images as uint8 [height, width] or [height, width, channels] from 0 to 255; others as they are."""
    space, axes = env.observation_space, image_axes(env.observation_space)
    if axes is None:
        return env
    assert isinstance(space, Box)
    ready = space.dtype == np.uint8 and axes in ((0, 1), (0, 1, 2)) and (space.low == 0).all()
    return env if ready and (space.high == 255).all() else Image(env, space, axes)


def as_uint8(values: npt.NDArray[Any], who: str = "") -> npt.NDArray[np.uint8]:
    """`values` of any dtype as uint8. Raises `ValueError` unless all are whole and from 0 to 255."""
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        taken = values.astype(np.uint8)
    if (taken != values).any():
        raise ValueError(f"{who}observation is {values.dtype}, its space uint8; try whole values from 0 to 255")
    return taken


class Image(gym.ObservationWrapper[Any, Any, Any]):
    """Scales images from their space's bounds to 0 to 255, and moves all channels behind height and width."""

    def __init__(self, env: AnyEnv, space: Box, axes: tuple[int, ...]) -> None:
        super().__init__(env)
        self._space, self._axes, self._low = space, axes, space.low.astype(np.float32)
        span = space.high.astype(np.float32) - self._low
        self._scale = 255 / np.where(span > 0, span, np.inf)  # a value without a range is always 0
        self.observation_space = Box(0, 255, self._moved(self._low).shape, np.uint8)

    def observation(self, observation: Any) -> Any:
        values = np.asarray(observation)
        if values.shape != self._low.shape:
            raise ValueError(f"observation has shape {values.shape}, its space {self._low.shape}")
        if self._space.dtype == np.uint8:
            values = as_uint8(values)
        scaled = np.rint((values.astype(np.float32) - self._low) * self._scale)
        if not (scaled.min() >= 0 and scaled.max() <= 255):  # also if one is NaN
            low, high = self._space.low.min(), self._space.high.max()
            raise ValueError(f"observation is from {values.min()} to {values.max()}, its space from {low} to {high}")
        return self._moved(scaled.astype(np.uint8))

    def _moved(self, values: Any) -> Any:
        height, width = (values.shape[axis] for axis in self._axes[:2])
        moved = values.transpose(self._axes)
        return moved if moved.ndim == 2 else moved.reshape(height, width, -1)


def time_limit(env: AnyEnv) -> int | None:
    """Env steps after which gymnasium's `TimeLimit`, or another with its attribute, is to cut a game.

    It may be one of `gym.make`, of the environment's own, or within an environment that plays another one.
    """
    limits: list[int] = []
    inner: Any = env
    while isinstance(inner, gym.Env):
        limit = getattr(inner, "_max_episode_steps", None)
        if isinstance(limit, int | np.integer) and limit > 0:
            limits.append(int(limit))
        inner = getattr(inner, "env", None)
    return min(limits, default=None)


def limited(env: AnyEnv, limit: int | None) -> AnyEnv:
    """`env` with games of at most `limit` steps, or as many as its own `time_limit` if that is longer."""
    # Its own may be an attribute that nobody enforces.
    return env if limit is None else gym.wrappers.TimeLimit(env, max(limit, time_limit(env) or 0))


def make_env(spec: EnvSpec, protocol: Protocol, **kwargs: Any) -> AnyEnv:
    """The environment of `spec` with the observations of training, no-op starts included.

    `kwargs` go to `gym.make` and override this package's.
    """
    if not spec.is_atari:
        return as_trained(_made(spec.env_id, spec.wrapper, **{**spec.kwargs, **kwargs}), spec)
    return as_trained(NoOpStart(make_emulator(spec, protocol, **kwargs), protocol), spec)


def make_emulator(spec: EnvSpec, protocol: Protocol, **kwargs: Any) -> AnyEnv:
    """The bare Atari game of `spec`: one grey frame a step, no no-ops. `kwargs` override those for `gym.make`."""
    ours: dict[str, Any] = {
        "frameskip": 1,
        "obs_type": "grayscale",
        "repeat_action_probability": protocol.repeat_action_probability,
        "full_action_space": protocol.full_action_space,
        "max_num_frames_per_episode": protocol.max_episode_frames,
    }
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # or it prints its name and version
    return gym.make(spec.env_id, **{**ours, **kwargs})


def preprocess(emulator: AnyEnv) -> AnyEnv:
    """gymnasium's own preprocessing, which gives the same frames as `envs.atari`, around a bare Atari game."""
    return AtariPreprocessing(emulator, noop_max=0, frame_skip=FRAME_SKIP, screen_size=FRAME_SIZE)


class NoOpStart(gym.Wrapper[Any, Any, Any, Any]):
    """Starts every game of a bare emulator with the no-ops that the protocol asks for."""

    def __init__(self, env: AnyEnv, protocol: Protocol) -> None:
        super().__init__(env)
        self._protocol = protocol

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        for _ in range(self._protocol.draw_noops(self.unwrapped.np_random)):
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


def as_trained(env: AnyEnv, spec: EnvSpec) -> AnyEnv:
    """Wrap an environment so that it returns the observations of training: [stack, *frame_shape], or its own vectors.

    A bare Atari game (one frame a step) gets 4 frames an action and their preprocessing, any environment of pixels gets
    stacks. Wrappers that are there already are not added again.

    Raises:
        ConfigError: The environment's observations or actions differ from the training's.
    """
    actions, stacked = env.action_space, (spec.stack, *spec.frame_shape)
    if not isinstance(actions, Discrete) or int(actions.n) != spec.num_actions:
        hint = "; make it with full_action_space=True" if spec.is_atari and spec.num_actions == 18 else ""
        raise ConfigError(f"this env has {actions}, but {spec.env_id} was trained with {spec.num_actions}{hint}")
    if hasattr(env.unwrapped, "ale") and env.observation_space.shape not in (stacked, spec.frame_shape):
        if len(env.observation_space.shape or ()) < 2:
            raise ConfigError("this env shows the console's memory; make it with obs_type='rgb' or 'grayscale'")
        try:
            env = preprocess(env)
        except ValueError:
            raise ConfigError("this env skips frames that observations need; make it with frameskip=1") from None
    if spec.kind == "pixels" and env.observation_space.shape != stacked and not spec.is_atari:
        env = as_image(env)
    if spec.kind == "pixels" and env.observation_space.shape == spec.frame_shape:
        env = FrameStackObservation(env, spec.stack, padding_type="reset")
    space = env.observation_space
    if spec.kind == "pixels":
        fits = isinstance(space, Box) and space.shape == stacked and space.dtype == spec.frame_dtype
    else:
        fits = isinstance(space, Box) and math.prod(space.shape) == math.prod(stacked)
    if not fits:
        raise ConfigError(f"this env shows {space}, but training used {spec.frame_dtype} {list(stacked)}")
    return env


CLASSICS = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "coast", "right"),
    "Acrobot": ("torque -1", "torque 0", "torque +1"),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
}
"""Action names from gymnasium's documentation, for environments that do not provide them."""


def action_names(spec: EnvSpec, protocol: Protocol) -> tuple[str, ...]:
    """Names of the `num_actions` actions: the console's (NOOP, FIRE, ...), the environment's own, or `action 0`..."""
    modes = {"full_action_space": protocol.full_action_space} if spec.is_atari else {}
    with opened(spec.env_id, spec.wrapper, **spec.kwargs, **modes) as env:
        return action_names_of(env, spec)


def action_names_of(env: AnyEnv, spec: EnvSpec) -> tuple[str, ...]:
    """`action_names` of an environment that is made already: a second one may be refused in the same process."""
    try:
        get_meanings = getattr(env.unwrapped, "get_action_meanings", None)
        given = get_meanings() if get_meanings is not None else CLASSICS.get(spec.env_id.split("-v")[0], ())
        names = tuple(" ".join(name.split()).encode(errors="replace").decode() for name in given)
    except Exception:  # a user's environment may raise anything, and return it
        names = ()
    return names if len(names) == spec.num_actions else tuple(f"action {n}" for n in range(spec.num_actions))
