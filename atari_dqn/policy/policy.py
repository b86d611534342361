"""A trained agent for other people's programs: a run or an exported file flows in, then plain gymnasium observations;
actions and Q values flow out.

A policy of an ONNX file needs no torch, and imports none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.ids import is_atari
from atari_dqn.policy.files import Header
from atari_dqn.policy.source import check_module, header_of, read_source

if TYPE_CHECKING:
    import gymnasium as gym

    from atari_dqn.envs.protocol import Protocol
    from atari_dqn.policy.trained import TrainedNetwork


class Policy:
    """`policy = Policy.load(path)`, `env = policy.make_env()`, `action = policy.act(observation)`.

    An observation is what `make_env` and `wrap` show: for Atari uint8 [4, 84, 84], the newest frame last, as
    gymnasium's `AtariPreprocessing` and `FrameStackObservation` make them; for pixels of other envs [stack, *shape];
    else the env's own vector. With a leading axis, [B, ...], it is a batch. Actions are the env's own numbers.
    """

    def __init__(
        self, header: Header, q: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]], seed: int | None = None
    ) -> None:
        """For `load`: `q` maps observations [B, *observation_shape] to Q values [B, num_actions]."""
        if is_atari(header.env_id):
            import ale_py  # noqa: F401  # tells gymnasium of its games, for the `gym.make` of who wraps one
        self.header = header
        self._q, self._rng = q, np.random.default_rng(seed)

    @classmethod
    def load(
        cls, path: str | Path, *, checkpoint: str = "latest", device: str = "cpu", seed: int | None = None
    ) -> Policy:
        """From `policy.safetensors` (on torch), `policy.onnx` (on onnxruntime), a directory with them, or a run's.

        `checkpoint` (latest, best or an env step) is of a run; `device` (cpu, cuda or auto) is torch's; `seed` is that
        of the random actions. Raises `ConfigError`, a `ValueError`, for anything else or a file that is not sound.
        """
        source = read_source(Path(path), checkpoint)
        if source.is_onnx and source.exported is not None:
            from atari_dqn.policy.onnx import onnx_q

            return cls(source.exported.header, onnx_q(source.exported), seed)
        from atari_dqn.agent.device import resolve_device

        trained = source.load(resolve_device(device))
        return cls(source.exported.header if source.exported else header_of(trained), torch_q(trained), seed)

    @property
    def env_id(self) -> str:
        """Of the env it was trained in."""
        return self.header.env_id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of one observation."""
        return self.header.observation_shape

    @property
    def num_actions(self) -> int:
        """Of the env it was trained in, under its protocol."""
        return self.header.num_actions

    @property
    def protocol(self) -> Protocol:
        """How its training presented Atari games."""
        from atari_dqn.envs.protocol import PROTOCOLS

        return PROTOCOLS[self.header.config.env.protocol]

    def act(self, observation: npt.ArrayLike, epsilon: float = 0.0) -> Any:
        """The action of the highest Q value, or with probability `epsilon` a random one: an int, or int64 [B].

        Raises `ValueError` for an observation of another shape or dtype, and an epsilon that is no probability.
        """
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon}; it must be from 0 to 1")
        observations, single = self._batch(observation)
        # As `Actor` draws them: needed or not, so that the stream does not depend on epsilon.
        explore = self._rng.random(len(observations)) < epsilon
        actions = self._rng.integers(self.num_actions, size=len(observations))
        if not explore.all():
            actions = np.where(explore, actions, self._q(observations).argmax(1))
        actions = actions + self.header.first_action
        return int(actions[0]) if single else actions

    def q_values(self, observation: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """[num_actions] of one observation, [B, num_actions] of a batch. Raises `ValueError` as `act`."""
        observations, single = self._batch(observation)
        values = self._q(observations)
        return values[0] if single else values

    def make_env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """The env of its training, presented as there: protocol, preprocessing, stacks. `kwargs`, such as
        `render_mode="human"`, go to `gym.make`, before those of the protocol. Raises `ConfigError`."""
        from atari_dqn.envs.single import make_env

        check_module(self.header)
        return make_env(self.header.spec, self.protocol, **kwargs)

    def wrap(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """`env` with the observations of its training. Its rules (sticky actions, starts, time limit) stay its own.

        Give Atari games with `frameskip=1`: an observation is made of the last two of four frames. Wrapped is what
        needs it: frames are stacked; vectors and observations that are right already are left alone. Raises
        `ConfigError` for an env of other observations or actions.
        """
        from atari_dqn.envs.single import as_trained

        return as_trained(env, self.header.spec)

    def _batch(self, observation: npt.ArrayLike) -> tuple[npt.NDArray[Any], bool]:
        """[B, *observation_shape] in the dtype of the training, and whether it was a single one."""
        array, shape, dtype = np.asarray(observation), self.observation_shape, self.header.dtype
        single = array.shape == shape
        numbers = array.dtype == dtype or (self.header.kind == "vector" and array.dtype.kind in "fiu")
        if not numbers or not (single or array.shape[1:] == shape):
            raise ValueError(
                f"this policy observes {dtype} {list(shape)} or a batch of them, not {array.dtype} {list(array.shape)};"
                " its make_env() and wrap(env) give envs that show it"
            )
        return np.ascontiguousarray(array[None] if single else array, dtype), single


def torch_q(trained: TrainedNetwork) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """Observations [B, *observation_shape] to Q, float32 [B, A], on the device of the network."""
    import torch

    network, spec = trained.network, trained.spec
    device = next(network.parameters()).device

    @torch.inference_mode()
    def q(observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        stacks = torch.from_numpy(observations).reshape(len(observations), spec.stack, *spec.frame_shape)
        values: npt.NDArray[np.float32] = network(stacks.to(device)).cpu().numpy()
        return values

    return q
