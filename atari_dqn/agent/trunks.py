"""Trunks rearranged for speed, and how their weights map to the layouts of the papers."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from atari_dqn.agent.reference import TRUNKS, Narrow, Nature, ObservationSpec, PixelTrunk, Trunk, trunk_maker
from atari_dqn.config.schema import NetworkConfig

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": functools.partial(nn.ReLU, inplace=True), "silu": nn.SiLU}
"""ReLU in place, which is safe after layers whose gradient does not need their output."""


class Blocked(PixelTrunk):
    """The strided convolutions of Mnih et al. 2013 and 2015 (8x8/4, 4x4/2, then 3x3/1 in 2015) on blocks of pixels.

    The strided ones are computed, and their weights stored, as 2x2/1 on blocks of 4x4 pixels and of 2x2 features: the
    same sums over whole cache lines, which are also faster to differentiate.
    """

    def __init__(self, spec: ObservationSpec, config: NetworkConfig, channels: tuple[int, ...], hidden: int) -> None:
        super().__init__(spec)
        self.hidden = hidden
        self.activation = ACTIVATIONS[config.activation]()
        self.conv1 = nn.Conv2d(self.stack * 4 * 4 * self.colors, channels[0], 2)
        self.conv2 = nn.Conv2d(2 * 2 * channels[0], channels[1], 2)
        self.conv3 = nn.Conv2d(channels[1], channels[2], 3) if len(channels) == 3 else None
        height, width = ((size // 4 - 1) // 2 - 1 for size in (self.height, self.width))
        if self.conv3 is not None:
            height, width = height - 2, width - 2
        self.map_shape = (height, width, channels[-1])
        self.features = height * width * channels[-1]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, obs: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, stack * 16 * colors, H // 4, W // 4], channels last, in the dtype of the weights."""
        self.check(obs)
        high, wide = self.height // 4, self.width // 4
        # The strided kernel does not reach rows and columns beyond a multiple of 4.
        words = obs[:, :, : 4 * high, : 4 * wide].contiguous().view(len(obs), self.stack, high, 4, -1).view(torch.int32)
        # Whole rows first, then words within a row: two copies that torch does fast instead of one that it does slowly.
        rows = words.transpose(1, 2).reshape(len(obs), high, self.stack * 4, wide, self.colors)
        pixels = rows.transpose(2, 3).contiguous().view(len(obs), high, wide, -1).view(torch.uint8)
        scaled: Tensor = pixels.to(self.conv1.weight.dtype).mul_(1 / 255)
        return scaled.permute(0, 3, 1, 2)

    def forward(self, prepared: Tensor) -> Tensor:
        """Features in the order (row, column, channel), so that channels-last activations need no copy."""
        x: Tensor = self.activation(self.conv1(prepared))
        x = self.activation(self.conv2(_blocks_of_2x2(x)))
        if self.conv3 is not None:
            x = self.activation(self.conv3(x))
        return x.permute(0, 2, 3, 1).flatten(1)

    def to_reference(self, name: str, weight: Tensor) -> Tensor:
        if name == "conv1.weight":
            return _strided(weight, self.stack, 4, self.colors)
        if name == "conv2.weight":
            return _strided(weight, 1, 2, self.conv1.out_channels)
        if name == "columns":  # of the layer behind: the papers' features are in the order (channel, row, column)
            return weight.view(-1, *self.map_shape).permute(0, 3, 1, 2).flatten(1)
        return weight


def _blocks_of_2x2(x: Tensor) -> Tensor:
    """[B, C, H, W] as [B, 4C, H // 2, W // 2], channels last; a 4x4/2 kernel does not reach an odd row or column."""
    high, wide = x.shape[2] // 2, x.shape[3] // 2
    pixels = x.permute(0, 2, 3, 1)[:, : 2 * high, : 2 * wide]
    blocks = pixels.unflatten(2, (wide, 2)).unflatten(1, (high, 2)).transpose(2, 3)
    rows: Tensor = blocks.reshape(len(x), high, wide, -1)
    return rows.permute(0, 3, 1, 2)


def _strided(weight: Tensor, depth: int, block: int, rest: int) -> Tensor:
    """A kernel 2x2 on blocks [C, depth * block * block * rest, 2, 2] as [C, depth * rest, 2 * block, 2 * block]."""
    blocks = weight.reshape(-1, depth, block, block, rest, 2, 2)
    return blocks.permute(0, 1, 4, 5, 2, 6, 3).reshape(len(weight), depth * rest, 2 * block, 2 * block)


FAST: dict[str, Callable[[ObservationSpec, NetworkConfig], Trunk]] = {
    "nature": functools.partial(Blocked, channels=Nature.channels, hidden=Nature.hidden),
    "narrow": functools.partial(Blocked, channels=Narrow.channels, hidden=Narrow.hidden),
    "small": functools.partial(Blocked, channels=(16, 32), hidden=256),
}
"""Networks that have a faster arrangement; others train as `reference.py` has them, with their channels last."""


def make_trunk(spec: ObservationSpec, config: NetworkConfig) -> Trunk:
    """The trunk that trains. Raises `ConfigError` for frames too small to convolve and an MLP without hidden layers."""
    trunk = trunk_maker(spec, config, TRUNKS | FAST)(spec, config)
    if isinstance(trunk, PixelTrunk) and ":" not in config.network:  # a user's layers may use `view`
        trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trunk
