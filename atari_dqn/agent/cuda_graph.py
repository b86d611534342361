"""CUDA graphs. Flow in: the learner's gradient step and the actor's network. Flow out: the same numbers, from one
launch instead of a few hundred.

Nothing is written twice for it: the very same Python runs a few times as it is, then once more while CUDA records what
it launches, and from then on the record is replayed. It holds on to memory, not to values: what may change during a run
(learning rate, gradient norm, beta, the replay's head, weights loaded in place) is read anew by every replay. Python
does not run in a replay, so what depends on it, the target's turn above all, stays outside.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import QNetwork
from atari_dqn.agent.weights import Precision
from atari_dqn.config.schema import LearnerConfig
from atari_dqn.replay.base import Replay

T = TypeVar("T")

EAGER_CALLS = 3
"""Calls before the recording: they allocate what lasts (Adam's moments, cuDNN's plans, workspaces)."""


class Captured(Generic[T]):
    """`work`, replayed: its shapes and addresses are the same at each call, and it reads no value on the host.

    Each call does the work once, the early and the recording one too. It returns what `work` returned when it was
    recorded: tensors that the next call overwrites. `generator` is the one that `work` draws from; it moves on with
    every replay, and may be saved and set in between. Calls belong on one stream.
    """

    def __init__(self, work: Callable[[], T], device: torch.device, generator: torch.Generator | None = None) -> None:
        self._work, self._device, self._generator = work, device, generator
        # A stream of its own for early calls and recording, as CUDA demands of the latter: what a library sets up for
        # a stream is then there before the recording.
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
        """Record anew, after as many early calls as at first: memory that the record holds on to was replaced."""
        if self._graph is not None:
            torch.cuda.synchronize(self._device)  # replays may be under way
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
        """Recording executes nothing on the device."""
        graph = torch.cuda.CUDAGraph()
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        gc.collect()  # a graph or an event that dies during the recording would spoil it
        try:
            # Not in the actor's inference mode: what torch before 2.11 sets up at the first recording must be of use
            # to the learner's, which comes later.
            with torch.inference_mode(False), torch.cuda.graph(graph, stream=self._stream):
                self._result = self._work()
        except RuntimeError as error:
            raise RuntimeError(
                f"this cannot be recorded as a CUDA graph; --no-cuda-graph does without: {error}"
            ) from error
        return graph


class CapturedLearner(Learner):
    """A `Learner` whose gradient step is one CUDA graph.

    Its eager twin, `Learner`, is the oracle of its tests. No other reader draws from `replay` in batches of another
    size: that would replace the memory the batches lie in.
    """

    replay: Replay

    def __init__(
        self,
        make_net: Callable[[], QNetwork],
        replay: Replay,
        config: LearnerConfig,
        *,
        seed: int,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(make_net, replay, config, seed=seed, device=device, precision=precision)
        self.captured = Captured(super().gradient_step, device, replay.generator)
        self._recorded_for = config

    def gradient_step(self) -> None:
        """As the eager one, bit for bit where the kernels are deterministic."""
        if not self.replay.fill:
            self.replay.sample(self.config.batch_size)  # which refuses; a replay of the graph would draw nonsense
        if self.config is not self._recorded_for:
            self.captured.forget()
            self._recorded_for = self.config
        self.captured()

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.captured.forget()  # the optimizer's moments lie elsewhere now


class CapturedNetwork:
    """`network` for an actor: observations in the buffer it is called with first are a graph's, others go as ever."""

    def __init__(self, network: QNetwork, device: torch.device) -> None:
        self._network = network
        self._buffer: Tensor | None = None
        self._captured = Captured(self._on_buffer, device)

    def __call__(self, obs: Tensor) -> Tensor:
        """Q, float32 [B, A]; overwritten by the next call."""
        if self._buffer is None:
            self._buffer = obs
        return self._captured() if obs is self._buffer else self._network(obs)

    @torch.no_grad()
    def _on_buffer(self) -> Tensor:
        q: Tensor = self._network(self._buffer)
        return q
