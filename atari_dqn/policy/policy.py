"""A trained agent for other people's programs: plain gymnasium observations in, actions and Q values out.

A policy of an ONNX file neither needs nor imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import PROTOCOLS, Protocol
from atari_dqn.policy.files import Header, QFunction
from atari_dqn.policy.source import check_modules, read_source

if TYPE_CHECKING:
    import gymnasium as gym


class Policy:
    """`policy = Policy.load(path)`, `env = policy.make_env()`, `action = policy.act(observation)`.

    Observations are those of `make_env` and `wrap`: for Atari uint8 [4, 84, 84], the newest frame last, as gymnasium's
    `AtariPreprocessing` and `FrameStackObservation` make them; for pixels of other envs [stack, *shape]; otherwise the
    env's own vector. A leading axis makes a batch, [B, ...]. Actions are the env's own numbers.
    """

    def __init__(self, header: Header, q: QFunction, seed: int | None = None) -> None:
        """Use `load`."""
        if is_atari(header.env_id):
            import ale_py  # noqa: F401  # registers its games with gymnasium, for a `gym.make` before `wrap`
        self.header = header
        self._q, self._rng = q, np.random.default_rng(seed)

    @classmethod
    def load(
        cls, path: str | Path, *, checkpoint: str = "latest", device: str = "cpu", seed: int | None = None
    ) -> Policy:
        """Load a run or an exported policy.

        Args:
            path: a run directory, `policy.safetensors` (computed by torch), `policy.onnx` (by onnxruntime), or a
                directory with them.
            checkpoint: latest, best or an env step of a run.
            device: cpu, cuda, mps or auto (cuda if there is one), for torch.
            seed: of the random actions; None takes one from the operating system.

        Raises `ConfigError`, a `ValueError`, if the path is none of these, or the file is corrupt.
        """
        source = read_source(Path(path), checkpoint)
        exported = source.exported
        if exported is not None and exported.q is not None:
            return cls(exported.header, exported.q, seed)
        from atari_dqn.agent.device import resolve_device

        trained = source.load(resolve_device(device))
        return cls(exported.header if exported else trained.header(), trained.q, seed)

    @property
    def env_id(self) -> str:
        return self.header.env_id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.header.observation_shape

    @property
    def num_actions(self) -> int:
        return self.header.num_actions

    @property
    def protocol(self) -> Protocol:
        """Protocol under which its training presented Atari games."""
        return PROTOCOLS[self.header.config.env.protocol]

    def act(self, observation: npt.ArrayLike, epsilon: float = 0.0) -> Any:
        """The action with the highest Q value, or with probability `epsilon` a random one.

        An int for one observation, [*observation_shape], or int64 [B] for a batch, [B, *observation_shape]. Raises
        `ValueError` if the observation has another shape or dtype, or epsilon is not a probability.
        """
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon}; it must be from 0 to 1")
        observations, single = self._batch(observation)
        # Drawn as `Actor` does, even if not needed, so that the stream does not depend on epsilon.
        explore = self._rng.random(len(observations)) < epsilon
        actions = self._rng.integers(self.num_actions, size=len(observations))
        if not explore.all():
            actions = np.where(explore, actions, self._q(observations).argmax(1))
        actions = actions + self.header.first_action
        return int(actions[0]) if single else actions

    def q_values(self, observation: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Q values [num_actions] of one observation, [B, num_actions] of a batch. Raises `ValueError` as `act`."""
        observations, single = self._batch(observation)
        values = self._q(observations)
        return values[0] if single else values

    def make_env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """The env of its training with the same protocol, preprocessing and stacks.

        `kwargs`, such as `render_mode="human"`, go to `gym.make`; those of the protocol win. Raises `ConfigError`.
        """
        from atari_dqn.envs.single import make_env

        check_modules(self.header.env_id, self.header.config.env.wrapper)
        return make_env(self.header.spec, self.protocol, **kwargs)

    def wrap(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """`env` with the observations of its training; sticky actions, starts and time limit stay its own.

        An Atari game needs `frameskip=1`, as an observation is made of the last two of four frames. Frames are
        stacked; vectors, and observations that are right already, stay as they are. Raises `ConfigError` for an env
        with other observations or actions.
        """
        from atari_dqn.envs.single import as_trained

        return as_trained(env, self.header.spec)

    def _batch(self, observation: npt.ArrayLike) -> tuple[npt.NDArray[Any], bool]:
        """The observations [B, *observation_shape] in the training's dtype, and whether it was a single one."""
        array, shape, dtype = np.asarray(observation), self.observation_shape, self.header.dtype
        single = array.shape == shape
        numbers = array.dtype == dtype or (self.header.kind == "vector" and array.dtype.kind in "fiu")
        if not numbers or not (single or array.shape[1:] == shape):
            raise ValueError(
                f"this policy observes {dtype} {list(shape)} or a batch of them, not {array.dtype} {list(array.shape)};"
                " its make_env() and wrap(env) give envs that show it"
            )
        return np.ascontiguousarray(array[None] if single else array, dtype), single
