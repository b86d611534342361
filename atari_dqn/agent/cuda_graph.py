"""CUDA graphs of the learner's gradient step and the actor's network: one launch instead of a few hundred.

There is no second implementation. The same Python code first runs eagerly a few times, then once while CUDA captures
what it launches; afterwards the graph is replayed. A graph holds addresses, not values, so each replay reads the
present learning rate, gradient norm, beta, head of the replay, and weights loaded in place. Python does not run in a
replay, so decisions in Python, such as when to sync the target, stay outside.
"""

import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import QNetwork
from atari_dqn.config.schema import LearnerConfig
from atari_dqn.replay.base import Replay

T = TypeVar("T")

EAGER_CALLS = 3
"""Calls before the capture. They allocate what stays: Adam's moments, cuDNN's plans, workspaces."""


class Captured(Generic[T]):
    """A function captured as a CUDA graph and replayed.

    Every call does the work once, the eager and the capturing ones too, and returns the tensors that `work` returned at
    the capture, which the next call overwrites. Make all calls on one stream.
    `work`'s shapes and addresses do not change between calls, and it reads no value on the host. It draws from
    `generator`, which every replay advances, and which may be saved and set in between.
    """

    def __init__(self, work: Callable[[], T], device: torch.device, generator: torch.Generator | None = None) -> None:
        self._work, self._device, self._generator = work, device, generator
        # CUDA requires a separate stream for the capture. The eager calls use it too, so that whatever a library sets
        # up for a stream exists before the capture.
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_calls_left = EAGER_CALLS

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def __call__(self) -> T:
        if self._graph is None and self._eager_calls_left:
            self._eager_calls_left -= 1
            return self._aside()
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()
        return self._result

    def forget(self) -> None:
        """Capture again, after as many eager calls as at first, because memory that the graph uses was replaced."""
        if self._graph is not None:
            torch.cuda.synchronize(self._device)  # replays may be running
            self._graph.reset()
            del self._result
        self._graph, self._eager_calls_left = None, EAGER_CALLS

    def _aside(self) -> T:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._work()
        current.wait_stream(self._stream)
        return result

    def _record(self) -> torch.cuda.CUDAGraph:
        """Capture the work; nothing runs on the device."""
        graph = torch.cuda.CUDAGraph()
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        gc.collect()  # a graph or event freed during the capture would invalidate it
        try:
            # torch before 2.11 sets up state at the first capture, the actor's. Made in inference mode, it would be
            # useless to the learner's.
            with torch.inference_mode(False), torch.cuda.graph(graph, stream=self._stream):
                self._result = self._work()
        except RuntimeError as error:
            raise RuntimeError(f"cannot capture a CUDA graph: {error}; try --no-cuda-graph") from error
        return graph


class CapturedLearner(Learner):
    """A `Learner` whose gradient step is one CUDA graph.

    The eager `Learner` is the oracle of its tests. Nothing else may draw batches of another size from `replay`: that
    would replace the memory of the batches.
    """

    replay: Replay
    _recorded_for: LearnerConfig | None = None
    """Settings that the graph was captured with"""

    @functools.cached_property
    def captured(self) -> Captured[None]:
        return Captured(super().gradient_step, self.device, self.replay.generator)

    def gradient_step(self) -> None:
        if not self.replay.fill:
            self.replay.sample(self.config.batch_size)  # raises; a replay of the graph would draw nonsense
        if self.config is not self._recorded_for:
            self.captured.forget()
            self._recorded_for = self.config
        self.captured()

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.captured.forget()  # the optimizer's moments have new addresses


class CapturedNetwork:
    """A network for an actor: a graph for observations in the buffer of the first call, eager for all others."""

    def __init__(self, network: QNetwork, device: torch.device) -> None:
        self._network = network
        self._buffer: Tensor | None = None
        self._captured = Captured(self._on_buffer, device)

    def __call__(self, obs: Tensor) -> Tensor:
        """Q values, float32 [B, A]; the next call overwrites them."""
        if self._buffer is None:
            self._buffer = obs
        return self._captured() if obs is self._buffer else self._network(obs)

    @torch.no_grad()
    def _on_buffer(self) -> Tensor:
        q: Tensor = self._network(self._buffer)
        return q
