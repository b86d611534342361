"""Floating-point operations of an update, and the most per second that this machine can do.

Only matrix products and convolutions count: they are nearly all of an update's arithmetic, and peaks are quoted for
them. An operation is one addition or one multiplication.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from atari_dqn.agent.device import resolve_precision
from atari_dqn.agent.network import QNetwork, Wide
from atari_dqn.agent.reference import ReferenceNetwork
from atari_dqn.agent.weights import Precision

SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices that are multiplied for the peak, large enough to keep a whole device busy."""


def update_flops(network: QNetwork, batch_size: int, *, double_q: bool) -> dict[str, int]:
    """Operations of one gradient step, `forward` and `backward`, counted by torch on the reference network.

    The forward pass is Q of the observations, the target's Q of the next ones and, for double Q, their online Q.
    """
    spec = network.spec
    with torch.device("meta"):  # shapes without values: nothing is computed
        plain = ReferenceNetwork(spec, network.config)
        dtype = torch.uint8 if spec.kind == "pixels" else torch.float32
        observations = torch.empty(batch_size, spec.stack, *spec.frame_shape, dtype=dtype)
    with FlopCounterMode(display=False) as forward:
        q = plain(observations)
    with FlopCounterMode(display=False) as backward:
        q.sum().backward()
    passes = 3 if double_q else 2
    return {"forward": passes * forward.get_total_flops(), "backward": backward.get_total_flops()}


def matmul_peak(device: torch.device, precision: Precision, seconds: float, side: int | None = None) -> float:
    """Operations per second of the fastest product of two square matrices, with torch's threads as they are set.

    Args:
        device: where to multiply.
        precision: of the matrices.
        seconds: time to spend, on at least one product by each implementation that torch has.
        side: rows and columns of the matrices; None: as `SIDE` has them.
    """
    side = side or SIDE[device.type]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    left = torch.rand(side, side, device=device).to(dtype)
    layer = Wide(side, side, bias=False, device=device, dtype=dtype)  # by oneDNN, an alternative for float32
    ways: list[Callable[[], object]] = [lambda: torch.mm(left, layer.weight), lambda: layer(left)]
    best = float("inf")
    with torch.inference_mode():
        for multiply in ways:
            end = time.perf_counter() + seconds / len(ways)
            while True:
                start = time.perf_counter()
                multiply()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                now = time.perf_counter()
                best = min(best, now - start)
                if now > end:
                    break
    return 2 * side**3 / best


def matmul_peaks(device: torch.device, seconds: float) -> dict[Precision, float]:
    """`matmul_peak` of fp32, and of bf16 if the hardware multiplies it natively, in about `seconds` in all."""
    native = resolve_precision("auto", device, deterministic=False) == "bf16"
    precisions: list[Precision] = ["fp32", "bf16"] if native else ["fp32"]
    return {precision: matmul_peak(device, precision, seconds / len(precisions)) for precision in precisions}
