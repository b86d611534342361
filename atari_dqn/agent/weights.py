"""Weights of a network: loading, precision, and all of them as one vector."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from atari_dqn.agent.network import QNetwork
from atari_dqn.config.setting import ConfigError, shown

Precision = Literal["fp32", "bf16"]


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], file: Path | str) -> None:
    """Raise `ConfigError`, naming `file` and a difference, unless `weights` have the names and shapes of `network`."""
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"the weights in {file} are of another network: {shown(name)} is {found.get(name, 'absent')} there"
                f" and {expected.get(name, 'absent')} here"
            )


def take_weights(network: nn.Module, weights: Mapping[str, Tensor], file: Path | str) -> None:
    """Load `weights`, which came from `file`. Raises `ConfigError` as `check_fit`."""
    check_fit(network, weights, file)
    network.load_state_dict(weights)


def in_precision(network: QNetwork, precision: Precision) -> QNetwork:
    """`network` itself for fp32; for bf16 a copy that computes as under `torch.autocast`, but stores bf16 weights
    instead of casting them at every pass. Only `follow` updates the copy. MLPs stay fp32."""
    if precision == "fp32":
        return network
    low = copy.deepcopy(network)
    if low.trunk.low_precision:
        for part in (low.trunk, low.shared, low.hidden):
            part.to(torch.bfloat16)
    return low


@torch.no_grad()
def follow(low: QNetwork, network: QNetwork) -> None:
    """Copy the weights of `network` to `low`, which `in_precision` made from it."""
    if low is not network:
        torch._foreach_copy_(list(low.parameters()), list(network.parameters()))


@torch.no_grad()
def one_vector(network: nn.Module) -> Tensor:
    """Move the parameters into one vector, [N], so that one pass reads or changes them all. Returns the vector."""
    params = list(network.parameters())
    vector = torch.empty(sum(param.numel() for param in params), dtype=params[0].dtype, device=params[0].device)
    for param, view in zip(params, views_of(vector, params), strict=True):
        view.copy_(param)
        param.data = view
    return vector


def views_of(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of parts of `vector` with the shapes and strides of `like`, whose tensors must be dense."""
    parts = vector.split([each.numel() for each in like])
    return [part.as_strided(each.shape, each.stride()) for part, each in zip(parts, like, strict=True)]
