"""The compared replays behind one interface, each configured as its authors recommend for stacked frames.

Each class imports its library when it is created, because each runs in an environment of its own. A batch is what the
library returns, with whole stacks, before any transfer to a device.
"""

from __future__ import annotations

import abc
import importlib
import importlib.metadata
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.replays.stream import STACK, Step

ALPHA, BETA = 0.6, 0.4


class Contestant(abc.ABC):
    """A replay of `capacity` transitions for `num_envs` envs, with frames of `side` x `side` uint8 pixels."""

    package = ""
    """Distribution it is installed from; empty for ours."""
    remark = ""
    num_envs = 8
    stack_last = False

    @abc.abstractmethod
    def __init__(self, capacity: int, side: int) -> None: ...

    @abc.abstractmethod
    def add(self, step: Step) -> None:
        """Store one transition of every env."""

    @abc.abstractmethod
    def draw(self, batch_size: int) -> Any:
        """Draw a batch of whole transitions."""

    @abc.abstractmethod
    def update(self, batch: Any, errors: npt.NDArray[np.float32]) -> None:
        """Set the priorities of a batch's transitions from their `errors` ([B], not negative)."""

    @abc.abstractmethod
    def stacks(self, batch: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Observations and next observations of a batch."""


class Ours(Contestant):
    remark = "stores each frame once and gathers stacks when drawing"

    def __init__(self, capacity: int, side: int) -> None:

        from atari_dqn.replay.prioritized import PrioritizedReplay

        self._replay = PrioritizedReplay(
            capacity,
            self.num_envs,
            (side, side),
            np.uint8,
            STACK,
            n_step=1,
            gamma=0.99,
            clip_rewards=True,
            alpha=ALPHA,
            seed=1,
        )
        self._replay.beta.fill_(BETA)
        self._begins = True

    def add(self, step: Step) -> None:
        if self._begins:
            self._replay.append(step.obs[:, -1], np.zeros(self.num_envs, bool))
        ends = np.full(self.num_envs, step.ends)
        self._replay.append(step.next_obs[:, -1], ends, step.actions, step.rewards, ends)
        self._begins = step.ends

    def draw(self, batch_size: int) -> Any:
        return self._replay.sample(batch_size)

    def update(self, batch: Any, errors: npt.NDArray[np.float32]) -> None:
        self._replay.update_priorities(batch.ids, errors)

    def stacks(self, batch: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        return batch.obs.numpy(), batch.next_obs.numpy()


class TorchRL(Contestant):
    package = "torchrl"
    remark = "LazyTensorStorage: two whole stacks per transition"

    def __init__(self, capacity: int, side: int) -> None:
        from benchmarks.replays.torchrl_extension import provide

        provide()
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer

        self._replay = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=LazyTensorStorage(capacity))

    def add(self, step: Step) -> None:
        import torch
        from tensordict import TensorDict

        ends = torch.full((self.num_envs, 1), step.ends)
        after = {
            "observation": torch.from_numpy(step.next_obs),
            "reward": torch.from_numpy(step.rewards)[:, None],
            "done": ends,
            "terminated": ends,
        }
        now = {"observation": torch.from_numpy(step.obs), "action": torch.from_numpy(step.actions), "next": after}
        self._replay.extend(TensorDict(now, batch_size=[self.num_envs]))

    def draw(self, batch_size: int) -> Any:
        return self._replay.sample(batch_size)

    def update(self, batch: Any, errors: npt.NDArray[np.float32]) -> None:
        import torch

        batch["td_error"] = torch.from_numpy(errors)
        self._replay.update_tensordict_priority(batch)

    def stacks(self, batch: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        return batch["observation"].numpy(), batch["next", "observation"].numpy()


class Tianshou(Contestant):
    package = "tianshou"
    remark = "save_only_last_obs, ignore_obs_next: each frame once"

    def __init__(self, capacity: int, side: int) -> None:
        from tianshou.data import PrioritizedVectorReplayBuffer

        self._replay = PrioritizedVectorReplayBuffer(
            capacity,
            self.num_envs,
            alpha=ALPHA,
            beta=BETA,
            stack_num=STACK,
            ignore_obs_next=True,
            save_only_last_obs=True,
        )

    def add(self, step: Step) -> None:
        from tianshou.data import Batch

        ends = np.full(self.num_envs, step.ends)
        self._replay.add(
            Batch(
                obs=step.obs,
                act=step.actions,
                rew=step.rewards,
                terminated=ends,
                truncated=np.zeros(self.num_envs, bool),
                done=ends,
                obs_next=step.next_obs,
            )
        )

    def draw(self, batch_size: int) -> Any:
        return self._replay.sample(batch_size)

    def update(self, batch: Any, errors: npt.NDArray[np.float32]) -> None:
        _, indices = batch
        self._replay.update_weight(indices, errors)

    def stacks(self, batch: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        transitions, _ = batch
        return transitions.obs, transitions.obs_next


class Cpprb(Contestant):
    package = "cpprb"
    remark = "two whole stacks per transition"
    stack_last = True
    compression: ClassVar[dict[str, str]] = {}

    def __init__(self, capacity: int, side: int) -> None:
        from cpprb import PrioritizedReplayBuffer

        fields: dict[str, dict[str, Any]] = {
            "obs": {"shape": (side, side, STACK), "dtype": np.uint8},
            "act": {"dtype": np.int64},
            "rew": {"dtype": np.float32},
            "done": {"dtype": np.float32},
        }
        if not self.compression:
            fields["next_obs"] = fields["obs"]
        self._replay = PrioritizedReplayBuffer(capacity, fields, alpha=ALPHA, **self.compression)

    def add(self, step: Step) -> None:
        ends = np.full(self.num_envs, step.ends, np.float32)
        self._replay.add(obs=step.obs, act=step.actions, rew=step.rewards, next_obs=step.next_obs, done=ends)
        if step.ends:
            self._replay.on_episode_end()

    def draw(self, batch_size: int) -> Any:
        return self._replay.sample(batch_size, beta=BETA)

    def update(self, batch: Any, errors: npt.NDArray[np.float32]) -> None:
        self._replay.update_priorities(batch["indexes"], errors)

    def stacks(self, batch: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        return batch["obs"], batch["next_obs"]


class CpprbCompressed(Cpprb):
    """cpprb with compression, which assumes that consecutive rows are consecutive steps of one env."""

    remark = "next_of, stack_compress: each frame once, one env only"
    num_envs = 1
    compression: ClassVar[dict[str, str]] = {"next_of": "obs", "stack_compress": "obs"}


CONTESTANTS: dict[str, type[Contestant]] = {
    "ours": Ours,
    "torchrl": TorchRL,
    "cpprb": Cpprb,
    "cpprb compressed": CpprbCompressed,
    "tianshou": Tianshou,
}


def version(name: str) -> str:
    """Installed version of a contestant's package."""
    package = CONTESTANTS[name].package
    return importlib.metadata.version(package) if package else importlib.import_module("atari_dqn").__version__
