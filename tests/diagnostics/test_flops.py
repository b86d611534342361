"""The operations of an update, as torch counts those of a learner and as counted by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.config.schema import LearnerConfig, NetworkConfig
from atari_dqn.diagnostics.flops import matmul_peak, matmul_peaks, update_flops
from benchmarks.plain_learner import FixedReplay, Spec, random_batch

PIXELS, VECTORS = Spec(), Spec(kind="vector", frame_shape=(5,), num_actions=3)


@pytest.mark.parametrize(
    ("spec", "network", "double_q"),
    [
        (PIXELS, {"head": "shared"}, True),
        (PIXELS, {"head": "two_stream"}, True),
        (PIXELS, {"dueling": False}, False),
        (Spec(frame_shape=(85, 50, 3), stack=2, num_actions=18), {}, True),
        (PIXELS, {"network": "small"}, True),
        (Spec(frame_shape=(40, 40)), {"network": "impala", "impala_width": 2}, True),
        (VECTORS, {"mlp_hidden": (7, 6)}, True),
        (VECTORS, {"mlp_hidden": (8,), "dueling": False}, False),
    ],
)
def test_an_update_has_as_many_operations_as_torch_counts(
    spec: Spec, network: dict[str, Any], double_q: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, size = torch.Generator().manual_seed(1), 2
    batch = random_batch(generator, size, (spec.stack, *spec.frame_shape), spec.num_actions)
    config = LearnerConfig(batch_size=size, double_q=double_q)
    learner = Learner(
        lambda: make_network(spec, NetworkConfig(**network)),
        FixedReplay([batch]),
        config,
        seed=1,
        device=torch.device("cpu"),
    )
    expected = update_flops(learner.online, size, double_q=double_q)
    # Through oneDNN large layers would escape torch's counter.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    counters = {"learner/loss": forward, "learner/backward": backward}
    learner.phase = lambda name: counters.get(name, nullcontext())
    learner.update()
    assert expected == {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}


def test_the_nature_network_by_hand() -> None:
    counts = update_flops(make_network(PIXELS, NetworkConfig(dueling=False)), 1, double_q=False)
    products = [20 * 20 * 32 * 8 * 8 * 4, 9 * 9 * 64 * 4 * 4 * 32, 7 * 7 * 64 * 3 * 3 * 64, 7 * 7 * 64 * 512, 512 * 4]
    once, first = sum(2 * product for product in products), 2 * products[0]
    assert counts == {"forward": 2 * once, "backward": 2 * once - first}, "the first layer needs no input gradient"


def test_the_peak_is_a_rate_that_matrices_reach() -> None:
    cpu = torch.device("cpu")
    assert matmul_peak(cpu, "fp32", 0.02, side=512) > 1e8
    peaks = matmul_peaks(cpu, 0.01)
    assert peaks["fp32"] > 1e8
    assert peaks.get("bf16", 1e9) > 1e8
