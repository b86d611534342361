"""The update as a CUDA graph, as far as it can be proven without a GPU; see test_gpu.py for the rest.

`Recording` does on a CPU what a CUDA graph does on a GPU: it notes every operation of one update with the memory it
works on, and repeats them without the Python in between.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import Precision
from atari_dqn.config.schema import LearnerConfig, NetworkConfig
from atari_dqn.replay import sum_tree
from atari_dqn.replay.base import Replay
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.replay.uniform import UniformReplay
from benchmarks.plain_learner import Spec

SMALL = Spec(frame_shape=(36, 36))
NUM_ENVS, BATCH = 4, 8


@pytest.fixture(autouse=True)
def levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many levels in so small a tree as in a large one."""
    monkeypatch.setattr(sum_tree, "ROOT_FANOUT", 16)
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(sum_tree.FANOUT, device, 32)


def make_replay(device: str = "cpu", kind: str = "prioritized") -> Replay:
    """Small, and computed by torch on every device."""
    size = (256, NUM_ENVS, SMALL.frame_shape, np.uint8, SMALL.stack)
    settings: dict[str, Any] = {"n_step": 3, "gamma": 0.99, "clip_rewards": True, "seed": 1}
    settings |= {"device": device, "xp": torch}
    return UniformReplay(*size, **settings) if kind == "uniform" else PrioritizedReplay(*size, alpha=0.6, **settings)


class Feeder:
    """The same random play, tick by tick, for every replay it is asked to feed."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(7)
        self._began = False

    def feed(self, *replays: Replay, ticks: int) -> None:
        for _ in range(ticks):
            frames = self._rng.integers(0, 256, (NUM_ENVS, *SMALL.frame_shape), dtype=np.uint8)
            last = self._rng.random(NUM_ENVS) < 0.05
            rewards, terminal = self._rng.normal(size=NUM_ENVS), last & (self._rng.random(NUM_ENVS) < 0.5)
            actions = self._rng.integers(SMALL.num_actions, size=NUM_ENVS)
            for replay in replays:
                replay.append(frames, last, *((actions, rewards, terminal) if self._began else ()))
            self._began = True


def make_learner(
    replay: Replay, device: str = "cpu", kind: type[Learner] = Learner, precision: Precision = "fp32", **settings: Any
) -> Learner:
    config = LearnerConfig(**({"batch_size": BATCH, "learning_rate": 1e-3} | settings))
    return kind(
        lambda: make_network(SMALL, NetworkConfig()),
        replay,
        config,
        seed=1,
        device=torch.device(device),
        precision=precision,
    )


def bits(learner: Learner) -> list[bytes]:
    """Clones of all that an update changes."""
    assert isinstance(learner.replay, Replay)
    networks = (learner.online, learner.target, learner.policy)
    tensors: list[Tensor] = [param for network in networks for param in network.parameters()]
    tensors += learner.state()["optimizer"].values()
    tensors += [learner._metric_sums, learner._skipped]
    tensors += [learner.replay.tree.leaves, learner.replay.tree.total, learner.replay._largest]
    plain = [torch.atleast_1d(tensor.detach().cpu().contiguous()) for tensor in tensors]
    return [tensor.view(torch.uint8).numpy().tobytes() for tensor in plain]


# ---------------------------------------------------------------------- a CUDA graph of the CPU's


READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")


@dataclasses.dataclass
class Call:
    operation: Any
    arguments: tuple[Any, dict[str, Any]]
    result: Any

    def signature(self) -> tuple[str, list[Any]]:
        """The operation, and the shapes, strides and types of what goes in and comes out."""
        leaves = tree_flatten((self.arguments, self.result))[0]
        return str(self.operation), [_described(leaf) for leaf in leaves]


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype
    # torch wraps a generator in a new object each time, so its address means nothing
    return "a generator" if isinstance(leaf, torch.Generator) else str(leaf)


class Recording(TorchDispatchMode):
    """Notes what is done while it is on; fails when an operation has to know a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in READING, func
        result = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, (args, kwargs or {}), result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Everything once more, on the memory it was done on; what was new memory then is new again."""
        made: dict[int, Tensor] = {}

        def present(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, Tensor) else value

        for call in self.calls:
            args, kwargs = tree_map(present, call.arguments)
            result = call.operation(*args, **kwargs)
            for old, new in zip(tree_flatten(call.result)[0], tree_flatten(result)[0], strict=True):
                if isinstance(old, Tensor) and present(old) is old and new is not old:
                    made[id(old)] = new


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the one value that a CPU reads and a GPU does not: whether the written priorities are valid."""
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: True)


def recorded(learner: Learner) -> Recording:
    recording = Recording()
    with recording:
        learner.gradient_step()
    return recording


CASES = [
    ("prioritized", "fp32", {}),
    ("prioritized", "bf16", {}),
    ("prioritized", "fp32", {"optimizer": "adamw"}),
    ("uniform", "fp32", {"double_q": False}),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "precision", "settings"), CASES)
def test_a_captured_update_equals_every_later_one(kind: str, precision: Precision, settings: dict[str, Any]) -> None:
    """Through appends, live edits and target syncs: no value that an update reads is frozen in the graph."""
    feeder, replays = Feeder(), [make_replay(kind=kind) for _ in range(2)]
    feeder.feed(*replays, ticks=40)
    captured, eager = (make_learner(replay, precision=precision, **settings) for replay in replays)
    for learner in (captured, eager):
        for _ in range(3):
            learner.gradient_step()
    recording = recorded(captured)
    eager.gradient_step()
    for update in range(30):
        feeder.feed(*replays, ticks=3)  # 90 ticks: more than the 64 rows of the ring
        for learner, replay in zip((captured, eager), replays, strict=True):
            learner.learning_rate.fill_(1e-3 / (update + 1))
            learner.max_grad_norm.fill_(0.01 * (update + 1))
            replay.beta.fill_(0.02 * update)
            if update % 7 == 0:
                learner.sync_target()
        recording.replay()
        eager.gradient_step()
        assert bits(captured) == bits(eager), f"update {update}"
        assert torch.equal(replays[0].generator.get_state(), replays[1].generator.get_state())


def broken_target(learner: Learner) -> None:
    """NaN in it, until the next sync."""
    with torch.no_grad():
        next(learner.target_policy.parameters()).fill_(math.nan)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "precision", "settings"), CASES)
def test_a_captured_update_skips_what_the_eager_one_skips(
    kind: str, precision: Precision, settings: dict[str, Any]
) -> None:
    """The capture saw a finite update; later ones that are not finite are still skipped and counted."""
    feeder, replays = Feeder(), [make_replay(kind=kind) for _ in range(2)]
    feeder.feed(*replays, ticks=40)
    captured, eager = (make_learner(replay, precision=precision, **settings) for replay in replays)
    for learner in (captured, eager):
        learner.gradient_step()
    recording = recorded(captured)
    eager.gradient_step()
    skipped = []
    for update in range(8):
        feeder.feed(*replays, ticks=1)
        for learner in (captured, eager):
            if update == 3:
                broken_target(learner)
            if update == 6:
                learner.sync_target()
        recording.replay()
        eager.gradient_step()
        assert bits(captured) == bits(eager), f"update {update}"
        skipped.append(captured.skipped())
    assert skipped == [(0, 0)] * 3 + [(1, 1), (2, 2), (3, 3)] + [(3, 0)] * 2
    assert captured.pop_metrics() == eager.pop_metrics()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "precision", "settings"), CASES)
def test_updates_are_one_sequence_of_operations_and_shapes(
    kind: str, precision: Precision, settings: dict[str, Any]
) -> None:
    feeder, replay = Feeder(), make_replay(kind=kind)
    feeder.feed(replay, ticks=40)
    learner = make_learner(replay, precision=precision, **settings)
    learner.gradient_step()
    sequences = []
    for ticks in (0, 1, 50):
        feeder.feed(replay, ticks=ticks)
        sequences.append([call.signature() for call in recorded(learner).calls])
    assert len(sequences[0]) > 100
    assert sequences[0] == sequences[1] == sequences[2]


def test_a_value_read_on_the_host_is_noticed() -> None:
    with Recording(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()


class OneDevice(TorchDispatchMode):
    """Fails when an operation has an operand on another device, or makes one there."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_flatten((args, kwargs, result))[0]:
            assert not isinstance(leaf, Tensor) or leaf.device == self.device, func
        return result


def fused_adam_on_a_gpu(params: list[Tensor], *lists: list[Tensor], lr: Tensor, **settings: Any) -> None:
    """What the kernel demands; the meta device has none."""
    *like_params, _, steps = lists
    for param, *others in zip(params, *like_params, strict=True):
        layouts = {(tensor.dtype, tensor.device, tensor.shape, tensor.stride()) for tensor in (param, *others)}
        assert len(layouts) == 1, layouts
    found_inf = settings["found_inf"]
    assert {tensor.device for tensor in (lr, found_inf, *steps)} == {params[0].device}
    assert found_inf.dtype == torch.float32


@pytest.mark.parametrize(("kind", "precision", "settings"), CASES)
def test_an_update_stays_on_its_device(
    kind: str, precision: Precision, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device that has shapes and no values: it takes no operand from elsewhere, and has nothing to read."""
    feeder, generator_of = Feeder(), torch.Generator
    with monkeypatch.context() as patch:  # what is made once may look at values
        patch.setattr(torch, "Generator", type("Generator", (), {"__new__": lambda cls, device: generator_of()}))
        patch.setattr(Tensor, "__bool__", lambda tensor: True)
        replay = make_replay("meta", kind)
        learner = make_learner(replay, "meta", precision=precision, **settings)
    feeder.feed(replay, ticks=40)
    checks = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(checks, "_device_dtype_check_for_fused", lambda param: None)  # its list lacks this device
    for name in ("_fused_adam_", "_fused_adamw_"):
        monkeypatch.setattr(torch, name, fused_adam_on_a_gpu)
    for _ in range(3):
        feeder.feed(replay, ticks=1)
        with OneDevice(torch.device("meta")):
            learner.policy(replay.latest_observation()).argmax(1)
            learner.update()
            learner.sync_target()
