"""A network flows in; how much arithmetic one update of it is, and how much this machine does at best, flow out.

Only products of matrices and convolutions count: they are nearly all of an update's arithmetic, and all of what a
peak is quoted for. A floating-point operation is one addition or one multiplication.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from atari_dqn.agent.device import resolve_precision
from atari_dqn.agent.network import Pixels, QNetwork, Wide
from atari_dqn.agent.weights import Precision

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is taken for the peak: large enough to keep every core or multiprocessor fed."""


def forward_flops(network: QNetwork) -> list[int]:
    """Operations of each layer for one observation, the first layer first."""
    trunk, multiply_adds = network.trunk, []
    if isinstance(trunk, Pixels):
        for convolution, (height, width) in zip((trunk.conv1, trunk.conv2, trunk.conv3), trunk.map_sizes, strict=True):
            multiply_adds.append(convolution.weight.numel() * height * width)
    multiply_adds += [layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear)]
    return [2 * count for count in multiply_adds]


def update_flops(network: QNetwork, batch_size: int, *, double_q: bool) -> dict[str, int]:
    """Operations of one gradient step, `forward` and `backward`.

    Forward are Q of the observations, the target's Q of the next ones, and for double Q their online Q. Backward each
    layer is passed twice, for its weights and for its input; the first layer's input wants no gradient.
    """
    first, *rest = forward_flops(network)
    once = first + sum(rest)
    return {
        "forward": batch_size * once * (3 if double_q else 2),
        "backward": batch_size * (2 * once - first),
    }


def matmul_peak(device: torch.device, precision: Precision, seconds: float, side: int | None = None) -> float:
    """Operations per second of the fastest of many products of two `side` x `side` matrices, with torch's threads as
    they are set: about `seconds` of them, by each way that torch has, one at least."""
    side = side or SIDE[device.type]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    left = torch.rand(side, side, device=device).to(dtype)
    layer = Wide(side, side, bias=False, device=device, dtype=dtype)  # by oneDNN, where float32 has another way
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
    """`matmul_peak` of fp32, and of bf16 where the hardware multiplies it natively; about `seconds` for them all."""
    native = resolve_precision("auto", device, deterministic=False) == "bf16"
    precisions: list[Precision] = ["fp32", "bf16"] if native else ["fp32"]
    return {precision: matmul_peak(device, precision, seconds / len(precisions)) for precision in precisions}
